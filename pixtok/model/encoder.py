"""The pixel encoder: each window on its own, down to one summary."""

from typing import Literal

import flax.linen as nn
import jax
from einops import rearrange
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model
from pixtok.model.attention import axial_angles, line_angles
from pixtok.model.block import RMSNorm, Stack
from pixtok.model.embed import PixelEmbed, PlaceEmbed
from pixtok.model.param import linear, matrix, param


class PixelEncoder(nn.Module):
    """Causal blocks inside each window; the state of its last valid pixel is the window's summary.

    Padding comes last in a window, so causality alone keeps it unseen.
    """

    config: Model
    dtype: jnp.dtype
    remat: Literal["none", "block"]

    @nn.compact
    def __call__(self, pixel_BMW: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array) -> tuple[jax.Array, jax.Array]:
        """→ (states h_BMWE of all pixels; summaries (B, M, E) in the trunk's width).

        Both hold nothing of meaning where a window is absent.
        """
        config, stream, trunk = self.config, self.config.encoder, self.config.trunk
        x_BMWE = PixelEmbed(fold.colours(config.fold_factor), stream.width, self.dtype, name="embed")(pixel_BMW)
        index_BMW = jnp.broadcast_to(jnp.arange(pixel_BMW.shape[2]), pixel_BMW.shape)
        if config.variant == "upw":
            # UPW's index runs on over all windows of an image.  Rotary scores know differences alone, and attention
            # stays inside a window, so where the window begins cancels (and would only cost float32 precision).
            angle_BMWR = line_angles(index_BMW, stream.head_width)
        else:
            columns_BM1 = jnp.maximum(shape_BM2[:, :, 1:], 1)
            angle_BMWR = axial_angles(index_BMW // columns_BM1, index_BMW % columns_BM1, stream.head_width)
        batch = pixel_BMW.shape[0]
        x_NWE, angle_NWR = (rearrange(a, "B M W E -> (B M) W E") for a in (x_BMWE, angle_BMWR))
        h_NWE = Stack(stream, self.dtype, self.remat, name="stack")(x_NWE, angle_NWR)
        h_BMWE = rearrange(h_NWE, "(B M) W E -> B M W E", B=batch)

        last_BM11 = jnp.maximum(shape_BM2.prod(axis=-1) - 1, 0)[:, :, None, None]
        summary_BME = jnp.take_along_axis(h_BMWE, last_BM11, axis=2)[:, :, 0]
        norm = RMSNorm(self.dtype, name="norm")
        normed_BME = norm(summary_BME)
        if config.variant == "pixtok":  # UPW stores this norm and never applies it
            summary_BME = normed_BME
        if stream.width != trunk.width:
            shape, axes = (stream.width, trunk.width), ("pixel_embed", "embed")
            summary_BME = linear(summary_BME, param(self, "summary", shape, axes, matrix(stream.width)))
        if config.variant == "pixtok":
            summary_BME += PlaceEmbed(trunk.width, self.dtype, name="place")(place_BM4)
        return h_BMWE, summary_BME
