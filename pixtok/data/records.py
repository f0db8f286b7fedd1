"""Records of ArrayRecord files, read at random.

Grain's `ArrayRecordDataSource` asks a file for a list of records, which takes longer the more records the file has
(array_record 0.8.6; experiments/LOG.md, "A record found by its number"); a range takes the same time in every file.
"""

import bisect
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

_BUFFER = 2**15
"""Bytes that are made ready for a record, however small; larger ones take more."""


def _open(file: str) -> Any:
    reader = array_record_module.ArrayRecordReader(file, "readahead_buffer_size:0", file_reader_buffer_size=_BUFFER)
    if not reader.ok():
        reader.close()  # which raises the cause
    return reader


def _count(file: str) -> int:
    reader = _open(file)
    count = reader.num_records()
    reader.close()
    return count


class Records:
    """The records of some files, one file after the other.  Safe from several threads; picklable."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises what ArrayRecord does of a file that is missing or damaged."""
        self._files = [str(file) for file in files]
        with ThreadPoolExecutor() as pool:
            self._starts = [0, *itertools.accumulate(pool.map(_count, self._files))]
        self._readers: list[Any] = [None] * len(files)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, position: int) -> bytes:
        """Raises IndexError past the last record, and what ArrayRecord does of a damaged one."""
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        number = bisect.bisect_right(self._starts, position) - 1
        if self._readers[number] is None:  # also in two threads at once: one of the readers is dropped
            self._readers[number] = _open(self._files[number])
        first = position - self._starts[number]
        return cast(bytes, self._readers[number].read(first, first + 1)[0])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": [None] * len(self._files)}
