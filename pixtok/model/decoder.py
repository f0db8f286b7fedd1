"""The pixel decoder: states that predict the pixels of windows."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok.config import Model, Remat
from pixtok.document import Rows
from pixtok.model.attention import ConditionalAttention, Context, PixelCache, border, look, pixel_angles
from pixtok.model.block import RMSNorm, Stack
from pixtok.model.halo import around
from pixtok.model.param import linear, matrix, param


class PixelDecoder(nn.Module):
    """Blocks of global conditional attention over the pixels of a window, its halo and the trunk's states.

    The input at pixel i, which predicts pixel i + 1, is the encoder's state h_{m,i}, normalised and projected, the
    pixel itself, residuals included, and the trunk's state before the window, y_{s_m − 1}, projected.  What predicts
    the first pixel begins as that projection and the pixel of the halo that is nearest to it.
    """

    config: Model
    dtype: jnp.dtype
    remat: Remat

    def setup(self) -> None:
        config, stream = self.config, self.config.decoder
        encoder, trunk, E = config.encoder.width, config.trunk.width, stream.width
        self.before = param(self, "before", (trunk, E), ("embed", "pixel_embed"), matrix(trunk, scale=0.1))
        if config.objective == "reference":
            return
        self.input_norm, self.norm = RMSNorm(self.dtype), RMSNorm(self.dtype)
        self.input = param(self, "input", (encoder, E), ("pixel_input", "pixel_embed"), matrix(encoder, scale=0.1))
        if stream.layers:
            attention = functools.partial(ConditionalAttention, summaries=config.summaries)
            self.stack = Stack(stream, self.dtype, self.remat, attention)
            if config.summaries:
                self.slots = param(self, "slots", (trunk, E), ("embed", "pixel_embed"), matrix(trunk))

    def first(self, y_E: jax.Array) -> jax.Array:
        """The trunk's state before a window, in the decoder's width: (…, E)."""
        return linear(y_E, self.before)

    def slot_states(self, y_BSE: jax.Array) -> jax.Array:
        """The trunk's states in the decoder's width."""
        return linear(y_BSE, self.slots) if self.config.summaries and self.config.decoder.layers else y_BSE[..., :0]

    def _input(self, h_E: jax.Array, own_E: jax.Array, first_E: jax.Array) -> jax.Array:
        return linear(self.input_norm(h_E), self.input) + own_E + first_E

    def __call__(
        self,
        rows: Rows,
        h_BMWE: jax.Array,
        embed: Callable[[jax.Array], jax.Array],
        y_BSE: jax.Array,
        first_BME: jax.Array,
    ) -> jax.Array:
        """→ states (B, M, W, E): number i predicts pixel i, and has seen those before it.

        `embed` gives packed colours (…) as vectors (…, E).
        """
        around = context(self.config, rows, self.slot_states(y_BSE))
        colour_BMW = jnp.asarray(rows.pixel_BMW)
        start_BME = first_BME
        if self.config.halo:
            edge_BMQ11 = border(colour_BMW, around.halo)[..., None, None]
            near_BM = look(edge_BMQ11, around.halo.border_index_BMP[:, :, :1], None)[:, :, 0, 0, 0]
            start_BME = self._start(first_BME, embed(near_BM), around)
        own_BMWE = embed(colour_BMW)
        x_BMWE = self._input(h_BMWE, own_BMWE, jnp.broadcast_to(first_BME[:, :, None], own_BMWE.shape))
        x_BMTE = jnp.concatenate([start_BME[:, :, None], x_BMWE], axis=2)
        if self.config.decoder.layers:
            x_BMTE = self.stack(x_BMTE, around)
        return self.norm(x_BMTE[:, :, :-1])  # nobody asks what comes after the last pixel

    def _start(self, first_BME: jax.Array, near_BME: jax.Array, around: Context) -> jax.Array:
        # To repeat the pixel before is what a model knows from the start (see `heads.Chain`): so also here.
        return first_BME + jnp.where(around.halo.count_BM[:, :, None] > 0, near_BME, 0)

    def begin(
        self, first_BE: jax.Array, near_BE: jax.Array, cache: PixelCache, window: Context
    ) -> tuple[jax.Array, PixelCache]:
        """Make ready for the pixels of one window (M = 1) → the state that predicts its first.

        `near_BE` embeds the parts of pixel `halo.nearest_BM`.
        """
        x_B1E = self._start(first_BE[:, None], near_BE[:, None], window)
        if self.config.decoder.layers:
            x_B1E, cache = self.stack.each("begin", x_B1E, cache, window)
        return self.norm(x_B1E[:, 0]), cache

    def step(
        self,
        h_BE: jax.Array,
        own_BE: jax.Array,
        first_BE: jax.Array,
        cache: PixelCache,
        window: Context,
        pixel: jax.Array,
        index: jax.Array,
    ) -> tuple[jax.Array, PixelCache]:
        """One pixel of one window → the state that predicts the next."""
        x_BE = self._input(h_BE, own_BE, first_BE)
        if self.config.decoder.layers:
            x_B1E, cache = self.stack.each("step", x_BE[:, None], cache, window, pixel, index)
            x_BE = x_B1E[:, 0]
        return self.norm(x_BE), cache


def context(config: Model, rows: Rows, slot_BSE: jax.Array) -> Context:
    """What the pixels of each window see beside the window itself."""
    shape_BM2, head = jnp.asarray(rows.shape_BM2), config.decoder.head_width
    slot_BM = jnp.asarray(rows.window_slot_BM)
    S = rows.word_BS.shape[1]
    position_BM = jnp.take_along_axis(jnp.asarray(rows.position_BS), jnp.minimum(slot_BM, S - 1), axis=1)
    present_BM1 = shape_BM2[:, :, :1] > 0
    return Context(
        pixel_angles(shape_BM2, config.window**2, head),
        around(shape_BM2, jnp.asarray(rows.place_BM4), config.halo, config.window, head),
        slot_BSE,
        jnp.where(present_BM1, jnp.stack([slot_BM - position_BM, slot_BM], axis=-1), 0),
    )
