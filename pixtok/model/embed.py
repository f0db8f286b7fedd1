"""Embeddings of words, of pixels, and of the place of a window in its image."""

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp

from pixtok import fold
from pixtok.model.param import embedding, linear, matrix, outer, param

_PLACE_WAVES = 16
PLACE_SIZE = 2 * 4 * _PLACE_WAVES
"""Sines and cosines of the four numbers of a place."""


class WordEmbed(nn.Module):
    """Word ids (B, S) → (B, S, E)."""

    size: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, word_BS: jax.Array) -> jax.Array:
        table_VE = param(self, "table", (self.size, self.width), ("vocab", "embed"), embedding())
        return table_VE[word_BS].astype(self.dtype)  # in this order, gradients add up in float32


class PixelEmbed(nn.Module):
    """Packed colours → vectors of width E, by their folded ids.

    A table of a row for each colour and one for padding; where colours are too many, the sum of a table of levels
    for each channel.
    """

    fold_factor: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, colour: jax.Array) -> jax.Array:
        factor = self.fold_factor
        if fold.by_channel(factor):
            return _by_channel(self, fold.split(colour, factor)[0], fold.levels(factor), self.width, self.dtype)
        shape = (fold.colours(factor) + 1, self.width)
        table_CE = param(self, "table", shape, ("colour", "pixel_embed"), embedding())
        return table_CE[fold.ids(colour, factor)].astype(self.dtype)  # in this order, gradients add up in float32


def _by_channel(module: nn.Module, value_3: jax.Array, size: int, width: int, dtype: jnp.dtype) -> jax.Array:
    """Values (…, 3) of three channels → the sum of their rows in one table of 3·size."""
    table_CE = param(module, "table", (3 * size, width), ("colour", "pixel_embed"), embedding())
    rows = (table_CE[value_3[..., channel] + channel * size] for channel in range(3))
    return sum(rows, jnp.zeros((), jnp.float32)).astype(dtype)


class PlaceEmbed(nn.Module):
    """(row, column, rows, columns) of windows (B, M, 4) → (B, M, E), for images of any size.

    Sines and cosines of each number at wavelengths from 4 to 2,048 windows, then a linear map.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, place_BM4: jax.Array) -> jax.Array:
        waves = np.pi / 2.0 ** np.linspace(1, 10, _PLACE_WAVES)
        angle_BM4R = outer(place_BM4, waves.astype(np.float32))
        angle_BMR = angle_BM4R.reshape(*place_BM4.shape[:-1], 4 * _PLACE_WAVES)
        wave_BMR = jnp.concatenate([jnp.sin(angle_BMR), jnp.cos(angle_BMR)], axis=-1)
        size = wave_BMR.shape[-1]
        kernel_RE = param(self, "kernel", (size, self.width), ("wave", "embed"), matrix(size))
        return linear(wave_BMR.astype(self.dtype), kernel_RE)
