"""What a run reports: `metrics.jsonl`, TensorBoard events, and a line that lives."""

import json
import time
from pathlib import Path
from typing import Any

import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Writer:
    """Appends to `metrics.jsonl` and to TensorBoard.  A context manager."""

    def __init__(self, run_dir: Path, start: int) -> None:
        """Go on from step `start`, 0 for a new run: lines that come again, which a killed run left, are dropped."""
        path = run_dir / "metrics.jsonl"
        kept = [line for line in read(path) if start and line["step"] <= start]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)
        self.lines = kept
        """All lines so far."""
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, split: str, figures: dict[str, float]) -> None:
        """Add the figures of one split after a number of steps."""
        line = {"step": step, "split": split, **figures}
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()


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
    return "  ".join(parts)


class Live:
    """The progress of training: a live line on a terminal, else a line now and then.  A context manager."""

    _SECONDS = 10

    def __init__(self, start: int, steps: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
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
