"""`pixtok plan`, `launch`, `fit`, `report`: they parse and call."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from pixtok.arguments import parse, table
from pixtok.errors import ExitCode, InputError
from pixtok.files import progress_bar, write
from pixtok.scaling.settings import Settings as PlanSettings


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Plan:
    experiment: Positional[str]
    """An experiment file whose config() has the parameters dial and steps."""
    out: Positional[Path]
    """A folder for the plan, and for its runs."""
    settings: Annotated[PlanSettings, tyro.conf.arg(name="")]


def plan(args: Sequence[str]) -> ExitCode:
    """EXPERIMENT.py DIR --dials N N N … --budget FLOPS [OPTIONS of train]: which runs a law wants, and their cost"""
    parsed, options = parse(_Plan, args, "pixtok plan", return_unknown_args=True)  # pyright: ignore[reportGeneralTypeIssues]
    from pixtok.scaling import plan as planning

    made = planning.make(parsed.experiment, parsed.settings, options)
    planning.save(made, parsed.out)
    print(f"{table(planning.table(made))}\n\n{planning.remarks(made)}\n{parsed.out}/plan.json")
    return ExitCode.DONE


@dataclass(frozen=True)
class _Launch:
    plan: Positional[Path]
    """A folder that `pixtok plan` made."""
    parallel: int = 1
    """Runs at a time, each with its share of the cores."""
    retry: bool = False
    """Run those again that failed."""
    slurm: str | None = None
    """Give them to Slurm as an array of jobs, with these options of sbatch: --slurm="--nodes=1 --gpus-per-node=8 …"."""
    script: Path = Path("launch/slurm.sbatch")
    """The script of the jobs."""


def launch(args: Sequence[str]) -> ExitCode:
    """DIR [--parallel K] [--retry] [--slurm OPTIONS]: make the runs of a plan that are not done"""
    parsed = parse(_Launch, args, "pixtok launch")
    from pixtok.scaling import launch as launching
    from pixtok.scaling import plan as planning

    if parsed.parallel < 1:
        raise InputError(f"--parallel must be at least 1; got {parsed.parallel}")
    made = planning.load(parsed.plan)
    if parsed.slurm is not None:
        for line in launching.slurm(parsed.plan, made, parsed.script, parsed.slurm, parsed.retry):
            print(line)
        return ExitCode.DONE
    return launching.local(parsed.plan, made, parsed.parallel, parsed.retry, _say)


@dataclass(frozen=True)
class _Laws:
    paths: Positional[tuple[Path, ...]]
    """Run directories, folders of them, a plan's folder; or one .csv."""
    loss: tuple[str, ...] = ("bpd_8bit",)
    """What is fitted, of the validation split: bpd_8bit, bpd_fold, nats_first_pixel, nats_word, loss."""
    where: tuple[str, ...] = ()
    """Of a plan with further axes, those runs: model.fold_factor=8."""
    columns: tuple[str, ...] = ()
    """Of a .csv: which column is what, where names differ: N=COLUMN D=… loss=… C=… unique=… name=…; C may lack."""
    bootstraps: int = 1000
    """Resamples of the runs."""
    seed: int = 0
    """Of those."""


@dataclass(frozen=True)
class _Fit:
    laws: Annotated[_Laws, tyro.conf.arg(name="")]
    budgets: tuple[float, ...] = ()
    """FLOPs to tell N*, D* and the loss for; by default the largest run's, 10 and 100 times that."""
    predict: tuple[str, ...] = ()
    """N:D of runs to predict the loss of, like 3e6:1e9."""
    json: bool = False
    """Print JSON instead of tables."""


def _studies(laws: _Laws) -> dict[str, Any]:
    from pixtok.scaling import fit as fitting
    from pixtok.scaling import runs

    if laws.bootstraps < 1:
        raise InputError(f"--bootstraps must be at least 1; got {laws.bootstraps}")
    if not laws.paths:
        raise InputError("give run directories, a folder of them, or a .csv")
    where = dict(_pair("--where", item) for item in laws.where)
    if any(path.suffix == ".csv" for path in laws.paths):
        if len(laws.paths) > 1 or where or laws.loss != ("bpd_8bit",):
            raise InputError("a .csv is fitted alone, without --loss and --where: --columns tells what its columns are")
        columns = dict(_pair("--columns", item) for item in laws.columns)
        tables = {columns.get("loss", "loss"): runs.read_csv(next(iter(laws.paths)), columns)}
    else:
        if laws.columns:
            raise InputError("--columns is for a .csv")
        tables = {loss: runs.read(laws.paths, loss, where) for loss in laws.loss}
    studies = {}
    for name, found in tables.items():
        with progress_bar(f"bootstrap of {name}") as bar:
            task = bar.add_task("", total=laws.bootstraps, note="")
            studies[name] = fitting.study(found, laws.bootstraps, laws.seed, lambda: bar.advance(task))  # noqa: B023
    return studies


def _pair(option: str, text: str) -> tuple[str, str]:
    name, is_there, value = text.partition("=")
    if not (name and is_there and value):
        raise InputError(f"{option} wants NAME=VALUE; got {text}")
    return name, value


def fit(args: Sequence[str]) -> ExitCode:
    """RUNS… | TABLE.csv --columns N=… D=… loss=… [--loss L] [--json]: scaling laws with intervals and warnings"""
    parsed = parse(_Fit, args, "pixtok fit")
    from pixtok.scaling import tables

    points = [_point(text) for text in parsed.predict]
    for c in parsed.budgets:
        if not 0 < c < float("inf"):
            raise InputError(f"--budgets must be positive; got {c}")
    studies = _studies(parsed.laws)
    if parsed.json:
        print(
            json.dumps(
                {name: tables.as_json(study, parsed.budgets, points) for name, study in studies.items()}, indent=2
            )
        )
        return ExitCode.DONE
    for name, study in studies.items():
        shown = [tables.quality(study), tables.parameters(study), tables.approaches(study)]
        shown += [tables.budgets(study, parsed.budgets), *([tables.predictions(study, points)] if points else [])]
        print(f"{name}: {study.runs.meaning['L']}\n\n" + "\n\n".join(map(table, shown)))
        print("\n".join(["", *(f"warning: {text}" for text in study.warnings), ""]))
    return ExitCode.DONE


def _point(text: str) -> tuple[float, float]:
    try:
        n, d = map(float, text.split(":"))
        if not 0 < min(n, d) <= max(n, d) < float("inf"):
            raise ValueError(text)
    except ValueError:
        raise InputError(f"--predict wants N:D, like 3e6:1e9; got {text}") from None
    return n, d


@dataclass(frozen=True)
class _Report:
    laws: Annotated[_Laws, tyro.conf.arg(name="")]
    out: Path = Path("report.html")
    """The page."""
    title: str = "Scaling laws"
    """Its headline."""
    samples: tuple[Path, ...] = field(default_factory=tuple)
    """Pictures to show, .png."""


def report(args: Sequence[str]) -> ExitCode:
    """RUNS… [--loss L …] [--out PAGE.html] [--samples PNG …]: laws, figures and checklist on one page"""
    parsed = parse(_Report, args, "pixtok report")
    from pixtok.scaling import report as reporting

    for path in parsed.samples:
        if path.suffix.lower() != ".png" or not path.is_file():
            raise InputError(f"--samples wants .png files; got {path}")
    studies = _studies(parsed.laws)
    command = shlex.join(["pixtok", "report", *args])
    page = reporting.whole(studies, [command], parsed.samples, parsed.title)
    write(parsed.out, page.encode())
    print(parsed.out)
    return ExitCode.DONE
