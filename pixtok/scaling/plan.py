"""Which runs to make of a budget: sizes of a family of models, and data for each.

A plan belongs to an experiment file whose `config` has two parameters: `dial`, the size of the model, and `steps`.
"""

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixtok import arguments, config, flops
from pixtok.config import Experiment
from pixtok.data.pipeline import Loader
from pixtok.errors import InputError
from pixtok.files import write
from pixtok.scaling.settings import Settings

_SAMPLE = 64  # rows that the cost of a row is the mean of


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run."""

    options: list[str]
    """Of the command line, after the experiment file."""
    n: float
    """Parameters without tables of embeddings."""
    d: float
    """Pixels."""
    c: float
    """FLOPs."""
    steps: int
    batch_size: int
    epochs: float
    level: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of them, and why others are not among them."""

    experiment: str
    runs: list[Planned]
    left_out: list[str]
    speed: float | None

    @property
    def total(self) -> float:
        """FLOPs."""
        return sum(run.c for run in self.runs)

    def hours(self, c: float) -> float | None:
        """Of one device."""
        return None if self.speed is None else c / self.speed / 3600


class _Row(NamedTuple):
    """The mean of some rows, and how many there are."""

    counts: flops.Counts
    rows: int

    def step_flops(self, experiment: Experiment) -> float:
        return 3 * flops.forward(experiment.model, self.counts) * experiment.train.batch_size


def _mean_row(experiment: Experiment) -> _Row:
    loader = Loader(experiment.data, experiment.model, split="train", batch_size=_SAMPLE, seed=0)
    counted = flops.counts(loader.batch(0).rows, experiment.model)
    return _Row(flops.Counts(*(float(x) / _SAMPLE for x in counted)), loader.row_count)


def _experiment(path: str, dial: int, steps: int | None, words: Sequence[str]) -> Experiment:
    """With further options, as on the command line of `pixtok train`.  Raises InputError."""
    size = ["--dial", str(dial), *([] if steps is None else ["--steps", str(steps)])]
    made, left = arguments.experiment("plan", make, [path, *size, *words]) or (None, [])
    made = arguments.parse(Experiment, left, "pixtok plan", default=made)
    config.validate(made)
    return made


def _axes(vary: tuple[str, ...]) -> list[list[str]]:
    """Options of all that is crossed."""
    pairs = []
    for axis in vary:
        name, _, values = axis.partition("=")
        if not name or not values:
            raise InputError(f"--vary wants axes like model.fold_factor=8,16; got {axis}")
        pairs.append([[f"--{name}", value] for value in values.split(",")])
    return [list(itertools.chain(*chosen)) for chosen in itertools.product(*pairs)]


def make(path: str, settings: Settings, options: Sequence[str] = ()) -> Plan:
    """`options`: further ones of all runs, as of `pixtok train`.  Raises InputError."""
    if missing := {"dial", "steps"} - set(config.File(path).options):
        raise InputError(f"{path}: config() must have the parameters dial and steps; it lacks {', '.join(missing)}")
    if own := {"--dial", "--steps"} & {word.partition("=")[0] for word in options}:
        raise InputError(f"{min(own)} is what a plan chooses: --dials and --budget say of what")
    if len(set(settings.dials)) < 3:
        raise InputError(f"a plan wants at least three sizes; --dials has {len(set(settings.dials))}")
    if (settings.budget is None) == (settings.hours is None):
        raise InputError("give --budget, in FLOPs, or --hours and --speed")
    if settings.hours is not None and settings.speed is None:
        raise InputError("--hours wants --speed, the useful FLOP/s of one device: `pixtok bench train` measures it")
    for name in ("budget", "hours", "speed", "levels", "seeds", "least_steps", "most_epochs"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} must be positive; got {value}")
    if settings.levels > 1 and not 0 < settings.decades < 12:
        raise InputError(f"--decades must lie between 0 and 12; got {settings.decades}")
    total = settings.budget if settings.budget is not None else (settings.hours or 0) * 3600 * (settings.speed or 0)
    variants = _axes(settings.vary)
    rows: dict[Any, _Row] = {}
    made: list[tuple[int, list[str], Experiment, _Row]] = []
    for variant, dial in itertools.product(variants, sorted(set(settings.dials))):
        experiment = _experiment(path, dial, None, [*options, *variant])
        data, model = experiment.data, experiment.model
        key = (data, model.vocab_size, model.window, model.halo)  # all that counts depend on
        if key not in rows:
            rows[key] = _mean_row(experiment)
        made.append((dial, variant, experiment, rows[key]))

    # Of a grid, a level is an amount of data, whose cost differs by size; of IsoFLOP profiles it is a cost.
    steps = np.linspace(-settings.decades, 0, settings.levels) if settings.levels > 1 else np.zeros(1)
    shares = 10**steps
    isoflop = settings.design == "isoflop"
    per_pixel = [row.step_flops(run) / (row.counts.pixels * run.train.batch_size) for _, _, run, row in made]
    weight = settings.seeds * float(shares.sum()) * (len(made) if isoflop else sum(per_pixel))
    largest = total / weight  # FLOPs of a run, or pixels
    runs, left_out = [], []
    for level, share in enumerate(shares):
        for (dial, variant, experiment, row), cost in zip(made, per_pixel, strict=True):
            batch = experiment.train.batch_size
            pixels = share * largest / cost if isoflop else share * largest
            count = max(1, round(pixels / (row.counts.pixels * batch)))
            epochs = count * batch / row.rows
            name = " ".join([f"dial {dial}", *(word.removeprefix("--") for word in variant)])
            if count < settings.least_steps or epochs > settings.most_epochs:
                why = f"{count} steps" if count < settings.least_steps else f"{epochs:.1f} epochs"
                left_out.append(f"level {level + 1}, {name}: {why}")
                continue
            n = flops.multiplied(experiment.model)
            planned = _experiment(path, dial, count, [*options, *variant])
            if planned.train.batch_size != batch or planned.model != experiment.model:
                raise InputError(f"{path}: config() must make the same model and batch whatever its steps")
            for seed in range(settings.seeds):
                words = ["--dial", str(dial), "--steps", str(count), *options, *variant]
                words += ["--train.seed", str(experiment.train.seed + seed)] if settings.seeds > 1 else []
                runs.append(
                    Planned(
                        words,
                        n,
                        count * batch * row.counts.pixels,
                        count * row.step_flops(experiment),
                        count,
                        batch,
                        epochs,
                        level + 1,
                    )
                )
    if not runs:
        raise InputError(f"nothing can be planned of this budget: {left_out[0]}; raise --budget, or lower --dials")
    return Plan(path, sorted(runs, key=lambda run: run.c), left_out, settings.speed)


def save(plan: Plan, folder: Path) -> None:
    """FOLDER/plan.json, and FOLDER/sweep.txt: the options of run i in line i, for launch/slurm.sbatch --sweep.

    Raises InputError where another plan is there.
    """
    content = json.dumps(dataclasses.asdict(plan), indent=2) + "\n"
    file = folder / "plan.json"
    if file.exists() and file.read_text() != content:
        raise InputError(f"{file} is another plan: give another folder")
    if (folder / "runs").exists() and not file.exists():
        raise InputError(f"{folder}/runs holds runs of no plan: give another folder")
    write(file, content.encode())
    write(folder / "sweep.txt", "".join(shlex.join(run.options) + "\n" for run in plan.runs).encode())


def load(folder: Path) -> Plan:
    """Raises InputError when there is none."""
    try:
        content = json.loads((folder / "plan.json").read_text())
        runs = [Planned(**run) for run in content.pop("runs")]
        return Plan(**content, runs=runs)
    except FileNotFoundError:
        raise InputError(f"{folder} holds no plan.json: `pixtok plan` makes one") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/plan.json is damaged ({error})") from None


def table(plan: Plan) -> list[list[str]]:
    """For people."""
    head = ["run", "level", "options", "N", "D pixels", "epochs", "FLOPs", *(["hours"] if plan.speed else [])]
    lines = [
        [
            str(number),
            str(run.level),
            shlex.join(run.options),
            f"{run.n:.3g}",
            f"{run.d:.3g}",
            f"{run.epochs:.2f}",
            f"{run.c:.3g}",
            *([f"{hours:.2f}"] if (hours := plan.hours(run.c)) is not None else []),
        ]
        for number, run in enumerate(plan.runs, 1)
    ]
    return [head, *lines]


def remarks(plan: Plan) -> str:
    """Below the table."""
    decades = math.log10(plan.runs[-1].c / plan.runs[0].c)
    hours = plan.hours(plan.total)
    took = "" if hours is None else f", {hours:.2f} hours of one device"
    lines = [f"{len(plan.runs)} runs, {plan.total:.3g} FLOPs{took}, over {decades:.2f} decades of compute"]
    if plan.left_out:
        lines.append("the budget of those left out is not spent on others")
    return "\n".join([*lines, *(f"left out: {text}" for text in plan.left_out)])
