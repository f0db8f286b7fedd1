"""The model one slot and one pixel at a time, with key/value caches in encoder, trunk and decoder.

What generation and the codec share.  All images of a batch have one shape and one place in their documents, so
positions are scalars.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model, Stream
from pixtok.document import Rows
from pixtok.model.attention import Cache, Context, PixelCache
from pixtok.model.decoder import context
from pixtok.model.halo import offsets
from pixtok.model.heads import parts
from pixtok.model.model import UnifiedModel, values


class Caches(NamedTuple):
    """All that what has been generated leaves for what comes.  Leading axis of the first three: layers."""

    encoder: Cache
    trunk: Cache
    decoder: PixelCache
    colour_BN: jax.Array
    """The pixels so far, of all windows."""
    y_BSE: jax.Array
    """The trunk's states so far."""


class Window(NamedTuple):
    """One window about to be generated."""

    number: jax.Array
    """Among the windows of the row."""
    pixels: jax.Array
    """How many are in it."""
    shape_B12: jax.Array
    place_B14: jax.Array
    slot: jax.Array
    first_BE: jax.Array
    """The trunk's state before it, in the decoder's width."""
    state_BE: jax.Array
    """The decoder's state for its first pixel."""
    around: Context


def empty(stream: Stream, batch: int, length: int) -> Cache:
    """Room for keys and values of so many slots, in each layer, float32."""
    shape = (stream.layers, batch, length, stream.kv_heads, stream.head_width)
    return Cache(jnp.zeros(shape), jnp.zeros(shape))


class Stepper:
    """Pure functions of the weights, in float32, for rows of one layout."""

    def __init__(self, config: Model, rows: Rows) -> None:
        """`rows`: one document's layout, for each of B copies; words and pixels in it are not looked at."""
        self.config, self._model = config, UnifiedModel(config)
        self.rows = jax.tree.map(jnp.asarray, rows)
        self.parts = parts(config)
        batch, slots = rows.word_BS.shape
        self._plan = jax.jit(functools.partial(context, config))(self.rows, jnp.zeros((batch, slots, 0)))

    def _net(self, params: Any) -> Any:
        return self._model.bind({"params": params})

    def empty(self) -> Caches:
        """Before the first slot."""
        batch, slots = self.rows.word_BS.shape
        pixels = self.rows.pixel_BMW.shape[1] * self.config.window**2
        halo = len(offsets(self.config.halo, self.config.window))
        config = self.config
        slot = empty(config.decoder, batch, slots if config.summaries else 0)
        near = empty(config.decoder, batch, halo + config.window**2)
        return Caches(
            empty(config.encoder, batch, config.window**2),
            empty(config.trunk, batch, slots),
            PixelCache(empty(config.decoder, batch, pixels), near, slot),
            jnp.zeros((batch, pixels), jnp.int32),
            jnp.zeros((batch, slots, config.trunk.width)),
        )

    def _slot(self, params: Any, caches: Caches, slot: jax.Array, x_BE: jax.Array) -> Caches:
        y_B1E, trunk = self._net(params).trunk.step(x_BE[:, None], caches.trunk, slot)
        y_BSE = jax.lax.dynamic_update_slice_in_dim(caches.y_BSE, y_B1E, slot, axis=1)
        return caches._replace(trunk=trunk, y_BSE=y_BSE)

    def word(self, params: Any, caches: Caches, slot: jax.Array, word_B: jax.Array) -> Caches:
        """Put a word into a slot."""
        return self._slot(params, caches, slot, self._net(params).trunk.embed(word_B))

    def logits(self, params: Any, caches: Caches, slot: jax.Array) -> jax.Array:
        """Logits (B, U) of what comes in `slot`."""
        y_BE = jax.lax.dynamic_index_in_dim(caches.y_BSE, slot - 1, axis=1, keepdims=False)
        return self._net(params).head(y_BE)

    def begin(self, params: Any, caches: Caches, number: jax.Array) -> tuple[Caches, Window]:
        """Make ready for window `number`, before which all slots are known."""
        rows, net = self.rows, self._net(params)

        def one(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, number, 1, axis=1)

        around = jax.tree.map(one, self._plan._replace(slot_BSE=None))
        around = around._replace(slot_BSE=net.decoder.slot_states(caches.y_BSE))
        slot = one(rows.window_slot_BM)[0, 0]
        y_BE = jax.lax.dynamic_index_in_dim(caches.y_BSE, slot - 1, axis=1, keepdims=False)
        shape_B12 = one(rows.shape_BM2)
        first_BE = net.decoder.first(y_BE)
        near_B1 = jnp.take_along_axis(caches.colour_BN, around.halo.nearest_BM, axis=1)
        near_BE = net.chain.embed(self.values(near_B1[:, 0]))
        state_BE, decoder = net.decoder.begin(first_BE, near_BE, caches.decoder, around)
        pixels = shape_B12[0, 0].prod()
        window = Window(number, pixels, shape_B12, one(rows.place_BM4), slot, first_BE, state_BE, around)
        return caches._replace(decoder=decoder), window

    def pixel(
        self, params: Any, caches: Caches, window: Window, pixel: jax.Array, colour_B: jax.Array
    ) -> tuple[Caches, jax.Array, jax.Array]:
        """Put a colour into a pixel → (caches, its state in the encoder, the decoder's state for the next)."""
        net = self._net(params)
        h_BE, encoder = net.encoder.step(colour_B, caches.encoder, window.shape_B12, pixel)
        index = window.number * self.config.window**2 + pixel
        own_BE = net.chain.embed(self.values(colour_B))
        state_BE, decoder = net.decoder.step(h_BE, own_BE, window.first_BE, caches.decoder, window.around, pixel, index)
        colour_BN = jax.lax.dynamic_update_slice_in_dim(caches.colour_BN, colour_B[:, None], index, axis=1)
        return caches._replace(encoder=encoder, decoder=decoder, colour_BN=colour_BN), h_BE, state_BE

    def end(self, params: Any, caches: Caches, window: Window, last_BE: jax.Array) -> Caches:
        """Put the summary of a window into its slot; `last_BE` is the encoder's state of its last pixel."""
        encoder, W = self._net(params).encoder, self.config.window**2
        colour_BW = jax.lax.dynamic_slice_in_dim(caches.colour_BN, window.number * W, W, axis=1)
        embedded_B1WE = encoder.embed(colour_BW[:, None])
        summary_B1E = encoder.summarise(last_BE[:, None], embedded_B1WE, window.shape_B12, window.place_B14)
        return self._slot(params, caches, window.slot, summary_B1E[:, 0])

    def part_logits(self, params: Any, part: int, state_BE: jax.Array) -> jax.Array:
        """Logits of one part of a pixel, from the decoder's state that was told the parts before."""
        return self._net(params).chain.logits(part, state_BE)

    def tell(self, params: Any, part: int, state_BE: jax.Array, value_B: jax.Array) -> jax.Array:
        """The state, told one more part."""
        return self._net(params).chain.tell(part, state_BE, value_B)

    def colour(self, value_BC: list[Any]) -> jax.Array:
        """Parts → packed colour; without residuals, the middle of its bin."""
        factor = self.config.fold_factor
        level = jnp.stack(value_BC[:3], axis=-1)
        residual = jnp.stack(value_BC[3:], axis=-1) if len(value_BC) > 3 else factor // 2 if factor > 1 else 0
        return fold.join(level, residual, factor)

    def values(self, colour_B: Any) -> jax.Array:
        """Packed colours → parts (B, C)."""
        return values(colour_B, self.config)
