"""Which documents share a row: planned ahead from the index alone."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from pixtok import windows
from pixtok.data.images import fit
from pixtok.data.index import SPLITS, Index
from pixtok.errors import InputError

_CHUNK = 4096
VERSION = 2
"""Of how rows are made: a run goes on with the rows that it began with, or not at all."""


class Pieces(NamedTuple):
    """Documents, or parts of documents that are longer than a row."""

    document_P: Int64[np.ndarray, " P"]
    start_P: Int64[np.ndarray, " P"]
    """First slot of the document that belongs to the piece."""
    stop_P: Int64[np.ndarray, " P"]
    windows_P: Int64[np.ndarray, " P"]


class Plan(NamedTuple):
    """R rows of pieces: row r holds piece_P[start_R[r] : start_R[r + 1]]."""

    pieces: Pieces
    piece_P: Int64[np.ndarray, " P"]
    start_R: Int64[np.ndarray, " R+1"]


def _windows_of(part_T2: np.ndarray, side: int, image_size: int | None) -> np.ndarray:
    """Number of windows of each part; 0 for text."""
    sizes, which_T = np.unique(part_T2, axis=0, return_inverse=True)
    counts = [math.prod(windows.grid(*fit(h, w, image_size), side)) if h else 0 for h, w in sizes.tolist()]
    return np.array(counts, np.int64)[which_T.ravel()]


def largest_image(index: Index, side: int, image_size: int | None) -> int:
    """Windows of the largest image of a data set."""
    return int(_windows_of(index.part_T2, side, image_size).max(initial=0))


def _cut(sizes: list[tuple[int, int]], slots: int, window_limit: int) -> list[tuple[int, int, int]]:
    """Cut one document of parts (slots, windows) into pieces (start, stop, windows): text anywhere, images never."""
    pieces, start, position, held = [], 0, 0, 0
    for length, count in sizes:
        while position + length - start > slots or held + count > window_limit:
            room = slots - (position - start) if not count else 0
            if position + room > start:
                pieces.append((start, position + room, held))
            position, length, held = position + room, length - room, 0
            start = position
        position, held = position + length, held + count
    return [*pieces, (start, position, held)]


def cut(index: Index, split: int, slots: int, window_limit: int, side: int, image_size: int | None) -> Pieces:
    """The pieces of all documents of a split.

    Raises InputError when the split is empty, or an image alone is larger than a row.
    """
    document_N = np.flatnonzero(index.split_N == split)
    if not len(document_N):
        raise InputError(
            f"the data set holds no {SPLITS[split]} documents: build it with a larger --validation or --test share, or "
            "from more documents"
        )
    windows_T = _windows_of(index.part_T2, side, image_size)
    slots_T = np.where(windows_T > 0, windows_T + 2, index.part_T2[:, 1])
    # Sums over the parts of each document, by differences of running sums.
    slot_sum, window_sum = (np.concatenate([[0], array.cumsum()]) for array in (slots_T, windows_T))
    first, last = index.start_N[document_N], index.start_N[document_N + 1]
    length_N = slot_sum[last] - slot_sum[first] + 2  # <s> and </s>
    count_N = window_sum[last] - window_sum[first]
    if (windows_T > window_limit).any() or (slots_T[windows_T > 0] > slots).any():
        largest = int(windows_T.max())
        raise InputError(
            f"an image of {largest} windows does not fit in a row of {window_limit} windows and {slots} slots: raise "
            f"data.windows to {max(window_limit, largest)} and data.slots to {max(slots, largest + 2)}, or lower "
            "data.image_size"
        )
    fits = (length_N <= slots) & (count_N <= window_limit)
    whole = np.stack([document_N, np.zeros_like(document_N), length_N, count_N], 1)[fits]
    parts = [
        (document, *piece)
        for document, start, stop in zip(document_N[~fits], first[~fits], last[~fits], strict=True)
        for piece in _cut(
            [(1, 0), *zip(slots_T[start:stop], windows_T[start:stop], strict=True), (1, 0)],
            slots,
            window_limit,
        )
    ]
    table = np.concatenate([whole, np.array(parts, np.int64).reshape(-1, 4)]).astype(np.int64)
    return Pieces(*table[np.argsort(table[:, 0], kind="stable")].T)


def _rows(need_P2: np.ndarray) -> list[list[int]]:
    """Which pieces share a row, of the shares of its slots and windows that each needs.

    Vector bin packing, one row at a time: the largest piece that is left begins it, then the one after which least is
    free joins it (the greedy of norms of Panigrahy et al., "Heuristics for Vector Bin Packing", 2011).  Where slots and
    windows are about equally scarce, free slots without windows help nobody, nor the other way round: what is free must
    be alike.
    """
    kind_K2, which_P = np.unique(need_P2, axis=0, return_inverse=True)
    # Largest first; many pieces are alike, so kinds are few.
    order_K = np.argsort(-kind_K2.max(1), kind="stable")
    kind_K2, which_P = kind_K2[order_K], np.argsort(order_K)[which_P.ravel()]
    ends_K = np.cumsum(np.bincount(which_P))
    waiting = [pieces.tolist() for pieces in np.split(np.argsort(which_P, kind="stable"), ends_K[:-1])]
    slots, windows = (float(share) for share in need_P2.sum(0) / need_P2.sum())
    ratio = min(slots, windows) / max(slots, windows)
    alike = 4 * ratio * ratio * ratio * ratio
    # Sums are written out, for products of matrices round differently from machine to machine: all must plan alike.
    left, rows = (np.arange(len(kind_K2)), *np.ascontiguousarray(kind_K2.T)), []
    while len(left[0]):
        row, free, kind, out = [], [1.0, 1.0], int(left[0][0]), []
        fitting = left
        while True:
            row.append(waiting[kind].pop())
            free = [free[0] - float(kind_K2[kind, 0]), free[1] - float(kind_K2[kind, 1])]
            fits = (fitting[1] <= free[0] + 1e-9) & (fitting[2] <= free[1] + 1e-9)
            if not waiting[kind]:
                out.append(kind)
                fits &= fitting[0] != kind
            fitting = tuple(column[fits] for column in fitting)  # what does not fit now never will
            if not len(fitting[0]):
                break
            x, y = free[0] - fitting[1], free[1] - fitting[2]
            gap = x - y
            kind = int(fitting[0][np.argmin(slots * (x * x) + windows * (y * y) + alike * (gap * gap))])
        rows.append(row)
        if out:
            there = ~np.isin(left[0], out)
            left = tuple(column[there] for column in left)
    return rows


def plan(pieces: Pieces, slots: int, window_limit: int, seed: int) -> Plan:
    """Pack pieces into rows: shuffled from `seed`, then within chunks of 4096 (see `_rows`).

    What shares a row never sees it, so one plan serves all epochs; the loader shuffles rows anew in each.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pieces.document_P))
    need_P2 = np.stack([(pieces.stop_P - pieces.start_P) / slots, pieces.windows_P / window_limit], axis=1)
    rows = [
        [int(chunk[number]) for number in row]
        for chunk in np.array_split(order, -(-len(order) // _CHUNK))
        for row in _rows(need_P2[chunk])
    ]
    # By falling size no longer: the first rows of a split are a fair sample of it.
    rows = [rows[number] for number in rng.permutation(len(rows))]
    return Plan(
        pieces,
        np.array([piece for row in rows for piece in row], np.int64),
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
    )
