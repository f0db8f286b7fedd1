"""The patch encoder of a ViT, in the place of the pixel encoder: what pixels as tokens are compared with."""

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model
from pixtok.model.embed import PlaceEmbed
from pixtok.model.stem import Stem


class PatchEncoder(nn.Module):
    """Windows → summaries in the trunk's width: a stem over their colours, not folded, and their places."""

    config: Model
    dtype: jnp.dtype

    def setup(self) -> None:
        self.stem = Stem(self.config, self.dtype)
        self.place = PlaceEmbed(self.config.trunk.width, self.dtype)

    def __call__(self, pixel_BMW: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array) -> tuple[None, jax.Array]:
        """→ (no states of pixels; summaries (B, M, E))."""
        return None, self.summaries(pixel_BMW, shape_BM2, place_BM4)

    def summaries(self, pixel_BMW: jax.Array, shape_BM2: jax.Array, place_BM4: jax.Array) -> jax.Array:
        """The summaries alone."""
        colour_BMW3 = fold.split(jnp.asarray(pixel_BMW), 1)[0] * jnp.float32(2 / 255) - 1
        return self.stem(colour_BMW3, shape_BM2) + self.place(place_BM4)
