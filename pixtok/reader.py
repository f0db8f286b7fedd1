"""The text that a model reads in images: any model, also one that predicts no pixels."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from pixtok import document
from pixtok.axes import Image
from pixtok.config import Model
from pixtok.document import Document, Rows
from pixtok.draw import Draw
from pixtok.generate import Knobs, Progress, draw
from pixtok.model.attention import Cache
from pixtok.model.model import UnifiedModel
from pixtok.stepper import empty
from pixtok.words import Special, Vocabulary

LIKELIEST = Draw(temperature=0)
_BATCH = 64


class Reader:
    """Weights that read, in float32."""

    def __init__(self, model: Model, params: Any, vocabulary: Vocabulary, limit: int = 64) -> None:
        """`limit`: words of the longest text, in tokens; longer ones are cut."""
        self._model, self._params, self._vocabulary, self._limit = model, params, vocabulary, limit
        net, words = UnifiedModel(model), vocabulary.size
        is_text_U = np.arange(words) > max(Special)
        is_text_U[Special.EOS] = True  # what may follow is a word, or the end

        def next_word(net: Any, y_BTE: jax.Array, knobs: Knobs, key: jax.Array) -> jax.Array:
            # A model may have more words than its vocabulary.
            return draw(key, jnp.where(is_text_U[None], net.head(y_BTE[:, -1])[:, :words], -jnp.inf), knobs)

        def begin(params: Any, rows: Rows, knobs: Knobs, key: jax.Array) -> tuple[jax.Array, Cache]:
            bound: Any = net.bind({"params": params})
            summary_BME = bound.encoder.summaries(rows.pixel_BMW, rows.shape_BM2, rows.place_BM4)
            x_BSE = bound.trunk.slots(rows, summary_BME)
            cache = empty(model.trunk, x_BSE.shape[0], x_BSE.shape[1] + limit)
            y_BSE, cache = bound.trunk.step(x_BSE, cache, jnp.int32(0))
            return next_word(bound, y_BSE, knobs, key), cache

        def go_on(params: Any, word_B: jax.Array, cache: Cache, slot: jax.Array, knobs: Knobs, key: jax.Array):
            bound: Any = net.bind({"params": params})
            y_B1E, cache = bound.trunk.step(bound.trunk.embed(word_B[:, None]), cache, slot)
            return next_word(bound, y_B1E, knobs, key), cache

        self._begin, self._go_on = jax.jit(begin), jax.jit(go_on, donate_argnums=2)

    def read(
        self,
        images: Sequence[Image],
        *,
        batch_size: int = _BATCH,
        how: Draw = LIKELIEST,
        progress: Progress | None = None,
    ) -> list[str]:
        """What each image (Y, X, 3) says: the text after it, up to the end of the document.

        `progress` hears of images done.  Images of one size go through one program.
        """
        sizes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
        order = np.lexsort(sizes.T)
        texts = [""] * len(images)
        key = jax.random.key(how.seed)
        for chosen in _batches(sizes[order], batch_size):
            numbers = order[chosen]
            key, now = jax.random.split(key)
            # The last rows come again, for one program for all batches.
            full = np.resize(numbers, batch_size) if len(images) > batch_size else numbers
            found = self._batch([images[number] for number in full.tolist()], how, now)
            for number, text in zip(numbers.tolist(), found, strict=False):
                texts[number] = text
            if progress is not None:
                progress(len(numbers))
        return texts

    def _batch(self, images: Sequence[Image], how: Draw, key: jax.Array) -> list[str]:
        """Of images of one size."""
        rows, knobs = self._rows(images), Knobs(*map(jnp.float32, (how.temperature, how.top_k, how.top_p)))
        word_B, cache = self._begin(self._params, rows, knobs, key)
        words, first = [np.asarray(word_B)], rows.word_BS.shape[1]
        ended_B = words[0] == Special.EOS
        for slot in range(first, first + self._limit - 1):
            if ended_B.all():
                break
            now = jax.random.fold_in(key, slot)
            word_B, cache = self._go_on(self._params, word_B, cache, jnp.int32(slot), knobs, now)
            words.append(np.asarray(word_B))
            ended_B |= words[-1] == Special.EOS
        ids_BT = np.stack(words, axis=1).tolist()
        return [self._vocabulary.decode(ids[: (*ids, Special.EOS).index(Special.EOS)]) for ids in ids_BT]

    def _rows(self, images: Sequence[Image]) -> Rows:
        """Rows `<s> <|image|> … <|/image|>`, after which come words."""
        model, made = self._model, []
        for image in images:
            slots = document.tokenize(
                Document("", (image,)),
                self._vocabulary,
                vocab_size=model.vocab_size,
                fold_factor=model.fold_factor,
                side=model.window,
            )
            slots = slots.piece(0, len(slots.word_S) - 1)  # without </s>
            row = document.empty_row(len(slots.word_S), len(slots.window_slot_M), model.window)
            made.append(document.pack([slots], row))
        return jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *made)


def _batches(sizes_N2: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Numbers of images that are sorted by size, at most so many of one size together."""
    starts = np.flatnonzero(np.any(np.diff(sizes_N2, axis=0, prepend=-1), axis=1))
    for same in np.split(np.arange(len(sizes_N2)), starts[1:]):
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]
