"""Rotary positions and grouped-query attention."""

import math

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp

from pixtok.config import Stream
from pixtok.model.param import linear, matrix, param

# UPW's, which are Llama 3.1's (arXiv 2407.21783 and its published configuration).
_THETA = 5e5
_SCALE, _LOW, _HIGH, _CONTEXT = 8.0, 1.0, 4.0, 8192.0
# Inside a window coordinates are below some tens, so the slowest wave need not be longer than hundreds.
_AXIAL_THETA = 100.0


def line_frequencies(head_width: int) -> np.ndarray:
    """Angular frequencies (D/2,) of a running index: RoPE (arXiv 2104.09864) with Llama 3.1's scaling.

    f_j = θ^(−2j/D); waves longer than context/low are slowed by `scale`, those shorter than context/high are
    kept, and those between are interpolated.
    """
    f = _THETA ** (-np.arange(0, head_width, 2) / head_width)
    blend = np.clip((_CONTEXT * f / (2 * math.pi) - _LOW) / (_HIGH - _LOW), 0, 1)
    return (f * (blend + (1 - blend) / _SCALE)).astype(np.float32)


def line_angles(position: jax.Array, head_width: int) -> jax.Array:
    """Angles (…, D/2), float32, of integer positions (…)."""
    return jnp.multiply.outer(position.astype(jnp.float32), line_frequencies(head_width))


def axial_angles(row: jax.Array, column: jax.Array, head_width: int) -> jax.Array:
    """Angles (…, D/2), float32: the first half of the pairs turns with the row, the second with the column."""
    f = (_AXIAL_THETA ** (-np.arange(0, head_width, 4) / head_width)).astype(np.float32)
    parts = [jnp.multiply.outer(index.astype(jnp.float32), f) for index in (row, column)]
    return jnp.concatenate(parts, axis=-1)


def rotate(x_BSHD: jax.Array, angle_BSR: jax.Array) -> jax.Array:
    """Rotate the pairs (j, j + R) of features by the angles, in float32.  R = D/2."""
    first, second = jnp.split(x_BSHD.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle_BSR)[:, :, None], jnp.sin(angle_BSR)[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x_BSHD.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245): (B, S, E) → (B, S, E).  No biases.

    `segment_BS`, where given, keeps slots of different segments apart.
    """

    config: Stream
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BSE: jax.Array, angle_BSR: jax.Array, segment_BS: jax.Array | None) -> jax.Array:
        E, H, K, D = self.config.width, self.config.heads, self.config.kv_heads, self.config.head_width

        def project(name: str, count: int, axis: str) -> jax.Array:
            kernel_EHD = param(self, name, (E, count, D), ("embed", axis, "head"), matrix(E))
            return linear(x_BSE, kernel_EHD)

        q_BSHD = rotate(project("query", H, "heads"), angle_BSR)
        k_BSKD = rotate(project("key", K, "kv_heads"), angle_BSR)
        v_BSKD = project("value", K, "kv_heads")
        mask_B1SS = None
        if segment_BS is not None:
            mask_B1SS = (segment_BS[:, :, None] == segment_BS[:, None, :])[:, None]
        o_BSHD = jax.nn.dot_product_attention(q_BSHD, k_BSKD, v_BSKD, mask=mask_B1SS, is_causal=True)
        # Residual branches start small in proportion to their number, so that depth does not inflate the stream.
        init = matrix(H * D, scale=1 / (2 * self.config.layers))
        kernel_HDE = param(self, "out", (H, D, E), ("heads", "head", "embed"), init)
        return linear(o_BSHD.reshape(*o_BSHD.shape[:2], H * D), kernel_HDE.reshape(H * D, E))
