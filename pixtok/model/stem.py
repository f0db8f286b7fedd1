"""From all pixels of a window to one vector: the stem of a ViT, over colours or over embeddings of pixels."""

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok.config import Model
from pixtok.model.block import RMSNorm
from pixtok.model.param import linear, matrix, param

_FAINT = 0.04
"""Contrast, of values from −1 to 1, below which a window counts as flat."""


def inputs(side: int, channels: int) -> int:
    """Numbers that describe a window: its values, their means, their contrast, and a constant."""
    return channels * side**2 + channels + 2


class Stem(nn.Module):
    """A layer of GELUs over what `describe` tells, a linear one, and a norm.

    Norms before and after are those of arXiv 2302.01327.
    """

    config: Model
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, value_BMWC: jax.Array, shape_BM2: jax.Array) -> jax.Array:
        """Values of pixels, one after another in their windows → (B, M, E), of the trunk."""
        config = self.config
        size = inputs(config.window, value_BMWC.shape[-1])
        up = param(self, "up", (size, config.stem), ("patch", "mlp"), matrix(size))
        down = param(self, "down", (config.stem, config.trunk.width), ("mlp", "embed"), matrix(config.stem))
        x_BMI = describe(value_BMWC, shape_BM2, config.window).astype(self.dtype)
        return RMSNorm(self.dtype, name="norm")(linear(nn.gelu(linear(x_BMI, up)), down))


def describe(value_BMWC: jax.Array, shape_BM2: jax.Array, side: int) -> jax.Array:
    """Values of the pixels of windows → what tells of each, (B, M, `inputs`), float32.

    Values come normalised, their level and contrast beside them, so that nothing is lost but the scale of what is
    nearly flat: without it what is bright drowns what is written (`experiments/LOG.md`).  Pixels stand at their row
    and column, also where a window is narrower than `side`; what is not there is 0.
    """
    height_BM1, width_BM1 = shape_BM2[..., :1], shape_BM2[..., 1:]
    row_11W, column_11W = (index.reshape(1, 1, -1) for index in jnp.indices((side, side)))
    here_BMW = (row_11W < height_BM1) & (column_11W < width_BM1)
    number_BMW = jnp.where(here_BMW, row_11W * width_BM1 + column_11W, 0)
    here_BMW1 = here_BMW[..., None]
    value_BMWC = jnp.take_along_axis(value_BMWC, number_BMW[..., None], axis=2).astype(jnp.float32)
    count_BM11 = jnp.maximum(here_BMW1.sum(axis=2, keepdims=True, dtype=jnp.float32), 1)
    mean_BM1C = jnp.where(here_BMW1, value_BMWC, 0).sum(axis=2, keepdims=True) / count_BM11
    centred_BMWC = jnp.where(here_BMW1, value_BMWC - mean_BM1C, 0)
    channels = value_BMWC.shape[-1]
    square_BM11 = jnp.square(centred_BMWC).sum(axis=(2, 3), keepdims=True) / (channels * count_BM11)
    contrast_BM11 = jnp.sqrt(square_BM11 + _FAINT**2)
    flat = (*centred_BMWC.shape[:2], -1)
    told = (centred_BMWC / contrast_BM11, mean_BM1C, jnp.log(contrast_BM11) + 1, jnp.ones_like(contrast_BM11))
    return jnp.concatenate([part.reshape(flat) for part in told], axis=-1)
