"""Files that are whole or not there, and bars that show how far work has come."""

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pixtok.errors import InputError


def write(path: Path, content: bytes) -> None:
    """Write a file at once, so that a kill leaves the old one or the new one.  Makes folders.  Raises InputError."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


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
