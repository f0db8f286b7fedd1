"""Files that are whole or not there, here or in a bucket, and bars that show how far work has come."""

import os
import time

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pixtok.errors import InputError


def is_local(path: epath.PathLike) -> bool:
    """Whether it is a file of this machine, and not gs://… or the like."""
    return "://" not in str(path)


def location(text: str | os.PathLike[str]) -> epath.Path:
    """A path here or in a bucket.  Raises InputError for a scheme that cannot be used."""
    try:
        path = epath.Path(text)
        path.exists()
    except KeyError:
        raise InputError(
            f"{text}: pixtok knows no {str(text).split('://')[0]}:// paths; use gs:// or a local one"
        ) from None
    except ImportError as error:
        raise InputError(f"{text} needs what is not installed ({error}): pip install 'pixtok[gcs]'") from None
    return path


def write(path: epath.PathLike, content: bytes) -> None:
    """Write a file at once, so that a kill leaves the old one or the new one.  Makes folders.  Raises InputError."""
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_local(path):
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(content)
            partial.replace(path)
        else:  # objects appear when they are whole
            path.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


class Lines:
    """A text file that grows by lines.  A bucket cannot append: there it is written anew, now and then, and at the end.

    A context manager.
    """

    _SECONDS = 30

    def __init__(self, path: epath.Path, kept: list[str]) -> None:
        """Begin with these lines, whatever was there."""
        self._path, self._text = path, "".join(line + "\n" for line in kept)
        write(path, self._text.encode())
        self._file = path.open("a") if is_local(path) else None
        self._written = time.monotonic()

    def add(self, line: str) -> None:
        """One more line."""
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._text += line + "\n"
        if time.monotonic() - self._written > self._SECONDS:
            self.flush()

    def flush(self) -> None:
        """All lines are where they belong."""
        if self._file is None:
            write(self._path, self._text.encode())
            self._written = time.monotonic()

    def close(self) -> None:
        """No more lines come."""
        self.flush()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress_bar(description: str) -> Progress:
    """A progress bar on stderr, with a field `note`; silent where stderr is no terminal."""
    return Progress(
        TextColumn(description),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not os.isatty(2),
    )
