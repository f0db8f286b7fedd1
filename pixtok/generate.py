"""Images drawn from a model: whole, or around what is known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from pixtok import document, fold, windows
from pixtok.axes import Image
from pixtok.config import Model
from pixtok.document import Document, Rows
from pixtok.draw import Draw
from pixtok.errors import InputError
from pixtok.stepper import Caches, Stepper
from pixtok.words import Vocabulary

_AS_IT_IS = Draw()


class Knobs(NamedTuple):
    """The numbers of a `Draw`, as arrays."""

    temperature: Any
    top_k: Any
    top_p: Any


def draw(key: jax.Array, logits_BU: jax.Array, knobs: Knobs) -> jax.Array:
    """One outcome for each row, (B,), of logits divided by the temperature, within top-k and top-p."""
    # By rank, so that equal outcomes do not count as one.
    order_BU = jnp.argsort(-logits_BU, axis=-1)
    falling_BU = jnp.take_along_axis(logits_BU, order_BU, axis=-1) / jnp.maximum(knobs.temperature, 1e-6)
    probability_BU = jax.nn.softmax(falling_BU, axis=-1)
    before_BU = jnp.cumsum(probability_BU, axis=-1) - probability_BU
    rank_1U = jnp.arange(logits_BU.shape[1])[None]
    in_k_1U = (rank_1U < knobs.top_k) | (knobs.top_k < 1)
    in_p_BU = (before_BU < knobs.top_p) | (knobs.top_p >= 1)
    kept_BU = (rank_1U == 0) | (in_k_1U & in_p_BU & (knobs.temperature > 0))
    rank_B = jax.random.categorical(key, jnp.where(kept_BU, falling_BU, -jnp.inf))
    return jnp.take_along_axis(order_BU, rank_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


Progress = Callable[[int], None]


class Generator:
    """Weights that draw."""

    def __init__(self, model: Model, params: Any, vocabulary: Vocabulary) -> None:
        """Raises InputError for a model that does not predict all pixels."""
        if model.objective != "full":
            raise InputError(
                f"this model does not predict all pixels (model.objective = {model.objective}) and cannot draw an "
                "image: train one with --model.objective full"
            )
        self.model, self.params, self.vocabulary = model, params, vocabulary

    def images(
        self,
        known: Image,
        mask: np.ndarray,
        *,
        text: str = "",
        count: int = 1,
        how: Draw = _AS_IT_IS,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Draw the pixels of `known` (Y, X, 3) where `mask` (Y, X) holds, in order → (count, Y, X, 3) uint8.

        All other pixels stay as they are, bit for bit, and are known to those after them.  `text` comes before the
        image.  `progress` hears of pixels done, of all images together.
        """
        session = _Session(self, (text, known) if text else (known,), count, how)
        known_MW = windows.split(~mask, self.model.window, fill=True)
        unknown = np.flatnonzero(~known_MW.all(1))
        if len(unknown):
            session.go(known_MW[: unknown[-1] + 1], progress)
        return np.stack([windows.join(fold.unpack(item), *mask.shape) for item in session.pixel_BMW])


class _Session:
    """One document's layout, filled slot by slot."""

    def __init__(self, generator: Generator, parts: tuple[str | Image, ...], count: int, how: Draw) -> None:
        model, self._params = generator.model, generator.params
        slots = document.tokenize(
            Document("", parts),
            generator.vocabulary,
            vocab_size=model.vocab_size,
            fold_factor=model.fold_factor,
            side=model.window,
        )
        row = document.pack([slots], document.empty_row(len(slots.word_S), len(slots.window_slot_M), model.window))
        self._rows = Rows(*(np.repeat(array[None], count, axis=0) for array in row))
        self.pixel_BMW = self._rows.pixel_BMW.copy()
        self._knobs = Knobs(*map(jnp.float32, (how.temperature, how.top_k, how.top_p)))
        self._key = jax.random.key(how.seed)
        self._stepper = stepper = Stepper(model, self._rows)
        self._caches = stepper.empty()
        self._word = jax.jit(stepper.word, donate_argnums=1)
        self._window = jax.jit(_window(stepper), donate_argnums=1)
        self._slot = 0

    def go(self, known_MW: np.ndarray, progress: Progress | None) -> None:
        """Through the words and windows of the layout, up to the last window of `known_MW`; draw what is not known."""
        for number, known_W in enumerate(known_MW):
            for slot in range(self._slot, int(self._rows.window_slot_BM[0, number])):
                word_B = self._rows.word_BS[:, slot]
                self._caches = self._word(self._params, self._caches, jnp.int32(slot), word_B)
            self._slot = int(self._rows.window_slot_BM[0, number]) + 1
            self._key, key = jax.random.split(self._key)
            given_BW = self._rows.pixel_BMW[:, number]
            self._caches, drawn_BW = self._window(
                self._params, self._caches, jnp.int32(number), given_BW, known_W, self._knobs, key
            )
            self.pixel_BMW[:, number] = drawn_BW
            if progress is not None:
                progress(len(given_BW) * int(self._rows.shape_BM2[0, number].prod()))


def _window(stepper: Stepper):
    """The compiled step: all pixels of one window, those known forced to be what they are."""

    def pixel(params: Any, key: jax.Array, state_BE: jax.Array, knobs: Knobs) -> jax.Array:
        """One colour."""
        value = []
        for part in range(len(stepper.parts)):
            value.append(draw(jax.random.fold_in(key, part), stepper.part_logits(params, part, state_BE), knobs))
            state_BE = stepper.tell(params, part, state_BE, value[part])
        return stepper.colour(value)

    def window(
        params: Any,
        caches: Caches,
        number: jax.Array,
        given_BW: jax.Array,
        known_W: jax.Array,
        knobs: Knobs,
        key: jax.Array,
    ) -> tuple[Caches, jax.Array]:
        caches, here = stepper.begin(params, caches, number)
        first_B = pixel(params, jax.random.fold_in(key, 0), here.state_BE, knobs)
        first_B = jnp.where(known_W[0], given_BW[:, 0], first_B)
        drawn_BW = given_BW.at[:, 0].set(first_B)
        last_BE = jnp.zeros((given_BW.shape[0], stepper.config.encoder.width))

        def body(i: jax.Array, carry: tuple[Caches, jax.Array, jax.Array]) -> tuple[Caches, jax.Array, jax.Array]:
            caches, drawn_BW, _ = carry
            colour_B = jax.lax.dynamic_index_in_dim(drawn_BW, i, axis=1, keepdims=False)
            caches, last_BE, state_BE = stepper.pixel(params, caches, here, i, colour_B)
            after = jnp.minimum(i + 1, drawn_BW.shape[1] - 1)
            next_B = pixel(params, jax.random.fold_in(key, i + 1), state_BE, knobs)
            keep = known_W[after] | (i + 1 >= here.pixels)
            drawn_BW = drawn_BW.at[:, after].set(jnp.where(keep, drawn_BW[:, after], next_B))
            return caches, drawn_BW, last_BE

        caches, drawn_BW, last_BE = jax.lax.fori_loop(0, here.pixels, body, (caches, drawn_BW, last_BE))
        return stepper.end(params, caches, here, last_BE), drawn_BW

    return window
