"""Build a data set: read a source once, check every image, write records and index."""

import collections
import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from pixtok import words
from pixtok.data import images
from pixtok.data.index import RECORDS, SPLITS, Manifest, pack_record
from pixtok.data.sources import Bad, Entry, Source, open_source
from pixtok.document import Document
from pixtok.errors import InputError
from pixtok.files import progress_bar


@dataclass(frozen=True)
class Settings:
    """How a data set is built."""

    image_size: int | None = None
    """Bring images down to this long side, in pixels; None keeps every size.  Never enlarges."""
    vocabulary: str = "bytes"
    """`bytes`, `none` (images only), or a Hugging Face tokenizer.json."""
    validation: float = 0.05
    """Share of documents for validation, where the source has no such split."""
    test: float = 0.05
    """Share of documents for testing, where the source has no such split."""
    max_bad: float = 0.01
    """Stop when more than this share of documents is bad."""
    seed: int = 0
    """What `glyphs` are drawn from."""
    limit: int | None = None
    """Read no more documents than this."""
    caption: Literal["either", "before", "after"] = "either"
    """Where the text of an image with a caption goes. `either`: before half of the images and after the others, so
    that a model learns to draw from text and to read."""

    def validate(self) -> None:
        """Raises InputError."""
        for name in ("validation", "test", "max_bad"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} must lie in 0 … 1; got {getattr(self, name)}")
        if self.validation + self.test >= 1:
            raise InputError(
                f"--validation {self.validation} and --test {self.test} leave nothing to train on: lower them"
            )
        for name in ("image_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} must be at least 1; got {value}")


RECORD_FILE_BYTES = 2**30
_CHUNK = 64
_ENOUGH_BAD = 100


def _normalise(entry: Entry, settings: Settings) -> tuple[Entry, list[tuple[int, int]]]:
    """Check and resize the images of an entry → (it, with files that decode to what is trained on; their sizes)."""
    document = entry.document
    if isinstance(document, Bad):
        return entry, []
    parts, sizes = [], []
    given = document.parts
    # By content, so that equal documents stay equal.
    if entry.captioned and (settings.caption == "before" or (settings.caption == "either" and _odd(given))):
        given = given[::-1]
    for part in given:
        if isinstance(part, str):
            parts.append(part)
            continue
        assert isinstance(part, bytes), "sources give encoded images"
        try:
            pixels, changed = images.decode(part, settings.image_size)
        except images.ImageError as error:
            return Entry(Bad(document.id, str(error)), entry.split), []
        parts.append(images.encode(pixels) if changed else part)
        sizes.append(pixels.shape[:2])
    if not parts:
        return Entry(Bad(document.id, "neither an image nor text"), entry.split), []
    return dataclasses.replace(entry, document=Document(document.id, tuple(parts))), sizes


def _odd(parts: tuple) -> bool:
    return zlib.crc32(next(part for part in parts if isinstance(part, bytes))) % 2 == 1


def _parallel(source: Source, settings: Settings) -> Iterator[tuple[Entry, list[tuple[int, int]]]]:
    """`_normalise` over a source, in order, on all cores, a few chunks ahead."""
    entries = source.entries()
    with ThreadPoolExecutor() as pool:
        while chunk := list(itertools.islice(entries, _CHUNK)):
            yield from pool.map(lambda entry: _normalise(entry, settings), chunk)


def assign_splits(digests: list[bytes], own: list[str | None], validation: float, test: float) -> np.ndarray:
    """One split per document, such that equal documents share one.

    Documents that the source puts in a split stay there (test before validation before train where two
    equal ones disagree).  Splits that the source does not have are cut from the rest, or from its train
    documents: the documents of lowest digest, so that the choice depends on content alone.
    """
    ranks: dict[bytes, int] = {}
    for digest, split in zip(digests, own, strict=True):
        ranks[digest] = max(ranks.get(digest, 0), SPLITS.index(split or "train"))
    given = set(ranks.values())
    free = sorted(digest for digest, rank in ranks.items() if rank == 0)
    first = 0
    for split, share in ((1, validation), (2, test)):
        if split not in given and len(free) >= 3:
            count = max(1, round(share * len(ranks))) if share else 0
            ranks |= dict.fromkeys(free[first : first + count], split)
            first += count
    return np.array([ranks[digest] for digest in digests], np.int8)


class _Records:
    """ArrayRecord files of about RECORD_FILE_BYTES each."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writer, self._size, self.files = folder, None, 0, 0

    def write(self, record: bytes) -> None:
        if self._writer is None or self._size > RECORD_FILE_BYTES:
            self.close()
            # One record a group: random access reads no neighbours.
            self._writer = array_record_module.ArrayRecordWriter(
                str(self._folder / RECORDS.format(self.files)), "group_size:1"
            )
            self.files += 1
            self._size = 0
        self._writer.write(record)
        self._size += len(record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class TooManyBadError(InputError):
    """More than the accepted share of a source is bad."""


def _write(source: Source, folder: Path, name: str, settings: Settings) -> Manifest:
    vocabulary = words.load(settings.vocabulary)
    total = min(source.count, settings.limit or source.count)
    digests: list[bytes] = []
    own: list[str | None] = []
    starts, sizes = [0], []
    counts: collections.Counter[str] = collections.Counter()
    records = _Records(folder)
    bad: Bad | None = None
    begin = time.perf_counter()
    with open(folder / "bad.jsonl", "w") as bad_file, progress_bar("building") as progress:
        task = progress.add_task("", total=total, note="")
        for entry, image_sizes in itertools.islice(_parallel(source, settings), total):
            document = entry.document
            progress.update(task, advance=1, note=f"{counts['bad']} bad")
            if isinstance(document, Bad):
                bad = document
                counts["bad"] += 1
                bad_file.write(json.dumps({"id": bad.id, "reason": bad.reason}) + "\n")
                # A small source is read to its end, so that all its bad files are named at once.
                if counts["bad"] > max(settings.max_bad * total, _ENOUGH_BAD):
                    break
                continue
            sized = iter(image_sizes)
            for part in document.parts:
                if isinstance(part, str):
                    length = len(vocabulary.encode(part))
                    sizes.append((0, length))
                    counts["text_tokens"] += length
                else:
                    sizes.append(next(sized))
                    counts["images"] += 1
                    counts["pixels"] += sizes[-1][0] * sizes[-1][1]
            starts.append(len(sizes))
            digests.append(hashlib.blake2b(pack_record(Document("", document.parts)), digest_size=16).digest())
            own.append(entry.split)
            records.write(pack_record(document))
    records.close()
    if bad is not None and counts["bad"] > settings.max_bad * total:
        raise TooManyBadError(
            f"{counts['bad']} bad of {total} documents are more than max_bad = {settings.max_bad:g}; "
            f"the last one: {bad.id} ({bad.reason})"
        )
    if not digests:
        raise InputError(f"{name}: none of {total} documents is usable")
    seconds = time.perf_counter() - begin
    split_N = assign_splits(digests, own, settings.validation, settings.test)
    np.savez(
        folder / "index.npz",
        split_N=split_N,
        start_N=np.array(starts, np.int64),
        part_T2=np.array(sizes, np.int32).reshape(-1, 2),
    )
    if settings.vocabulary.endswith(".json"):
        shutil.copyfile(settings.vocabulary, folder / "vocabulary.json")
    manifest = Manifest(
        source=name,
        image_size=settings.image_size,
        vocabulary="vocabulary.json" if settings.vocabulary.endswith(".json") else settings.vocabulary,
        fingerprint=vocabulary.fingerprint,
        documents={split: int((split_N == i).sum()) for i, split in enumerate(SPLITS)},
        images=counts["images"],
        text_tokens=counts["text_tokens"],
        bad=counts["bad"],
        records=records.files,
    )
    (folder / "dataset.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    print(
        f"built in {seconds:.1f} s: {len(digests) / seconds:,.0f} documents/s, "
        f"{counts['pixels'] / seconds:,.0f} pixels/s",
        file=sys.stderr,
    )
    return manifest


def build(source: str | Path, out: str | Path, settings: Settings = Settings()) -> Manifest:
    """Build the data set `out` from a source (see `open_source`).

    Nothing is left at `out` unless all went well; a build that stops for too many bad documents leaves their
    names in `out`.bad.jsonl.  Raises InputError.
    """
    settings.validate()
    source, out = str(source), Path(out)
    if out.exists():
        raise InputError(f"{out} exists: remove it, or give another place for the data set")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=out.name + ".", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}") from None
    scratch = partial / "tfds"
    try:
        manifest = _write(open_source(source, scratch, settings.seed, settings.limit), partial, source, settings)
        shutil.rmtree(scratch, ignore_errors=True)
        partial.chmod(out.parent.stat().st_mode & 0o777)  # mkdtemp's are for its owner alone
        partial.rename(out)
    except TooManyBadError as error:
        report = out.with_name(out.name + ".bad.jsonl")
        shutil.copyfile(partial / "bad.jsonl", report)
        raise InputError(f"{error}; all are named in {report}; --max_bad accepts more") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def train_vocabulary(source: str, out: Path, size: int) -> int:
    """Train a BPE on all text of a source and save it as a tokenizer.json → its number of ids.  Raises InputError."""
    if out.exists():
        raise InputError(f"{out} exists: remove it, or give another place for the vocabulary")
    with tempfile.TemporaryDirectory() as scratch:
        documents = (entry.document for entry in open_source(source, Path(scratch)).entries())
        texts = (
            part for item in documents if isinstance(item, Document) for part in item.parts if isinstance(part, str)
        )
        tokenizer = words.train(texts, size)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out))
    return tokenizer.get_vocab_size()
