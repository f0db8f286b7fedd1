"""What a law is fitted to: one line for each run, of run directories or of a table."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixtok import flops
from pixtok.config import flatten
from pixtok.errors import InputError
from pixtok.run import Run
from pixtok.scaling.surface import Points

LOSSES = {
    "loss": ("nats per word plus nats per sub-pixel", "pixels and words"),
    "bpd_8bit": ("bits per 8-bit sub-pixel", "pixels"),
    "bpd_fold": ("bits per folded sub-pixel", "pixels"),
    "nats_first_pixel": ("nats of the first pixel of a window", "pixels"),
    "nats_word": ("nats per word token", "words"),
}
"""What may be fitted → (its unit, what D then counts)."""

COLUMNS = ("N", "D", "loss", "C", "unique", "name")


@dataclasses.dataclass(frozen=True)
class Runs:
    """R runs that ended, and what their numbers are."""

    names: list[str]
    points: Points
    c_R: np.ndarray
    """Training FLOPs."""
    meaning: dict[str, str]
    """Of N, D, C and L, for the report."""
    unfinished: list[str]
    """Runs whose learning rate had not come down to where it was to end."""
    final_rates: list[float]
    """Shares of the peak learning rate at which schedules end; empty where not known."""
    failed: list[str]
    """Run directories without a result, and why."""
    told: bool = True
    """Whether it is known how they were trained, as it is of run directories."""


def read_csv(path: Path, columns: dict[str, str]) -> Runs:
    """A table with a header, whose columns are called N, D and loss, and C, unique and name where it has them, or as
    `columns` tells.  C is 6·N·D otherwise.

    Raises InputError.
    """
    if unknown := set(columns) - set(COLUMNS):
        raise InputError(f"--columns tells {', '.join(COLUMNS)}; not {', '.join(sorted(unknown))}")
    try:
        with path.open(newline="") as file:
            table = csv.DictReader(file)
            header, lines = table.fieldnames or [], list(table)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    columns = {name: name for name in COLUMNS if name in header or name in COLUMNS[:3]} | columns
    for column in columns.values():
        if column not in header:
            raise InputError(f"{path} has no column {column!r}; it has {', '.join(header)}: tell with --columns")

    def numbers(role: str) -> np.ndarray:
        found = []
        for number, line in enumerate(lines, 2):
            text = line[columns[role]]
            try:
                found.append(float(text))
            except (TypeError, ValueError):
                raise InputError(f"{path}:{number}: {columns[role]} is no number: {text!r}") from None
        return np.array(found)

    n, d, loss = (numbers(role) for role in ("N", "D", "loss"))
    c = numbers("C") if "C" in columns else 6 * n * d
    names = (
        [line[columns["name"]] for line in lines] if "name" in columns else [f"line {2 + at}" for at in range(len(n))]
    )
    unique = numbers("unique") if "unique" in columns else np.full(len(n), np.inf)
    meaning = {
        "N": f"column {columns['N']} of {path.name}",
        "D": f"column {columns['D']} of {path.name}",
        "C": f"column {columns['C']} of {path.name}" if "C" in columns else "6·N·D",
        "L": f"column {columns['loss']} of {path.name}",
    }
    lines_read = [f"{path}:{2 + at}" for at in range(len(n))]
    _check(lines_read, N=n, D=d, loss=loss, C=c, unique=np.minimum(unique, d))
    return Runs(names, Points.of(n, d, unique, loss), c, meaning, [], [], [], told=False)


def _check(names: Sequence[str], **columns: np.ndarray) -> None:
    for role, values in columns.items():
        bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
        if len(bad):
            raise InputError(f"{names[bad[0]]}: {role} must be positive and finite; got {values[bad[0]]}")


def pick(runs: Runs, which: np.ndarray) -> Runs:
    """Some of them, by their numbers."""
    names = [runs.names[at] for at in which]
    return dataclasses.replace(runs, names=names, points=runs.points.take(which), c_R=runs.c_R[which])


def directories(paths: Sequence[Path]) -> list[Path]:
    """Run directories among these, in them, and in their plans; each once.  Raises InputError where there are none."""
    found = dict[Path, Path]()
    for path in paths:
        at = path / "runs" if (path / "plan.json").exists() else path
        inside = sorted(file.parent for file in at.glob("*/config.json")) if at.is_dir() else []
        here = [path] if (path / "config.json").exists() else inside
        if not here:
            raise InputError(f"no runs in {path}: give run directories, or a folder of them")
        found |= {folder.resolve(): folder for folder in here}
    return list(found.values())


_SIZES = tuple(f"model.{name}.{size}" for name in ("encoder", "trunk", "decoder") for size in ("width", "layers"))
_SIZES += tuple(f"model.{name}.{size}" for name in ("encoder", "trunk", "decoder") for size in ("heads", "kv_heads"))
_ALIKE = ("model.", "data.path", "data.mix", "data.weights", "data.image_size")


def _one_kind(folders: Sequence[Path], where: dict[str, str]) -> list[Path]:
    """Those with such settings; raises InputError where they then still differ in more than size and training."""
    settings = {
        folder: {name: str(value) for name, value in flatten(Run(folder).experiment)}  # pyright: ignore[reportArgumentType]
        for folder in folders
    }
    for name, value in where.items():
        if name not in next(iter(settings.values())):
            raise InputError(f"--where: there is no setting {name}")
        settings = {folder: own for folder, own in settings.items() if own[name] == value}
        if not settings:
            raise InputError(f"--where: none of the runs has {name} = {value}")
    first = next(iter(settings.values()))
    for name in first:
        values = sorted({own[name] for own in settings.values()})
        if name.startswith(_ALIKE) and name not in _SIZES and len(values) > 1:
            raise InputError(
                f"the runs differ in {name} ({', '.join(values)}): one law is for one kind of model and data; say "
                f"which with --where {name}={values[0]}"
            )
    return list(settings)


def read(paths: Sequence[Path], loss: str = "bpd_8bit", where: dict[str, str] | None = None) -> Runs:
    """Of run directories, or folders of them: validation losses at their ends.

    `where`: settings of those that are wanted.  N are all parameters but the tables of embeddings.  Raises InputError.
    """
    if loss not in LOSSES:
        raise InputError(f"--loss must be one of {', '.join(LOSSES)}; got {loss}")
    lines, failed, unfinished, rates = list[tuple[str, Any]](), [], [], []
    folders = _one_kind(directories(paths), where or {})
    alike = len({folder.name for folder in folders}) < len(folders)  # as of two plans, of a seed each
    for folder in folders:
        name = str(folder) if alike else folder.name
        try:
            line, left, rate = _line(folder, loss)
        except InputError as error:
            failed.append(str(error))
            continue
        lines.append((name, line))
        rates.append(rate)
        if left:
            unfinished.append(f"{name}: {left}")
    if not lines:
        raise InputError(f"none of the runs has a result: {failed[0]}")
    names, values = zip(*lines, strict=True)
    n, d, unique, losses, c = np.array(values, np.float64).T
    unit, counted = LOSSES[loss]
    meaning = {
        "N": "parameters, without the tables of words and pixels ('embeddings' of `pixtok info`)",
        "D": f"{counted} that the training saw, repeats included",
        "C": "useful FLOPs of training: products of matrices, pairs that attention sees, forward and backward",
        "L": f"{loss} of the validation split at the end: {unit}",
    }
    _check(names, N=n, D=d, loss=losses, C=c)
    return Runs(list(names), Points.of(n, d, unique, losses), c, meaning, unfinished, rates, failed)


def _line(folder: Path, loss: str) -> tuple[tuple[float, ...], str, float]:
    """((N, D, data that differs, loss, C), what its learning rate lacks, where that was to end)."""
    experiment = Run(folder).experiment  # pyright: ignore[reportArgumentType]
    try:
        summary = json.loads((folder / "summary.json").read_text())
        scored, seen = summary["validation"], summary["seen"]
        done, steps, rows, value = summary["step"], summary["steps"], summary["rows"], float(scored[loss])
        d, c = sum(seen[kind] for kind in ("pixels", "words") if kind in LOSSES[loss][1]), float(seen["flops"])
        at = scored["step"]
    except FileNotFoundError:
        raise InputError(f"{folder} has not ended: it has no summary.json") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{folder}/summary.json holds no {loss} of a validation split, or is damaged") from None
    if at != done:
        raise InputError(f"{folder} ended after step {done} of {steps}, and was last scored after step {at}")
    left = f"it ended after step {done} of {steps}" if done < steps else ""
    epochs = max(done * experiment.train.batch_size / rows, 1)
    return (flops.multiplied(experiment.model), d, d / epochs, value, c), left, experiment.train.final_rate
