"""Which row of which data set each row of a mixed stream is: index arithmetic alone."""

import bisect
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from pixtok.config import check_weights

Stage = tuple[int, tuple[float, ...]]
"""(The first step of a stage, the weights of the K sources from there on)."""
Stages = Sequence[tuple[int, Sequence[float]]]
"""Stages, also as JSON has them."""

_LONGEST = 2**18
_TOLERANCE = 1e-6


def _counts(weights: Sequence[float]) -> list[int]:
    """Rows of each source in a period: the shortest that keeps all shares to a millionth, up to 2¹⁸ rows long.

    Where none does, the best.  Every source has at least one row in a period.
    """
    share_K = np.maximum(np.array(weights, np.float64) / max(weights), 2.0**-30)
    share_K /= math.fsum(share_K)
    length_Q = np.arange(len(weights), _LONGEST + 1)
    count_QK = np.maximum(np.rint(length_Q[:, None] * share_K), 1).astype(np.int64)
    large = int(share_K.argmax())
    count_QK[:, large] += length_Q - count_QK.sum(1)
    error_Q = np.abs(count_QK / (length_Q[:, None] * share_K) - 1).max(1)
    error_Q[count_QK[:, large] < 1] = np.inf
    close = error_Q <= _TOLERANCE
    return count_QK[(close if close.any() else -error_Q).argmax()].tolist()


def _deal(counts: Sequence[int]) -> Int32[np.ndarray, " Q"]:
    """The sources of a period's rows; every prefix holds less than a row more or less than the share of each source.

    The quota method (Balinski and Young 1975): of all sources that would not get more than their share, rounded up,
    the one with the largest share a row goes next.
    """
    period, used_K = sum(counts), [0] * len(counts)
    source_Q = np.empty(period, np.int32)
    for row in range(period):
        best, due = 0, math.inf
        for source, count in enumerate(counts):
            used = used_K[source]
            if used * period < (row + 1) * count and (used + 1) / count < due:
                best, due = source, (used + 1) / count
        source_Q[row] = best
        used_K[best] += 1
    return source_Q


class _Deal:
    """A mixture of constant weights: a period of Q rows, over and over."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = _counts(weights)
        self._source_Q = _deal(self.counts)
        self._rank_Q = np.empty_like(self._source_Q)
        """How many of the rows before a row are of its source."""
        for source, count in enumerate(self.counts):
            self._rank_Q[self._source_Q == source] = np.arange(count)

    def locate(self, row: int) -> tuple[int, int]:
        turn, place = divmod(row, len(self._source_Q))
        source = int(self._source_Q[place])
        return source, turn * self.counts[source] + int(self._rank_Q[place])

    def used(self, rows: int) -> list[int]:
        turn, place = divmod(rows, len(self._source_Q))
        more = np.bincount(self._source_Q[:place], minlength=len(self.counts)).tolist()
        return [turn * count + extra for count, extra in zip(self.counts, more, strict=True)]


class Mixture:
    """An endless stream of rows from K sources, in stages of constant weights.

    Within a stage the rows of a source, at any moment, are its share to within one row.  Where a stage ends, each
    source goes on with its next row.
    """

    def __init__(self, stages: Stages, sources: int, batch_size: int) -> None:
        """Raises InputError when the weights are not one positive, finite number for each source."""
        self.stages: list[Stage] = [(first, tuple(weights)) for first, weights in stages]
        firsts = [first for first, _ in self.stages]
        if firsts[:1] != [0] or any(a >= b for a, b in itertools.pairwise(firsts)):
            raise ValueError(f"stages must begin at step 0 and then at later and later steps, not at {firsts}")
        for _, weights in self.stages:
            check_weights(weights, sources)
        self._first_row = [first * batch_size for first in firsts]
        self._deals = [_Deal(weights) for _, weights in self.stages]
        self._used = [[0] * sources]
        """Rows of each source before each stage."""
        for deal, begin, end in zip(self._deals, self._first_row, self._first_row[1:], strict=False):
            self._used.append([a + b for a, b in zip(self._used[-1], deal.used(end - begin), strict=True)])

    def locate(self, row: int) -> tuple[int, int]:
        """Row of the stream → (its source, its number in the endless stream of that source)."""
        stage = bisect.bisect_right(self._first_row, row) - 1
        source, number = self._deals[stage].locate(row - self._first_row[stage])
        return source, self._used[stage][source] + number


def resumed(stages: Stages, step: int, weights: Sequence[float]) -> list[Stage]:
    """The stages of a run that goes on from `step` with these weights: what was before `step` stays as it was."""
    kept: list[Stage] = [(first, tuple(old)) for first, old in stages if first < step]
    return kept if kept and kept[-1][1] == tuple(weights) else [*kept, (step, tuple(weights))]


def interleave(rows: Sequence[int]) -> Int32[np.ndarray, "R 2"]:
    """(Source, row) of all rows of several sources once, such that the first ones are a fair sample of all."""
    source_R = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
    row_R = np.concatenate([np.arange(count, dtype=np.int32) for count in rows])
    place_R = (row_R + 0.5) / np.repeat(rows, rows)
    return np.stack([source_R, row_R], 1)[np.argsort(place_R, kind="stable")]
