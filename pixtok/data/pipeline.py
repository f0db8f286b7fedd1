"""The loader: batches of rows, each a function of the global step alone."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32

from pixtok import document, words
from pixtok.config import Data, Model, check_weights
from pixtok.data import images, packing
from pixtok.data.index import SPLITS, Dataset
from pixtok.data.mixture import Mixture, Stage, Stages, interleave
from pixtok.document import Document, Rows
from pixtok.errors import InputError

_ENDLESS = 2**48
"""Steps; more overflow somewhere in Grain."""


class Bad(NamedTuple):
    """A document that could not be decoded, left out of its row."""

    document: int
    """Its number in all data sets, one after the other."""
    id: str
    reason: str
    data: str
    """Path of its data set."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows, which documents are in them, and which are missing from them.  A batch, or some rows of one."""

    rows: Rows
    documents: list[list[int]]
    """For each row, the numbers of segment 1, 2, … in all data sets, one after the other."""
    bad: list[Bad]


class _Source:
    """The rows of one split of one data set.  Picklable, for loader processes."""

    def __init__(self, dataset: Dataset, first: int, split: str, data: Data, model: Model, seed: int) -> None:
        """`first`: the number of the first of its documents in all data sets.  Raises InputError."""
        self.dataset, self._first, self._data, self._model = dataset, first, data, model
        self._vocabulary: words.Vocabulary | None = None
        size = data.slots, data.windows
        try:
            pieces = packing.cut(dataset.index, SPLITS.index(split), *size, model.window, data.image_size)
        except InputError as error:
            raise InputError(f"{dataset.path}: {error}") from None
        self.plan = packing.plan(pieces, *size, seed)
        self.row_count = len(self.plan.start_R) - 1
        self._order = grain.MapDataset.range(self.row_count).seed(seed).shuffle()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_vocabulary": None}

    def shuffled(self, number: int) -> int:
        """The row that comes at a place of the endless stream: all rows, in another order in each epoch."""
        return cast(int, self._order[number])

    def pieces_of(self, row: int) -> np.ndarray:
        """Numbers of the pieces in a row of the plan."""
        return self.plan.piece_P[self.plan.start_R[row] : self.plan.start_R[row + 1]]

    def read(self, row: int) -> Batch:
        """A row of the plan and its bad documents."""
        if self._vocabulary is None:
            self._vocabulary = self.dataset.vocabulary()
        model, data, plan = self._model, self._data, self.plan
        picked = self.pieces_of(row)
        positions = plan.pieces.document_P[picked].tolist()
        pieces, held, bad = [], [], []
        for piece, position, encoded in zip(picked, positions, self.dataset.read(positions), strict=True):
            try:
                parts = tuple(
                    images.decode(part, data.image_size)[0] if isinstance(part, bytes) else part
                    for part in encoded.parts
                )
            except images.ImageError as error:
                bad.append(Bad(self._first + position, encoded.id, str(error), str(self.dataset.path)))
                continue
            slots = document.tokenize(
                Document(encoded.id, parts),
                self._vocabulary,
                vocab_size=model.vocab_size,
                fold_factor=model.fold_factor,
                side=model.window,
            )
            pieces.append(slots.piece(int(plan.pieces.start_P[piece]), int(plan.pieces.stop_P[piece])))
            held.append(self._first + position)
        return Batch(document.pack(pieces, self.empty().rows), [held], bad)

    def empty(self) -> Batch:
        """A row that holds nothing."""
        return Batch(document.empty_row(self._data.slots, self._data.windows, self._model.window), [[]], [])


def _stack(batches: Sequence[Batch]) -> Batch:
    columns = zip(*(batch.rows for batch in batches), strict=True)
    rows = Rows(*(np.stack(column) for column in columns))
    documents, bad = ([item for batch in batches for item in getattr(batch, name)] for name in ("documents", "bad"))
    return Batch(rows, documents, bad)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """Row of the endless stream → its content."""

    sources: list[_Source]
    mixture: Mixture

    def find(self, row: int) -> tuple[_Source, int]:
        """→ (source, row of its plan)."""
        number, place = self.mixture.locate(row)
        return self.sources[number], self.sources[number].shuffled(place)

    def __call__(self, row: int) -> Batch:
        source, planned = self.find(row)
        return source.read(planned)


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """Row of the one epoch → its content; an empty row past its end."""

    sources: list[_Source]
    row_R2: Int32[np.ndarray, "R 2"]

    def __call__(self, row: int) -> Batch:
        if row >= len(self.row_R2):
            return self.sources[0].empty()
        source, planned = self.row_R2[row].tolist()
        return self.sources[source].read(planned)


def _part(read: _Stream | _Epoch, batch_size: int, positions: Sequence[int], step: int) -> Batch:
    return _stack([read(step * batch_size + position) for position in positions])


class Loader:
    """Batches of one split of a data set, or of a mixture of several.

    Row r of the global batch of step k is row k·B + r of an endless stream: the rows of the plan, shuffled anew in
    each epoch; of a mixture, those of all data sets, each with its own epochs, dealt out by `Mixture`.  So the batch
    is the same for any number of processes, each of which asks for the rows (`positions`, ascending numbers from 0
    to B − 1; None: all) that it needs, and resuming takes the step and the stages of the mixture alone.
    """

    def __init__(
        self, data: Data, model: Model, *, split: str, batch_size: int, seed: int, stages: Stages | None = None
    ) -> None:
        """`stages` of the mixture; None: the weights of `data` from step 0 on.

        Raises InputError when a data set is missing, has no such split, or was built with other settings.  Only
        `train` must be a split of all data sets.
        """
        if split not in SPLITS:
            raise InputError(f"the split must be one of {', '.join(SPLITS)}; got {split}")
        self.datasets = [Dataset(path) for path in data.paths]
        self._data, self._batch_size = data, batch_size
        if data.weights:
            check_weights(data.weights, len(self.datasets))
        for dataset in self.datasets:
            _check(dataset, self.datasets[0], data, model)
        firsts = np.cumsum([0, *map(len, self.datasets)]).tolist()
        # Those without documents of this split have no rows to give; if all are, the first one says so.
        held = [n for n, item in enumerate(self.datasets) if split == "train" or item.manifest.documents[split]] or [0]
        self.sources = [_Source(self.datasets[n], firsts[n], split, data, model, _seed_of(seed, n)) for n in held]
        rows = [source.row_count for source in self.sources]
        pieces = [source.plan.pieces for source in self.sources]
        self.documents = sum(len(np.unique(some.document_P)) for some in pieces)
        self.row_count = sum(rows)
        slots = sum(int((some.stop_P - some.start_P).sum()) for some in pieces)
        self.slot_share = slots / (self.row_count * data.slots)
        """Share of all slots that hold something."""
        windows = sum(int(some.windows_P.sum()) for some in pieces)
        self.window_share = windows / (self.row_count * data.windows)
        """Share of all window slots that hold one: a step computes the others too, which nobody needs."""
        weights = [data.weights[n] for n in held] if data.weights else rows
        self.follow([(0, weights)] if stages is None else stages)

    def follow(self, stages: Stages) -> None:
        """Mix in other stages (see `mixture.resumed`) than until now.  Raises InputError."""
        self._stream = _Stream(self.sources, Mixture(stages, len(self.sources), self._batch_size))

    @property
    def stages(self) -> list[Stage]:
        """The stages of the mixture: all that a checkpoint has to keep of the data but the step."""
        return self._stream.mixture.stages

    def _read(self, read: _Stream | _Epoch, positions: Sequence[int] | None) -> functools.partial[Batch]:
        size = self._batch_size
        asked = list(range(size) if positions is None else map(int, positions))
        if not asked or asked != sorted(set(asked)) or asked[0] < 0 or asked[-1] >= size:
            raise ValueError(f"positions must be ascending numbers from 0 to {size - 1}; got {asked}")
        return functools.partial(_part, read, size, asked)

    def batch(self, step: int, positions: Sequence[int] | None = None) -> Batch:
        """The batch of one step."""
        return self._read(self._stream, positions)(step)

    def stream(
        self, start: int, positions: Sequence[int] | None = None
    ) -> contextlib.closing[grain.DatasetIterator[Batch]]:
        """Batches `start`, `start` + 1, … without end, read ahead of need.

        A context manager, like `epoch`: `with loader.stream(0) as batches: rows = next(batches).rows`.
        """
        return self._read_ahead(range(start, _ENDLESS), self._read(self._stream, positions))

    def epoch(
        self, batches: int | None = None, positions: Sequence[int] | None = None
    ) -> contextlib.closing[grain.DatasetIterator[Batch]]:
        """Every row once, in the order of the plan, or the first `batches`; empty rows fill the last batch.

        Rows of a mixture come evenly spread, so that the first batches are a fair sample; weights do not matter.
        """
        count = -(-self.row_count // self._batch_size)
        read = _Epoch(self.sources, interleave([source.row_count for source in self.sources]))
        return self._read_ahead(range(min(count, batches or count)), self._read(read, positions))

    def _read_ahead(
        self, steps: range, read: functools.partial[Batch]
    ) -> contextlib.closing[grain.DatasetIterator[Batch]]:
        options = grain.ReadOptions(num_threads=self._data.threads, prefetch_buffer_size=self._data.threads)
        dataset = grain.MapDataset.range(steps.start, steps.stop).map(read).to_iter_dataset(options)
        if self._data.workers:
            flags.FLAGS.mark_as_parsed()  # Grain's loader processes read absl flags, which pixtok does not parse
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._data.workers))
        return contextlib.closing(iter(dataset))

    def document_ids(self, step: int) -> list[str]:
        """Names of the documents in the batch of a step, of a mixture after the paths of their data sets."""
        found = [self._stream.find(row) for row in range(step * self._batch_size, (step + 1) * self._batch_size)]
        names = []
        for source in self.sources:
            picked = [source.pieces_of(row) for owner, row in found if owner is source]
            if picked:
                positions = np.unique(source.plan.pieces.document_P[np.concatenate(picked)])
                prefix = f"{source.dataset.path}/" if len(self.sources) > 1 else ""
                names += [prefix + item.id for item in source.dataset.read(positions.tolist())]
        return names


def _seed_of(seed: int, number: int) -> int:
    """Of the order of a data set: two of one size are not shuffled alike."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if number else seed


def _check(dataset: Dataset, first: Dataset, data: Data, model: Model) -> None:
    built, size = dataset.manifest, dataset.vocabulary().size
    if data.image_size is not None and built.image_size is not None and data.image_size > built.image_size:
        raise InputError(
            f"{dataset.path} was built with --image_size {built.image_size}, which is less than data.image_size = "
            f"{data.image_size}: lower the latter, or build the data set again"
        )
    if size > model.vocab_size:
        raise InputError(
            f"{dataset.path} was built with a vocabulary of {size} ids ({built.vocabulary}), which is more than "
            f"model.vocab_size = {model.vocab_size}: raise the latter, or build the data set again with another "
            "--vocabulary (`none` leaves the text out)"
        )
    if built.fingerprint != first.manifest.fingerprint:
        raise InputError(
            f"{dataset.path} was built with another vocabulary than {first.path}: build one of them again with the "
            "--vocabulary of the other to mix them"
        )
