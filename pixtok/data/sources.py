"""Where documents come from: folders, tars, mixed text files, TFDS.  Each yields documents one by one."""

import contextlib
import dataclasses
import io
import json
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from absl import logging

from pixtok.document import Document, parse
from pixtok.errors import InputError

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .ico .jfif .jp2 .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


@dataclasses.dataclass(frozen=True)
class Bad:
    """A document that could not be read, and why."""

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One item of a source."""

    document: Document | Bad
    split: str | None = None
    """The split that the source itself puts it in, where it has splits."""
    captioned: bool = False
    """An image and its text, whose order is not the source's own."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A number of entries, known before they are read."""

    count: int
    entries: Callable[[], Iterator[Entry]]


def open_source(name: str, scratch: Path, seed: int = 0, limit: int | None = None) -> Source:
    """`glyphs`, a folder, a tar, or the name of a TFDS data set → its documents.

    `glyphs` are drawn into the folder `scratch`, from `seed`, `limit` of them.
    Raises InputError when it is none of them, or holds nothing.
    """
    path = Path(name)
    if path.is_dir():
        source = _folder(path)
    elif path.is_file():
        source = _tar(path)
    elif name == "glyphs":
        from pixtok.data import glyphs

        source = _tfds(lambda: glyphs.builder(scratch, seed, limit))
    elif re.fullmatch(r"[a-z][a-z0-9_]*(/[\w.+-]+)*(:[\d.]+)?", name):
        source = _tfds(lambda: _named_builder(name))
    else:
        raise InputError(f"no source at {name}: give a folder, a tar, `glyphs`, or the name of a TFDS data set")
    if not source.count:
        raise InputError(f"{name} holds no images and no text: give a folder or tar of images, or of mixed text files")
    return source


def _hidden(path: PurePath) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.parts)


def _kind(name: str) -> str:
    suffix = PurePath(name).suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else suffix.removeprefix(".")


def _folder(root: Path) -> Source:
    """A folder: of mixed text files where one has an image tag; otherwise of images, with .txt or .json captions
    of the same name beside them, or labelled by their sub-folder.
    """
    if (root / "dataset.json").is_file():
        raise InputError(
            f"{root} is a data set that `pixtok data build` made: train on it, or give what it was made from"
        )
    files = sorted(p for p in root.rglob("*") if p.is_file() and not _hidden(p.relative_to(root)))
    texts = [p for p in files if _kind(p.name) == "txt"]
    if any(is_image for p in texts for is_image, _ in parse(p.read_text("utf-8", errors="replace"))):
        return Source(len(texts), lambda: (Entry(_mixed(root, p)) for p in texts))
    groups = _group([str(p.relative_to(root)) for p in files])
    return Source(
        len(groups),
        lambda: (_triple(key, members, lambda m: (root / m).read_bytes()) for key, members in groups),
    )


def _mixed(root: Path, file: Path) -> Document | Bad:
    """One mixed text file; image paths are relative to it, or to the folder of all of them."""
    name = str(file.relative_to(root))
    parts: list[str | bytes] = []
    try:
        for is_image, part in parse(file.read_text("utf-8")):
            if is_image:
                path = file.parent / part
                parts.append((path if path.is_file() else root / part).read_bytes())
            else:
                parts.append(part)
    except UnicodeDecodeError:
        return Bad(name, "not UTF-8 text")
    except OSError as error:
        return Bad(name, f"{error.filename}: {error.strerror}")
    return Document(name, tuple(parts))


def _group(names: list[str]) -> list[tuple[str, dict[str, str]]]:
    """File names → (key, {kind: name}) for each image or text, files of one stem together, in order.

    Several images of one stem (`a.png`, `a.jpg`) are documents of their own; a file of a kind that is
    not known, alone under its stem, counts as an image, so that it is named when it turns out not to be one.
    """
    stems: dict[str, dict[str, str]] = {}
    extra: dict[str, dict[str, str]] = {}
    for name in names:
        kind = _kind(name)
        stem = str(PurePath(name).with_suffix(""))
        if kind == "image" and kind in stems.setdefault(stem, {}):
            extra[name] = {"image": name}
        else:
            stems.setdefault(stem, {})[kind if kind in ("image", "txt", "json") else "other"] = name
    groups = {}
    for stem, members in stems.items():
        if "image" not in members and "txt" not in members:
            if "other" not in members:
                continue  # .json alone: metadata of the whole, not a document
            members["image"] = members["other"]
        groups[stem] = members
    return sorted((groups | extra).items())


def _triple(key: str, members: dict[str, str], read: Callable[[str], bytes]) -> Entry:
    """An image with its caption: the .txt beside it, else `caption` or `text` of the .json, else its sub-folder."""
    parts: list[str | bytes] = []
    name = members.get("image", members.get("txt", key))
    try:
        if "image" in members:
            parts.append(read(members["image"]))
        if "txt" in members:
            parts.append(read(members["txt"]).decode().strip())
        elif "json" in members:
            content = json.loads(read(members["json"]))
            caption = content.get("caption", content.get("text")) if isinstance(content, dict) else None
            if isinstance(caption, str):
                parts.append(caption.strip())
        elif len(PurePath(key).parts) > 1:
            parts.append(PurePath(key).parent.name)
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        return Entry(Bad(name, f"{type(error).__name__}: {error}"))
    if "image" not in members and any(is_image for part in parts for is_image, _ in parse(str(part))):
        return Entry(Bad(name, "mixed text, whose images are found only in a folder: unpack the tar"))
    return _captioned(name, parts)


def _captioned(name: str, parts: list[str | bytes], split: str | None = None) -> Entry:
    kept = tuple(part for part in parts if part != "")
    return Entry(Document(name, kept), split, captioned=[type(part) for part in kept] == [bytes, str])


def _tar(path: Path) -> Source:
    """A tar (plain or compressed) of image/.txt/.json triples that share a stem."""
    try:
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile() and not _hidden(PurePath(member.name))]
            # A tar ends with blocks of zeros; one that was cut short between two files looks whole otherwise.
            assert archive.fileobj is not None
            archive.fileobj.seek(archive.offset)
            if names and archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise InputError(f"{path} was cut short: no end of archive follows its {len(names)} files")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise InputError(f"{path} is neither a folder nor a tar ({reason}): unpack it, or give a tar") from None

    def entries() -> Iterator[Entry]:
        with tarfile.open(path) as archive:
            # A look-up by name alone goes through all members, each time.
            members = {member.name: member for member in archive}

            def read(member: str) -> bytes:
                file = archive.extractfile(members[member])
                assert file is not None, "only regular files are listed"
                return file.read()

            for key, files in _group(names):
                yield _triple(key, files, read)

    return Source(len(_group(names)), entries)


def _named_builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"no source at {name}: it is neither a path, nor `glyphs`, nor the name of a TFDS data set"
        ) from None


def _prepared(make: Callable[[], Any]) -> Any:
    """Make a builder and its files.  Its bars are for terminals, and its words for nobody."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = make()
            builder.download_and_prepare()
    except InputError:
        raise
    except Exception as error:  # builders raise whatever their download or their parser raises
        first = "".join(str(error).strip().splitlines()[:1])
        raise InputError(f"TFDS could not prepare the data set: {type(error).__name__}: {first}") from None
    finally:
        logging.set_verbosity(verbosity)
    return builder


def _tfds(make: Callable[[], Any]) -> Source:
    """A TFDS builder: its images, then its caption, text, or the name of its label."""
    import tensorflow_datasets as tfds

    builder = _prepared(make)
    features = builder.info.features
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    text = next((key for key in ("caption", "text") if key in texts), next(iter(texts), None))
    if not images and text is None:
        raise InputError(f"TFDS {builder.name} has no image and no text feature, but {', '.join(features)}")

    def entries() -> Iterator[Entry]:
        raw = {key: tfds.decode.SkipDecoding() for key in images}
        for split in builder.info.splits:
            data = builder.as_data_source(split=split, decoders=raw)
            own = {"train": "train", "validation": "validation", "test": "test"}.get(split)
            for number in range(len(data)):
                example = data[number]
                parts: list[str | bytes] = [bytes(example[key]) for key in images]
                if text is not None:
                    parts.append(example[text].decode())
                elif labels:
                    parts.append(features[labels[0]].int2str(int(example[labels[0]])))
                yield _captioned(f"{split}/{number}", parts, own)

    return Source(sum(split.num_examples for split in builder.info.splits.values()), entries)
