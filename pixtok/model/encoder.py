"""The pixel encoder: each window on its own, down to one summary."""

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok.config import Model, Remat
from pixtok.model.attention import Cache, WindowAttention, line_angles, pixel_angles
from pixtok.model.block import RMSNorm, Stack
from pixtok.model.embed import PixelEmbed, PlaceEmbed
from pixtok.model.param import linear, matrix, param
from pixtok.model.stem import Stem

CHANNELS = 3
"""Numbers that a stem is told of each pixel: as many as a colour has."""


class PixelEncoder(nn.Module):
    """Causal blocks inside each window; the state of its last valid pixel is the window's summary.

    With a stem, that makes the summary, of the embeddings of all pixels.  Padding comes last in a window, so causality
    alone keeps it unseen.
    """

    config: Model
    dtype: jnp.dtype
    remat: Remat

    def setup(self) -> None:
        config, stream, trunk = self.config, self.config.encoder, self.config.trunk
        self.embed = PixelEmbed(config.fold_factor, stream.width, self.dtype, ramps=config.stem > 0)
        self.stack = Stack(stream, self.dtype, self.remat, WindowAttention)
        if config.stem:
            shape, axes = (stream.width, CHANNELS), ("pixel_embed", "patch")
            self.squeeze = param(self, "squeeze", shape, axes, matrix(stream.width))
            self.stem = Stem(config, self.dtype)
        else:
            self.norm = RMSNorm(self.dtype)
            if stream.width != trunk.width:
                shape, axes = (stream.width, trunk.width), ("pixel_embed", "embed")
                self.summary = param(self, "summary", shape, axes, matrix(stream.width))
        if config.variant == "pixtok":
            self.place = PlaceEmbed(trunk.width, self.dtype)

    def _angles(self, shape_BM2: jax.Array) -> jax.Array:
        W, head = self.config.window**2, self.config.encoder.head_width
        if self.config.variant == "upw":
            # UPW's index runs on over all windows of an image.  Rotary scores know differences alone, and attention
            # stays inside a window, so where the window begins cancels (and would only cost float32 precision).
            return line_angles(jnp.broadcast_to(jnp.arange(W), (*shape_BM2.shape[:2], W)), head)
        return pixel_angles(shape_BM2, W, head)

    def __call__(
        self, pixel_BMW: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array
    ) -> tuple[jax.Array | None, jax.Array]:
        """→ (states h_BMWE of all pixels, None where words alone are predicted; summaries (B, M, E), of the trunk).

        Both hold nothing of meaning where a window is absent.
        """
        if self.config.objective == "words" and not self.is_initializing():
            return None, self.summaries(pixel_BMW, shape_BM2, place_BM4)
        x_BMWE = self.embed(pixel_BMW)
        h_BMWE = self.stack(x_BMWE, self._angles(shape_BM2)) if self.config.encoder.layers else x_BMWE
        last_BM1E = jnp.take_along_axis(h_BMWE, _last(shape_BM2)[:, :, None, None], axis=2)
        return h_BMWE, self.summarise(last_BM1E[:, :, 0], x_BMWE, shape_BM2, place_BM4)

    def summaries(self, pixel_BMW: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array) -> jax.Array:
        """The summaries alone, for less."""
        x_BMWE = self.embed(pixel_BMW)
        last_BM = _last(shape_BM2)
        last_BM1E = x_BMWE[:, :, :1] if self.config.stem else self.stack.last(x_BMWE, last_BM, self._angles(shape_BM2))
        return self.summarise(last_BM1E[:, :, 0], x_BMWE, shape_BM2, place_BM4)

    def summarise(
        self, last_BME: jax.Array, x_BMWE: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array
    ) -> jax.Array:
        """States of the last pixels of windows, or, to a stem, embeddings of all pixels → their summaries."""
        if self.config.stem:
            return self.stem(linear(x_BMWE, self.squeeze), shape_BM2) + self.place(place_BM4)
        # UPW stores this norm and never applies it.
        normed_BME = self.norm(last_BME)
        summary_BME = last_BME if self.config.variant == "upw" else normed_BME
        if self.config.encoder.width != self.config.trunk.width:
            summary_BME = linear(summary_BME, self.summary)
        if self.config.variant == "pixtok":
            summary_BME += self.place(place_BM4)
        return summary_BME

    def step(
        self, colour_B: jax.Array, cache: Cache, shape_BM2: jax.Array, pixel: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Pixel number `pixel` of one window (M = 1) → its state (B, E)."""
        angle_B1R = jax.lax.dynamic_slice_in_dim(self._angles(shape_BM2)[:, 0], pixel, 1, axis=1)
        h_B1E, cache = self.stack.each("step", self.embed(colour_B)[:, None], cache, angle_B1R, pixel)
        return h_B1E[:, 0], cache


def _last(shape_BM2: jax.Array) -> jax.Array:
    """The index of the last valid pixel of each window, 0 where it is absent."""
    return jnp.maximum(shape_BM2.prod(axis=-1) - 1, 0)
