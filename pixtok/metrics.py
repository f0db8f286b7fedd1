"""What a run reports: `metrics.jsonl`, TensorBoard events, and a line that lives."""

import json
import tempfile
import time
from typing import Any

import tensorboardX
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pixtok.files import Lines, is_local, write

SEEN = ("pixels", "words", "flops")
"""Of all steps of a run so far: words and pixels that were predicted, useful FLOPs."""


def read(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Writer:
    """Appends to `metrics.jsonl` and to TensorBoard.  A context manager."""

    def __init__(self, run_dir: epath.Path, start: int, *, silent: bool = False) -> None:
        """Go on from step `start`, 0 for a new run: lines that come again, which a killed run left, are dropped.

        `silent`: write nothing, for all processes but one.
        """
        before = read(run_dir / "metrics.jsonl")
        self.lines = [line for line in before if start and line["step"] <= start]
        """All lines so far."""
        steps = [line["step"] for line in before if line["split"] == "train"]
        self.lost = max(0, max(steps, default=0) - start)
        """Steps that a killed run had done, and that are done again."""
        self.silent = silent
        if silent:
            return
        self._file = Lines(run_dir / "metrics.jsonl", [json.dumps(line) for line in self.lines])
        self._board = _Board(run_dir / "tensorboard", start)

    def write(self, step: int, split: str, figures: dict[str, float]) -> None:
        """Add the figures of one split after a number of steps."""
        line = {"step": step, "split": split, **figures}
        self.lines.append(line)
        if self.silent:
            return
        self._file.add(json.dumps(line))
        self._board.add(step, split, figures)

    def flush(self) -> None:
        """What was written is there, whatever happens next."""
        if not self.silent:
            self._file.flush()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.silent:
            self._file.close()
            self._board.close()


class _Board:
    """TensorBoard's event file; that of a bucket is written here, and copied there now and then."""

    _SECONDS = 60

    def __init__(self, folder: epath.Path, start: int) -> None:
        self._folder, self._copied = folder, time.monotonic()
        self._here = None if is_local(folder) else tempfile.TemporaryDirectory()
        self._path = epath.Path(folder if self._here is None else self._here.name)
        self._writer = tensorboardX.SummaryWriter(str(self._path), purge_step=start + 1)

    def add(self, step: int, split: str, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        if self._here is not None and time.monotonic() - self._copied > self._SECONDS:
            self._copy()

    def close(self) -> None:
        self._writer.close()
        if self._here is not None:
            self._copy()
            self._here.cleanup()

    def _copy(self) -> None:
        self._writer.flush()
        for file in self._path.iterdir():
            write(self._folder / file.name, file.read_bytes())
        self._copied = time.monotonic()


def rate(value: float) -> str:
    """1234567 → 1.23M."""
    for bound, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= bound:
            return f"{value / bound:.3g}{suffix}"
    return f"{value:.3g}"


def describe(figures: dict[str, float]) -> str:
    """Figures → `loss 2.31  words 1.97  first pixels 3.05  bits/dim 5.84  1.2M pixels/s  340 words/s`."""
    names = {"loss": "loss", "nats_word": "words", "nats_first_pixel": "first pixels", "bpd_8bit": "bits/dim"}
    if "bpd_8bit" not in figures:
        names["bpd_fold"] = "folded bits/dim"
    parts = [f"{label} {figures[name]:.3f}" for name, label in names.items() if name in figures]
    rates = {"pixels_per_s": "pixels/s", "words_per_s": "words/s"}
    parts += [f"{rate(figures[name])} {label}" for name, label in rates.items() if name in figures]
    parts += [f"MFU {figures['mfu']:.1%}"] if "mfu" in figures else []
    return "  ".join(parts)


class Live:
    """The progress of training: a live line on a terminal, else a line now and then.  A context manager."""

    _SECONDS = 10

    def __init__(self, start: int, steps: int, *, silent: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)
        self._steps, self._printed = steps, 0.0
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("compiling", total=steps, completed=start)

    def update(self, step: int, figures: dict[str, float]) -> None:
        """Show the figures of the latest step."""
        self._progress.update(self._task, completed=step, description=describe(figures))
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._printed > self._SECONDS or step == self._steps):
            self._printed = now
            self.say(f"step {step}/{self._steps}  {describe(figures)}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.console.print(text, markup=False)

    def __enter__(self) -> "Live":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
