"""Records of ArrayRecord files, read at random.

Grain's `ArrayRecordDataSource` asks a file for a list of records, which takes longer the more records the file has
(array_record 0.8.6; experiments/LOG.md, "A record found by its number"); to seek takes the same time in every file.
A reader that seeks serves one thread at a time, so a file has as many readers as threads ever read it at once.
"""

import bisect
import collections
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]


def _open(file: str) -> Any:
    return array_record_module.ArrayRecordReader(file, "readahead_buffer_size:0,max_parallelism:0")


class Records:
    """The records of some files, one file after the other.  Safe from several threads; picklable."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises what ArrayRecord raises for a file that is missing or damaged."""
        self._files = [str(file) for file in files]
        with ThreadPoolExecutor() as pool:
            readers = list(pool.map(_open, self._files))
        self._idle = [collections.deque([reader]) for reader in readers]
        self._starts = [0, *itertools.accumulate(reader.num_records() for reader in readers)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, position: int) -> bytes:
        """Raises IndexError past the last record."""
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        number = bisect.bisect_right(self._starts, position) - 1
        idle = self._idle[number]
        try:
            reader = idle.pop()
        except IndexError:  # other threads have them all
            reader = _open(self._files[number])
        reader.seek(position - self._starts[number])
        record = cast(bytes, reader.read())
        idle.append(reader)
        return record

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_idle": [collections.deque() for _ in self._files]}
