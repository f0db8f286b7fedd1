"""The patch encoder of a ViT, in the place of the pixel encoder: what pixels as tokens are compared with."""

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model
from pixtok.model.block import RMSNorm
from pixtok.model.embed import PlaceEmbed
from pixtok.model.param import linear, matrix, param

_FAINT = 0.02
"""Contrast, of 1, below which a patch counts as flat."""


def inputs(side: int) -> int:
    """Numbers that describe a patch: three for each pixel, three means, its contrast, and a constant."""
    return 3 * side**2 + 5


class PatchEncoder(nn.Module):
    """Windows → summaries in the trunk's width: a layer of GELUs, a linear one, a norm, and the place of the window.

    A patch comes normalised, its level and contrast beside it, so that nothing is lost but the scale of what is nearly
    flat; colours are not folded.  Norms before and after are those of arXiv 2302.01327.
    """

    config: Model
    dtype: jnp.dtype

    def setup(self) -> None:
        config, size = self.config, inputs(self.config.window)
        self.up = param(self, "up", (size, config.stem), ("patch", "mlp"), matrix(size))
        self.down = param(self, "down", (config.stem, config.trunk.width), ("mlp", "embed"), matrix(config.stem))
        self.norm = RMSNorm(self.dtype)
        self.place = PlaceEmbed(config.trunk.width, self.dtype)

    def __call__(self, pixel_BMW: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array) -> tuple[None, jax.Array]:
        """→ (no states of pixels; summaries (B, M, E))."""
        return None, self.summaries(pixel_BMW, shape_BM2, place_BM4)

    def summaries(self, pixel_BMW: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array) -> jax.Array:
        """The summaries alone."""
        x_BMI = patch(pixel_BMW, shape_BM2, self.config.window).astype(self.dtype)
        return self.norm(linear(nn.gelu(linear(x_BMI, self.up)), self.down)) + self.place(place_BM4)


def patch(pixel_BMW: jax.Array, shape_BM2: jax.Array, side: int) -> jax.Array:
    """Packed colours of windows → what describes each as a patch, (B, M, `inputs(side)`), float32.

    Pixels stand at their row and column, also where a window is narrower than `side`; what is not there is 0.
    """
    height_BM1, width_BM1 = shape_BM2[..., :1], shape_BM2[..., 1:]
    row_11W, column_11W = (index.reshape(1, 1, -1) for index in jnp.indices((side, side)))
    here_BMW = (row_11W < height_BM1) & (column_11W < width_BM1)
    number_BMW = jnp.where(here_BMW, row_11W * width_BM1 + column_11W, 0)
    here_BMW1 = here_BMW[..., None]
    colour_BMW3 = fold.split(jnp.take_along_axis(jnp.asarray(pixel_BMW), number_BMW, axis=2), 1)[0] / jnp.float32(255)
    count_BM11 = jnp.maximum(here_BMW1.sum(axis=2, keepdims=True), 1)
    mean_BM13 = jnp.where(here_BMW1, colour_BMW3, 0).sum(axis=2, keepdims=True) / count_BM11
    centred_BMW3 = jnp.where(here_BMW1, colour_BMW3 - mean_BM13, 0)
    square_BM11 = jnp.square(centred_BMW3).sum(axis=(2, 3), keepdims=True) / (3 * count_BM11)
    contrast_BM11 = jnp.sqrt(square_BM11 + _FAINT**2)
    flat = (*centred_BMW3.shape[:2], -1)
    parts = (centred_BMW3 / contrast_BM11, 2 * mean_BM13 - 1, jnp.log(contrast_BM11) + 2, jnp.ones_like(contrast_BM11))
    return jnp.concatenate([part.reshape(flat) for part in parts], axis=-1)
