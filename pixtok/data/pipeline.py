"""The loader: batches of rows, each a function of the global step alone."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, cast

import grain
import numpy as np
from absl import flags

from pixtok import document, words
from pixtok.config import Data, Model
from pixtok.data import images, packing
from pixtok.data.index import SPLITS, Dataset
from pixtok.document import Document, Rows
from pixtok.errors import InputError


class Bad(NamedTuple):
    """A document that could not be decoded, left out of its row."""

    document: int
    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows, which documents are in them, and which are missing from them."""

    rows: Rows
    documents: list[list[int]]
    """For each row, the position in the data set of segment 1, 2, …"""
    bad: list[Bad]


class _ReadRow:
    """Row number → the row and its bad documents; an empty row past the last.  Picklable, for loader processes."""

    def __init__(self, dataset: Dataset, plan: packing.Plan, data: Data, model: Model) -> None:
        self._dataset, self._plan, self._data, self._model = dataset, plan, data, model
        self._vocabulary: words.Vocabulary | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_vocabulary": None}

    def __call__(self, row: int) -> Batch:
        if self._vocabulary is None:
            self._vocabulary = self._dataset.vocabulary()
        model, data, plan = self._model, self._data, self._plan
        empty = document.empty_row(data.slots, data.windows, model.window)
        if row >= len(plan.start_R) - 1:
            return Batch(empty, [[]], [])
        picked = plan.piece_P[plan.start_R[row] : plan.start_R[row + 1]]
        positions = plan.pieces.document_P[picked].tolist()
        pieces, held, bad = [], [], []
        for piece, position, encoded in zip(picked, positions, self._dataset.read(positions), strict=True):
            try:
                parts = tuple(
                    images.decode(part, data.image_size)[0] if isinstance(part, bytes) else part
                    for part in encoded.parts
                )
            except images.ImageError as error:
                bad.append(Bad(position, encoded.id, str(error)))
                continue
            slots = document.tokenize(
                Document(encoded.id, parts),
                self._vocabulary,
                vocab_size=model.vocab_size,
                fold_factor=model.fold_factor,
                side=model.window,
            )
            pieces.append(slots.piece(int(plan.pieces.start_P[piece]), int(plan.pieces.stop_P[piece])))
            held.append(position)
        return Batch(document.pack(pieces, empty), [held], bad)


def _stack(batches: Sequence[Batch]) -> Batch:
    columns = zip(*(batch.rows for batch in batches), strict=True)
    rows = Rows(*(np.stack(column) for column in columns))
    documents, bad = ([item for batch in batches for item in getattr(batch, name)] for name in ("documents", "bad"))
    return Batch(rows, documents, bad)


class Loader:
    """Batches of one split of a data set.

    The global batch of step k is rows k·B … (k + 1)·B − 1 of an endless stream: the plan's rows, shuffled anew
    in each epoch.  Shard p of n holds every n-th row of it from the p-th on, so the batch is the same set for
    any n, and resuming takes the step alone.
    """

    def __init__(self, data: Data, model: Model, *, split: str, batch_size: int, seed: int) -> None:
        """Raises InputError when the data set is missing, has no such split, or was built with other settings."""
        if split not in SPLITS:
            raise InputError(f"the split must be one of {', '.join(SPLITS)}; got {split}")
        self.dataset = Dataset(data.path)
        self._data, self._batch_size = data, batch_size
        _check(self.dataset, data, model)
        pieces = packing.cut(
            self.dataset.index, SPLITS.index(split), data.slots, data.windows, model.window, data.image_size
        )
        self.plan = packing.plan(pieces, data.slots, data.windows, seed)
        self.documents = len(np.unique(pieces.document_P))
        self.row_count = len(self.plan.start_R) - 1
        self.slot_share = float((pieces.stop_P - pieces.start_P).sum()) / (self.row_count * data.slots)
        """Share of all slots that hold something."""
        self._read = _ReadRow(self.dataset, self.plan, data, model)
        # As good as endless; Grain's own endless repeat overflows when batches of one row are sliced.
        epochs = 2**48 // self.row_count
        self._order = grain.MapDataset.range(self.row_count).seed(seed).shuffle().repeat(epochs)

    def _batches(self, shard: int, shards: int) -> grain.MapDataset[Batch]:
        if self._batch_size % shards:
            raise ValueError(f"{shards} shards do not divide a batch of {self._batch_size} rows")
        mine = self._order[shard::shards].map(self._read)
        return mine.batch(self._batch_size // shards, batch_fn=_stack)

    def batch(self, step: int, *, shard: int = 0, shards: int = 1) -> Batch:
        """The batch of one step."""
        return cast(Batch, self._batches(shard, shards)[step])

    def stream(
        self, start: int, *, shard: int = 0, shards: int = 1
    ) -> contextlib.closing[grain.DatasetIterator[Batch]]:
        """Batches `start`, `start` + 1, … without end, read ahead of need.

        A context manager, like `epoch`: `with loader.stream(0) as batches: rows = next(batches).rows`.
        """
        return self._read_ahead(self._batches(shard, shards)[start:])

    def epoch(self, batches: int | None = None) -> contextlib.closing[grain.DatasetIterator[Batch]]:
        """Every row once, in the order of the plan, or the first `batches`; empty rows fill the last batch."""
        count = -(-self.row_count // self._batch_size)
        rows = grain.MapDataset.range(min(count, batches or count) * self._batch_size)
        return self._read_ahead(rows.map(self._read).batch(self._batch_size, batch_fn=_stack))

    def _read_ahead(self, batches: grain.MapDataset[Batch]) -> contextlib.closing[grain.DatasetIterator[Batch]]:
        options = grain.ReadOptions(num_threads=self._data.threads, prefetch_buffer_size=self._data.threads)
        dataset = batches.to_iter_dataset(options)
        if self._data.workers:
            flags.FLAGS.mark_as_parsed()  # Grain's loader processes read absl flags, which pixtok does not parse
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._data.workers))
        return contextlib.closing(iter(dataset))

    def document_ids(self, step: int) -> list[str]:
        """Names of the documents in the batch of a step."""
        rows = (cast(int, self._order[i]) for i in range(step * self._batch_size, (step + 1) * self._batch_size))
        start_R, piece_P = self.plan.start_R, self.plan.piece_P
        picked = np.concatenate([piece_P[start_R[row] : start_R[row + 1]] for row in rows])
        positions = np.unique(self.plan.pieces.document_P[picked])
        return [item.id for item in self.dataset.read(positions.tolist())]


def _check(dataset: Dataset, data: Data, model: Model) -> None:
    built, size = dataset.manifest, dataset.vocabulary().size
    if data.image_size is not None and built.image_size is not None and data.image_size > built.image_size:
        raise InputError(
            f"{data.path} was built with --image_size {built.image_size}, which is less than data.image_size = "
            f"{data.image_size}: lower the latter, or build the data set again"
        )
    if size > model.vocab_size:
        raise InputError(
            f"{data.path} was built with a vocabulary of {size} ids ({built.vocabulary}), which is more than "
            f"model.vocab_size = {model.vocab_size}: raise the latter, or build the data set again with another "
            "--vocabulary (`none` leaves the text out)"
        )
