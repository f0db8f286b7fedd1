"""Pre-norm transformer blocks and stacks of them."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pixtok.config import Remat, Stream
from pixtok.model.attention import Attention
from pixtok.model.mesh import split
from pixtok.model.param import linear, matrix, param

_EPS = 1e-5
_KEPT = ("attended", "wide")
"""What `remat = "attention"` keeps of a block."""


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
            checkpoint_name(linear(x_BSE, param(self, name, (E, hidden), ("embed", "mlp"), matrix(E))), "wide")
            for name in ("gate", "up")
        )
        init = matrix(hidden, scale=1 / (2 * self.config.layers))
        down = param(self, "down", (hidden, E), ("mlp", "embed"), init)
        return linear(nn.silu(gate) * up, down)


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)).

    `attention` makes the attention of a config and a dtype; what follows x goes there.
    """

    config: Stream
    dtype: jnp.dtype
    attention: Callable[..., nn.Module] = Attention

    def setup(self) -> None:
        self.attention_norm, self.mlp_norm = RMSNorm(self.dtype), RMSNorm(self.dtype)
        self.attend = self.attention(self.config, self.dtype, name="attention")
        self.mlp = SwiGLU(self.config, self.dtype)

    def __call__(self, x_SE: jax.Array, *context: Any) -> tuple[jax.Array, None]:
        # Said outright, for the compiler would rather split features, as the weights' are, than rows.
        x_SE = split(x_SE)
        x_SE = x_SE + checkpoint_name(self.attend(self.attention_norm(x_SE), *context), "attended")
        return split(x_SE + self.mlp(self.mlp_norm(x_SE))), None

    def last(self, x_BMWE: jax.Array, last_BM: jax.Array, *context: Any) -> jax.Array:
        """The states of the last pixels of windows alone: (B, M, 1, E)."""
        own_BM1E = jnp.take_along_axis(x_BMWE, last_BM[:, :, None, None], axis=2)
        own_BM1E = own_BM1E + self.attend.last(self.attention_norm(x_BMWE), *context, last_BM)
        return own_BM1E + self.mlp(self.mlp_norm(own_BM1E))

    def step(self, x_B1E: jax.Array, cache: Any, *context: Any) -> tuple[jax.Array, Any]:
        """One more slot, after those in the cache."""
        return self._cached(self.attend.step, x_B1E, cache, *context)

    def begin(self, x_B1E: jax.Array, cache: Any, *context: Any) -> tuple[jax.Array, Any]:
        """What comes before the first of a window, and the cache made ready for it."""
        return self._cached(self.attend.begin, x_B1E, cache, *context)

    def _cached(self, attend: Callable[..., Any], x_B1E: jax.Array, cache: Any, *context: Any) -> tuple[jax.Array, Any]:
        out_B1E, cache = attend(self.attention_norm(x_B1E), cache, *context)
        x_B1E = x_B1E + out_B1E
        return x_B1E + self.mlp(self.mlp_norm(x_B1E)), cache


class Stack(nn.Module):
    """`layers` blocks, scanned: their parameters carry a leading axis `layers`."""

    config: Stream
    dtype: jnp.dtype
    remat: Remat
    attention: Callable[..., nn.Module] = Attention

    @nn.compact
    def __call__(self, x_SE: jax.Array, *context: Any) -> jax.Array:
        block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=False, policy=self._policy())
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.layers,
            in_axes=(nn.broadcast,) * len(context),  # pyright: ignore[reportArgumentType]
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x_SE, _ = scanned(self.config, self.dtype, self.attention, name="blocks")(x_SE, *context)
        return x_SE

    def last(self, x_BMWE: jax.Array, last_BM: jax.Array, *context: Any) -> jax.Array:
        """What `__call__` gives for the last pixel of each window, (B, M, 1, E); the last block sees to them alone."""
        params = self.variables["params"]["blocks"]
        block = Block(self.config, self.dtype, self.attention, parent=None)

        def body(x_BMWE: jax.Array, layer: Any) -> Any:
            return block.apply({"params": layer}, x_BMWE, *context)

        if self.remat != "none":
            body = jax.checkpoint(body, prevent_cse=False, policy=self._policy())
        x_BMWE, _ = jax.lax.scan(body, x_BMWE, jax.tree.map(lambda leaf: leaf[:-1], params))
        layer = jax.tree.map(lambda leaf: leaf[-1], params)
        return block.apply({"params": layer}, x_BMWE, last_BM, *context, method="last")  # pyright: ignore[reportReturnType]

    def _policy(self) -> Any:
        kept = jax.checkpoint_policies.save_only_these_names(*_KEPT)
        return kept if self.remat == "attention" else None

    def each(self, method: Literal["begin", "step"], x_B1E: jax.Array, caches: Any, *context: Any) -> Any:
        """`step` or `begin` of one block after the other; caches have the leading axis `layers`."""
        block = Block(self.config, self.dtype, self.attention, parent=None)

        def body(x_B1E: jax.Array, layer: tuple[Any, Any]) -> Any:
            params, cache = layer
            return block.apply({"params": params}, x_B1E, cache, *context, method=method)

        return jax.lax.scan(body, x_B1E, (self.variables["params"]["blocks"], caches))
