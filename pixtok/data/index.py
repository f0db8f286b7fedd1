"""A data set on disk: encoded documents in ArrayRecord files, and an index of their sizes.

    OUT/dataset.json              format, source, settings, counts
    OUT/index.npz                 per document: split, parts; per part: size
    OUT/documents-00000.array_record …   one msgpack record a document: [id, [text | encoded image, …]]
    OUT/vocabulary.json           when the vocabulary came from a file
    OUT/bad.jsonl                 what was skipped, and why

The index alone tells how many slots and windows every document takes, so packing reads no document.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np
from jaxtyping import Int8, Int32, Int64

from pixtok import words
from pixtok.data.records import Records
from pixtok.document import Document
from pixtok.errors import InputError

FORMAT = 1
SPLITS = ("train", "validation", "test")
RECORDS = "documents-{:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`dataset.json`."""

    source: str
    image_size: int | None
    """Images were brought down to this long side when the data set was built; None: never."""
    vocabulary: str
    """`bytes`, `none`, or `vocabulary.json` in the data set's folder."""
    fingerprint: str
    """Of the vocabulary with which text was counted."""
    documents: dict[str, int]
    """Number of documents of each split."""
    images: int
    text_tokens: int
    bad: int
    records: int
    """Number of ArrayRecord files."""
    format: int = FORMAT


@dataclasses.dataclass(frozen=True)
class Index:
    """Sizes of the N documents and their T parts."""

    split_N: Int8[np.ndarray, " N"]
    """0, 1, 2: train, validation, test."""
    start_N: Int64[np.ndarray, " N+1"]
    """Parts start_N[i] … start_N[i + 1] − 1 belong to document i."""
    part_T2: Int32[np.ndarray, "T 2"]
    """Height and width of an image; 0 and the number of ids of a text."""


def pack_record(document: Document) -> bytes:
    """Document with encoded images → record."""
    return cast(bytes, msgpack.packb([document.id, list(document.parts)]))


def unpack_record(record: bytes) -> Document:
    """The inverse of `pack_record`."""
    name, parts = msgpack.unpackb(record)
    return Document(name, tuple(parts))


class Dataset:
    """A built data set, read at random."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError when there is no usable data set at `path`."""
        self.path = Path(path)
        manifest = self.path / "dataset.json"
        if not manifest.is_file():
            built = f"pixtok data build {path if self.path.exists() else 'SOURCE'} OUT"
            what = "is not a built data set" if self.path.exists() else "does not exist"
            raise InputError(f"data.path: {path} {what}; make one with `{built}` and give its path")
        try:
            content: dict[str, Any] = json.loads(manifest.read_text())
            if content.get("format") != FORMAT:
                raise InputError(
                    f"{path} has data format {content.get('format')}, this pixtok reads {FORMAT}: build it again"
                )
            self.manifest = Manifest(**content)
            with (self.path / "index.npz").open("rb") as file, np.load(file) as arrays:
                self.index = Index(**arrays)
            self._records = Records([self.path / RECORDS.format(number) for number in range(self.manifest.records)])
            if len(self._records) != len(self.index.split_N):
                raise ValueError(f"{len(self._records)} records of {len(self.index.split_N)}")
        except InputError:
            raise
        except Exception as error:  # json, zip and ArrayRecord raise what they like
            raise self._damaged(error) from None

    def vocabulary(self) -> words.Vocabulary:
        """The vocabulary that the data set was built with."""
        name = self.manifest.vocabulary
        return words.load(str(self.path / name) if name.endswith(".json") else name)

    def __len__(self) -> int:
        return len(self.index.split_N)

    def read(self, documents: Iterable[int]) -> list[Document]:
        """The documents at these positions, images still encoded.  Safe from several threads.  Raises InputError."""
        try:
            return [unpack_record(self._records[int(position)]) for position in documents]
        except (RuntimeError, ValueError) as error:  # ArrayRecord's, msgpack's
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> InputError:
        reason = "".join(str(error).splitlines()[:1])
        return InputError(f"{self.path} is damaged ({type(error).__name__}: {reason}): build it again")
