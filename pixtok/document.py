"""Documents: text and images in any order and number, as slots of the unified sequence.

One document becomes `<s> text <|image|> w_1 … w_M <|/image|> text </s>`: a slot for each word and for each
window of pixels.  Its label identities: the target of slot s is what slot s + 1 holds, a word id for a word
and V + the folded id of its first pixel for a window; the last slot has none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from pixtok import fold, windows
from pixtok.axes import Image
from pixtok.words import Special, Vocabulary

NO_TARGET = -1
_TAG = re.compile(r"<\|image\|>(.*?)<\|/image\|>", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """Text and images in order; an image is its encoded file (bytes) or its pixels."""

    id: str
    parts: tuple[str | bytes | Image, ...]


def parse(text: str) -> Iterator[tuple[bool, str]]:
    """Mixed text `… <|image|>path<|/image|> …` → (is an image, its path or the text), empty text left out."""
    for index, part in enumerate(_TAG.split(text)):
        is_image = index % 2 == 1
        if is_image or part:
            yield is_image, part.strip() if is_image else part


class Slots(NamedTuple):
    """The S slots and M windows of one document, or of a piece of one."""

    word_S: Int32[np.ndarray, " S"]
    """Word ids; `<pad>` where a slot holds a window."""
    target_S: Int32[np.ndarray, " S"]
    """0 … V − 1 for a word, V … for a window, −1 for none."""
    window_slot_M: Int32[np.ndarray, " M"]
    """The slot of each window."""
    pixel_MW: Int32[np.ndarray, "M W"]
    """Packed 8-bit colours, valid pixels first, then padding (see `fold`)."""
    shape_M2: Int32[np.ndarray, "M 2"]
    place_M4: Int32[np.ndarray, "M 4"]

    def piece(self, start: int, stop: int) -> "Slots":
        """Slots `start` … `stop` − 1 with their windows.  Targets stay, so that none is lost between pieces."""
        first, last = np.searchsorted(self.window_slot_M, (start, stop))
        arrays = [array[start:stop] for array in self[:2]] + [array[first:last] for array in self[2:]]
        cut = Slots._make(arrays)
        return cut._replace(window_slot_M=cut.window_slot_M - np.int32(start))


def tokenize(document: Document, vocabulary: Vocabulary, *, vocab_size: int, fold_factor: int, side: int) -> Slots:
    """Document (images decoded to pixels) → its slots.

    `vocab_size` is V of the model: at least the vocabulary's, and where windows begin.
    """
    words, content = [int(Special.BOS)], [int(Special.BOS)]
    window_slot, pixels, places = [], [], []
    for part in document.parts:
        if isinstance(part, str):
            ids = vocabulary.encode(part)
            words += ids
            content += ids
            continue
        assert isinstance(part, np.ndarray), "tokenize takes decoded images"
        pixel_MW = windows.split(fold.pack(part), side, fill=fold.PADDING)
        count = len(pixel_MW)
        first_M = fold.ids(pixel_MW[:, 0], fold_factor)
        window_slot += range(len(words) + 1, len(words) + 1 + count)
        pixels.append(pixel_MW)
        places.append(windows.geometry(part.shape[0], part.shape[1], side))
        words += [Special.IMAGE, *[Special.PAD] * count, Special.END_IMAGE]
        content += [Special.IMAGE, *(vocab_size + first_M), Special.END_IMAGE]
    words.append(Special.EOS)
    content.append(Special.EOS)

    def joined(arrays: list[np.ndarray], *tail: int) -> np.ndarray:
        return np.concatenate([np.zeros((0, *tail), np.int32), *arrays])

    return Slots(
        np.array(words, np.int32),
        np.array([*content[1:], NO_TARGET], np.int32),
        np.array(window_slot, np.int32),
        joined(pixels, side * side),
        joined([place.shape_M2 for place in places], 2),
        joined([place.place_M4 for place in places], 4),
    )


class Rows(NamedTuple):
    """A batch: B rows of S slots and M windows, documents packed side by side.  Also used without the B.

    Arrays of numpy in the loader, of jax on devices.
    """

    word_BS: Int32[Any, "*B S"]
    target_BS: Int32[Any, "*B S"]
    position_BS: Int32[Any, "*B S"]
    """Index of a slot in its document, or in its piece of one."""
    segment_BS: Int32[Any, "*B S"]
    """1, 2, … for the documents of a row; 0 is padding."""
    window_slot_BM: Int32[Any, "*B M"]
    """The slot of a window; S where there is none."""
    pixel_BMW: Int32[Any, "*B M W"]
    """Packed 8-bit colours."""
    shape_BM2: Int32[Any, "*B M 2"]
    """Rows and columns of pixels in a window; 0, 0 where there is none."""
    place_BM4: Int32[Any, "*B M 4"]


def empty_row(slots: int, window_count: int, side: int) -> Rows:
    """A row that holds nothing."""
    return Rows(
        np.full(slots, Special.PAD, np.int32),
        np.full(slots, NO_TARGET, np.int32),
        np.zeros(slots, np.int32),
        np.zeros(slots, np.int32),
        np.full(window_count, slots, np.int32),
        np.full((window_count, side * side), fold.PADDING, np.int32),
        np.zeros((window_count, 2), np.int32),
        np.zeros((window_count, 4), np.int32),
    )


def pack(pieces: Sequence[Slots], row: Rows) -> Rows:
    """Write pieces of documents, in order, into an empty row.  Raises ValueError when they do not fit."""
    slot = window = 0
    for segment, piece in enumerate(pieces, start=1):
        slots = slice(slot, slot + len(piece.word_S))
        wins = slice(window, window + len(piece.window_slot_M))
        if slots.stop > len(row.word_BS) or wins.stop > len(row.window_slot_BM):
            raise ValueError(
                f"{slots.stop} slots and {wins.stop} windows do not fit in a row of "
                f"{len(row.word_BS)} slots and {len(row.window_slot_BM)} windows"
            )
        row.word_BS[slots] = piece.word_S
        row.target_BS[slots] = piece.target_S
        row.position_BS[slots] = np.arange(len(piece.word_S))
        row.segment_BS[slots] = segment
        row.window_slot_BM[wins] = piece.window_slot_M + slot
        row.pixel_BMW[wins] = piece.pixel_MW
        row.shape_BM2[wins] = piece.shape_M2
        row.place_BM4[wins] = piece.place_M4
        slot, window = slots.stop, wins.stop
    return row
