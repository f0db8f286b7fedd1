"""The training loop."""

import json
import math
import shlex
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pixtok import likelihood, sharding
from pixtok.checkpoint import Checkpoints
from pixtok.config import Experiment, flatten, validate
from pixtok.data.pipeline import Bad, Batch, Loader
from pixtok.document import Rows
from pixtok.errors import ExitCode, InputError, NotFiniteError
from pixtok.metrics import Live, Writer, describe, rate
from pixtok.run import Run, write_config, write_json
from pixtok.signals import StopRequest
from pixtok.step import Metrics, Program, State


class _Clock:
    """Seconds spent by kind."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def count(self, kind: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - begin


class _BadLog:
    """`bad.jsonl`: documents that could not be decoded, each once."""

    def __init__(self, path: Path, limit: float) -> None:
        """Raise once more than `limit` documents are bad."""
        self._path, self._limit = path, limit
        path.touch()
        self._known = {json.loads(line)["document"] for line in path.read_text().splitlines()}

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, their bad documents noted."""
        for batch in batches:
            self.add(batch.bad)
            yield batch

    def add(self, bad: list[Bad]) -> None:
        fresh = {item.document: item for item in bad if item.document not in self._known}
        if not fresh:
            return
        with self._path.open("a") as file:
            file.writelines(json.dumps(item._asdict()) + "\n" for item in fresh.values())
        self._known |= set(fresh)
        if len(self._known) > self._limit:
            raise InputError(
                f"{len(self._known)} documents could not be decoded, which is more than data.max_bad allows; they are "
                f"named in {self._path}: build the data set again, or raise --data.max_bad"
            )


def _contents(rows: Rows) -> tuple[int, int]:
    """(pixels, words) in a batch."""
    slots, windows = (rows.segment_BS > 0).sum(), (rows.shape_BM2[..., 0] > 0).sum()
    return int(rows.shape_BM2.prod(-1).sum()), int(slots - windows)


class Trainer:
    """One call of `pixtok train`: everything is opened and checked before anything is written."""

    def __init__(
        self, experiment: Experiment, run_dir: Path, *, init: Path | None = None, command: Sequence[str] = ()
    ) -> None:
        """Raises InputError."""
        validate(experiment)
        self.experiment, self.run_dir, self._command = experiment, run_dir, list(command)
        train, data = experiment.train, experiment.data
        loader = {"data": data, "model": experiment.model, "batch_size": train.batch_size, "seed": train.seed}
        self.loader = Loader(**loader, split="train")
        validation = any(dataset.manifest.documents["validation"] for dataset in self.loader.datasets)
        self._validation = Loader(**loader, split="validation") if validation else None
        if run_dir.exists() and not run_dir.is_dir():
            raise InputError(f"{run_dir} is a file: give another --run_dir")
        self._before = Run(run_dir).experiment if run_dir.exists() and any(run_dir.iterdir()) else None
        if self._before is not None and Run(run_dir).begun:  # else it has nothing to lose
            Run(run_dir).check_resumable(experiment, self.loader.datasets)
        self._init = None if init is None else _init_weights(init, experiment)
        self.program = Program(experiment, sharding.make_mesh(experiment.mesh))
        self.clock = _Clock()

    def run(self) -> ExitCode:
        """Train to the last step, or until asked to stop.  Raises InputError, NotFiniteError."""
        keep = self.experiment.checkpoint.keep
        steps = self.experiment.train.steps
        with StopRequest() as stop, Checkpoints(self.run_dir / "checkpoints", keep) as checkpoints:
            state, start = self._first_state(checkpoints)
            with Writer(self.run_dir, start) as writer, Live(start, steps) as live:
                model = f"{rate(self.program.parameters)} parameters"
                data = f"{self.loader.documents} documents in {self.loader.row_count} rows"
                live.say(f"{self.run_dir}: {model}, {data}, {jax.device_count()} {jax.devices()[0].device_kind}")
                if start:
                    live.say(f"resumed after step {start}{'' if self._init is None else '; --init is for a new run'}")
                if start and self._before is not None and self._before.train.steps != steps:
                    old = self._before.train.steps
                    live.say(f"train.steps was {old} and is {steps}: the learning rate now falls until there")
                if start >= steps:
                    live.say(f"nothing to do: train.steps = {steps}")
                    return ExitCode.DONE
                write_config(self.run_dir, self.experiment, self.loader.datasets, self._command)
                done, state = self._loop(state, start, stop, checkpoints, writer, live)
                with self.clock.count("save"):
                    if checkpoints.latest() != done:
                        checkpoints.save(done, state)
                        checkpoints.latest()
                self._summarise(done, start, writer)
                if done < steps:
                    live.say(f"stopped after step {done} of {steps}, all saved; to go on: {shlex.join(self._command)}")
                    return stop.code or ExitCode.DONE
        return ExitCode.DONE

    def _first_state(self, checkpoints: Checkpoints) -> tuple[State, int]:
        with self.clock.count("initialise"):
            latest = checkpoints.latest()
            if latest is not None:
                return checkpoints.restore(latest, self.program.abstract), latest
            state = self.program.init()
            if self._init is not None:
                folder, step = self._init
                with Checkpoints(folder) as other:
                    state = state.replace(params=other.restore_params(step, self.program.abstract.params)[1])
            return jax.block_until_ready(state), 0

    def _loop(
        self,
        state: State,
        start: int,
        stop: StopRequest,
        checkpoints: Checkpoints,
        writer: Writer,
        live: Live,
    ) -> tuple[int, State]:
        """→ (steps done, the state after them).  Reads the figures of a step only once the next is under way."""
        train, checkpoint, clock = self.experiment.train, self.experiment.checkpoint, self.clock
        documents = sum(map(len, self.loader.datasets))
        bad = _BadLog(self.run_dir / "bad.jsonl", self.experiment.data.max_bad * documents)
        log = _StepLog(self, writer, live, checkpoints)
        done = start
        if start == 0:
            self._evaluate(state, 0, writer, live, bad)
        with self.loader.stream(start) as batches:
            while done < train.steps and stop.code is None:
                first = done == start
                with clock.count("first_data" if first else "data"):
                    batch = next(batches)
                bad.add(batch.bad)
                with clock.count("compile" if first else "step"):
                    state, metrics = self.program.train_step(state, self.program.put(batch.rows))
                    done += 1
                    if first:
                        jax.block_until_ready(metrics)
                    log.read()
                log.pending = (done, metrics, _contents(batch.rows))
                evaluating = done % train.eval_every == 0 or done == train.steps
                saving = done % checkpoint.every == 0 or done == train.steps
                if evaluating or saving:
                    with clock.count("step"):
                        log.read()
                if evaluating:
                    self._evaluate(state, done, writer, live, bad)
                if saving:
                    with clock.count("save"):
                        checkpoints.save(done, state)
            log.read()
        return done, state

    def _evaluate(self, state: State, step: int, writer: Writer, live: Live, bad: _BadLog) -> None:
        if self._validation is None:
            return
        with (
            self.clock.count("evaluate"),
            self._validation.epoch(self.experiment.train.eval_batches) as batches,
        ):
            figures = likelihood.figures(self.program.evaluate(state.params, bad.watch(batches)), self.experiment.model)
        writer.write(step, "validation", figures)
        live.say(f"step {step}  validation: {describe(figures)}")

    def _summarise(self, done: int, start: int, writer: Writer) -> None:
        seconds = dict(self.clock.seconds)
        busy = seconds.get("step", 0.0) + seconds.get("data", 0.0)
        last = {line["split"]: line for line in writer.lines}
        untrained = next((line for line in writer.lines if line["split"] == "validation" and line["step"] == 0), None)
        write_json(
            self.run_dir / "summary.json",
            {
                "step": done,
                "steps": self.experiment.train.steps,
                "parameters": self.program.parameters,
                "untrained": untrained,
                "train": last.get("train"),
                "validation": last.get("validation"),
                "documents": self.loader.documents,
                "rows": self.loader.row_count,
                "slots_filled": self.loader.slot_share,
                "resumed_from": start,
                "seconds": seconds,
                "waiting_for_data": seconds.get("data", 0.0) / busy if busy else None,
                "devices": [device.device_kind for device in jax.devices()],
            },
        )


class _StepLog:
    """Reads the figures of a step while the next one runs; stops the run when they are not finite."""

    def __init__(self, trainer: Trainer, writer: Writer, live: Live, checkpoints: Checkpoints) -> None:
        self._trainer, self._writer, self._live, self._checkpoints = trainer, writer, live, checkpoints
        self.pending: tuple[int, Metrics, tuple[int, int]] | None = None
        self._before = max((line.get("seconds", 0.0) for line in writer.lines), default=0.0)
        self._begin = self._mark = time.perf_counter()
        self._seen = np.zeros(2)

    def read(self) -> None:
        if self.pending is None:
            return
        (step, metrics, contents), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        model = self._trainer.experiment.model
        figures = {name: float(value) for name, value in likelihood.figures(metrics.sums, model).items()}
        if not all(map(math.isfinite, (*figures.values(), float(metrics.grad_norm)))):
            self._fail(step, figures | {"grad_norm": float(metrics.grad_norm)})
        self._seen += contents
        train = self._trainer.experiment.train
        if step % train.log_every and step != train.steps:
            return
        now = time.perf_counter()
        pixels, words = self._seen / (now - self._mark)
        figures |= {
            "lr": float(metrics.learning_rate),
            "grad_norm": float(metrics.grad_norm),
            "seconds": self._before + now - self._begin,
            "pixels_per_s": pixels,
            "words_per_s": words,
        }
        self._mark, self._seen = now, np.zeros(2)
        self._writer.write(step, "train", figures)
        self._live.update(step, figures)

    def _fail(self, step: int, figures: dict[str, Any]) -> None:
        latest = self._checkpoints.latest()
        kept = (
            f"the last good checkpoint is {self._checkpoints.folder / str(latest)}" if latest else "no checkpoint yet"
        )
        ids = self._trainer.loader.document_ids(step - 1)
        odd = ", ".join(f"{name} = {value}" for name, value in figures.items() if not math.isfinite(value))
        raise NotFiniteError(f"{odd} at step {step}; {kept}; documents of its batch: {', '.join(ids)}")


def _init_weights(init: Path, experiment: Experiment) -> tuple[Path, int]:
    """The checkpoint folder and latest step of another run of the same model.  Raises InputError."""
    run = Run(init)
    theirs, ours = dict(flatten(run.experiment.model)), dict(flatten(experiment.model))
    for name, value in ours.items():
        if theirs[name] != value:
            raise InputError(
                f"{init} has model.{name} = {theirs[name]}, and this experiment has {value}: set --model.{name} "
                f"{theirs[name]} to begin with its weights"
            )
    with Checkpoints(run.checkpoints) as checkpoints:
        latest = checkpoints.latest()
    if latest is None:
        raise InputError(f"{init} holds no checkpoint yet")
    return run.checkpoints, latest
