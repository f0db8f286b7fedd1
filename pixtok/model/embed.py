"""Embeddings of words, of pixels, and of the place of a window in its image."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp
from jax.nn import initializers

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
    ramps: bool = False
    """Begin linear in the levels of channels, for what reads colours off embeddings."""

    @nn.compact
    def __call__(self, colour: jax.Array) -> jax.Array:
        factor = self.fold_factor
        if fold.by_channel(factor):
            return self._by_channel(fold.split(colour, factor)[0])
        table_CE = self._table(fold.colours(factor) + 1)
        return table_CE[fold.ids(colour, factor)].astype(self.dtype)  # in this order, gradients add up in float32

    def _table(self, rows: int) -> jax.Array:
        init = ramps(fold.levels(self.fold_factor)) if self.ramps else embedding()
        return param(self, "table", (rows, self.width), ("colour", "pixel_embed"), init)

    def _by_channel(self, value_3: jax.Array) -> jax.Array:
        """Values (…, 3) of three channels → the sum of their rows in one table of 3·levels."""
        size = fold.levels(self.fold_factor)
        table_CE = self._table(3 * size)
        rows = (table_CE[value_3[..., channel] + channel * size] for channel in range(3))
        return sum(rows, jnp.zeros((), jnp.float32)).astype(self.dtype)


def ramps(levels: int) -> initializers.Initializer:
    """For a table of all colours of three channels of so many levels and of padding, or of 3·`levels` rows to be added.

    A constant and a slope for each channel, normal of standard deviation 0.5 over levels from −1 to 1, and noise of
    0.03, by which colours may learn to be told apart.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        height = np.linspace(-1, 1, levels)
        if shape[0] == 3 * levels:
            known_CK = np.concatenate([np.full((3 * levels, 1), 1 / 3), np.kron(np.eye(3), height[:, None])], axis=1)
        else:
            blue, green, red = np.meshgrid(height, height, height, indexing="ij")
            known_CK = np.stack([np.ones(levels**3), *(channel.ravel() for channel in (red, green, blue))], axis=1)
            known_CK = np.concatenate([known_CK, np.zeros((1, 4))])
        slope_KE = 0.5 * jax.random.normal(key, (4, shape[1]), dtype)
        noise_CE = 0.03 * jax.random.normal(jax.random.fold_in(key, 1), tuple(shape), dtype)
        return jnp.asarray(known_CK, dtype) @ slope_KE + noise_CE

    return init


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
