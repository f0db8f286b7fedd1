"""Pre-norm transformer blocks and stacks of them."""

from typing import Literal

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok.config import Stream
from pixtok.model.attention import Attention
from pixtok.model.param import linear, matrix, param

_EPS = 1e-5


class RMSNorm(nn.Module):
    """x / √(mean x² + 1e-5) · scale (arXiv 1910.07467), computed in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_E: jax.Array) -> jax.Array:
        width = x_E.shape[-1]
        scale_E = param(self, "scale", (width,), ("norm",), nn.initializers.ones)
        wide_E = x_E.astype(jnp.float32)
        rms_1 = jax.lax.rsqrt(jnp.mean(jnp.square(wide_E), axis=-1, keepdims=True) + _EPS)
        # Broadcast by hand: tests forbid implicit rank promotion.
        return (wide_E * rms_1 * jnp.broadcast_to(scale_E, x_E.shape)).astype(self.dtype)


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) ⊙ W_up x) (arXiv 2002.05202).  No biases."""

    config: Stream
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BSE: jax.Array) -> jax.Array:
        E, hidden = self.config.width, self.config.hidden
        gate, up = (
            linear(x_BSE, param(self, name, (E, hidden), ("embed", "mlp"), matrix(E))) for name in ("gate", "up")
        )
        init = matrix(hidden, scale=1 / (2 * self.config.layers))
        down = param(self, "down", (hidden, E), ("mlp", "embed"), init)
        return linear(nn.silu(gate) * up, down)


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    config: Stream
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BSE: jax.Array, angle_BSR: jax.Array, segment_BS: jax.Array | None) -> tuple[jax.Array, None]:
        normed = RMSNorm(self.dtype, name="attention_norm")(x_BSE)
        x_BSE = x_BSE + Attention(self.config, self.dtype, name="attention")(normed, angle_BSR, segment_BS)
        normed = RMSNorm(self.dtype, name="mlp_norm")(x_BSE)
        return x_BSE + SwiGLU(self.config, self.dtype, name="mlp")(normed), None


class Stack(nn.Module):
    """`layers` blocks, scanned: their parameters carry a leading axis `layers`."""

    config: Stream
    dtype: jnp.dtype
    remat: Literal["none", "block"]

    @nn.compact
    def __call__(self, x_BSE: jax.Array, angle_BSR: jax.Array, segment_BS: jax.Array | None = None) -> jax.Array:
        block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=False)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.layers,
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x_BSE, _ = scanned(self.config, self.dtype, name="blocks")(x_BSE, angle_BSR, segment_BS)
        return x_BSE
