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
from pixtok.model.model import UnifiedModel
from pixtok.words import Special, Vocabulary

LIKELIEST = Draw(temperature=0)
_BATCH = 64


class Reader:
    """Weights that read.  Windows are encoded once; the trunk sees the whole row again for each word."""

    def __init__(self, model: Model, params: Any, vocabulary: Vocabulary, limit: int = 64) -> None:
        """`limit`: words of the longest text, in tokens; longer ones are cut."""
        self._model, self._params, self._vocabulary, self._limit = model, params, vocabulary, limit
        net, words = UnifiedModel(model), vocabulary.size
        is_text_U = np.arange(words) > max(Special)
        is_text_U[Special.EOS] = True  # what may follow is a word, or the end

        def encode(params: Any, rows: Rows) -> jax.Array:
            return net.apply({"params": params}, rows, method="encode")[1]  # pyright: ignore[reportReturnType]

        def word(params: Any, rows: Rows, summary_BME: jax.Array, slot_B: jax.Array, knobs: Knobs, key: jax.Array):
            logits_BU = net.apply({"params": params}, rows, summary_BME, slot_B, method="slot_logits")
            # A model may have more words than its vocabulary.
            logits_BU = jnp.where(is_text_U[None], logits_BU[:, :words], -jnp.inf)
            drawn_B = draw(key, logits_BU, knobs)
            put = jax.vmap(lambda word_S, slot, drawn: word_S.at[slot + 1].set(drawn))
            return rows._replace(word_BS=put(rows.word_BS, slot_B, drawn_B)), drawn_B

        self._encode, self._word = jax.jit(encode), jax.jit(word)

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
            found = self._batch([images[number] for number in full], how, now)
            for number, text in zip(numbers, found, strict=False):
                texts[number] = text
            if progress is not None:
                progress(len(numbers))
        return texts

    def _batch(self, images: Sequence[Image], how: Draw, key: jax.Array) -> list[str]:
        """Of images of one size."""
        rows, first = self._rows(images)
        summary_BME = self._encode(self._params, rows)
        knobs = Knobs(*map(jnp.float32, (how.temperature, how.top_k, how.top_p)))
        words, ended_B = [], np.zeros(len(images), bool)
        for slot in range(first, first + self._limit):
            slot_B = jnp.full(len(images), slot)
            now = jax.random.fold_in(key, slot)
            rows, drawn_B = self._word(self._params, rows, summary_BME, slot_B, knobs, now)
            words.append(np.asarray(drawn_B))
            ended_B |= words[-1] == Special.EOS
            if ended_B.all():
                break
        ids_BT = np.stack(words, axis=1).tolist()
        return [self._vocabulary.decode(ids[: (*ids, Special.EOS).index(Special.EOS)]) for ids in ids_BT]

    def _rows(self, images: Sequence[Image]) -> tuple[Rows, int]:
        """→ (rows `<s> <|image|> … <|/image|>` with room for words; the slot of the last of these)."""
        model, made = self._model, []
        for image in images:
            slots = document.tokenize(
                Document("", (image,)),
                self._vocabulary,
                vocab_size=model.vocab_size,
                fold_factor=model.fold_factor,
                side=model.window,
            )
            first = len(slots.word_S) - 2  # the last is </s>
            row = document.empty_row(first + 1 + self._limit, len(slots.window_slot_M), model.window)
            made.append(document.pack([slots], row))
            made[-1].position_BS[:] = np.arange(len(row.position_BS))  # of slots to come as well
            made[-1].segment_BS[:] = 1
        return jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *made), first


def _batches(sizes_N2: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Numbers of images that are sorted by size, at most so many of one size together."""
    starts = np.flatnonzero(np.any(np.diff(sizes_N2, axis=0, prepend=-1), axis=1))
    for same in np.split(np.arange(len(sizes_N2)), starts[1:]):
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]
