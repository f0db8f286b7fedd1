"""The training loop."""

import contextlib
import json
import math
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from pixtok import cluster, likelihood, programs, sharding, weights
from pixtok.checkpoint import Checkpoints
from pixtok.config import Experiment, flatten, validate
from pixtok.data import mixture
from pixtok.data.pipeline import Bad, Batch, Loader
from pixtok.errors import ExitCode, InputError, NotFiniteError, TooLargeError
from pixtok.files import Lines, location
from pixtok.goodput import Ledger, age
from pixtok.goodput import describe as describe_goodput
from pixtok.hardware import peak
from pixtok.metrics import SEEN, Live, Writer, describe, rate, read
from pixtok.profile import Trace
from pixtok.run import Run, check_alike, check_resumable, identity, write_json
from pixtok.run import describe as describe_run
from pixtok.signals import StopRequest
from pixtok.step import Metrics, Program, State
from pixtok.watchdog import Watchdog


class _BadLog:
    """`bad.jsonl`: documents that could not be decoded, each once; of another process than 0, `bad-PROCESS.jsonl`."""

    def __init__(self, run_dir: epath.Path, limit: float) -> None:
        """Raise once this process has found more than `limit` documents bad."""
        self._path, self._limit = run_dir / (f"bad-{cluster.index()}.jsonl" if cluster.index() else "bad.jsonl"), limit
        before = read(self._path)  # without a last line that a kill cut short
        self._known = {line["document"] for line in before}
        self._file = Lines(self._path, [json.dumps(line) for line in before])

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, their bad documents noted."""
        for batch in batches:
            self.add(batch.bad)
            yield batch

    def add(self, bad: list[Bad]) -> None:
        fresh = {item.document: item for item in bad if item.document not in self._known}
        for item in fresh.values():
            self._file.add(json.dumps(item._asdict()))
        self._known |= set(fresh)
        if len(self._known) > self._limit:
            raise InputError(
                f"{len(self._known)} documents could not be decoded, which is more than data.max_bad allows; they are "
                f"named in {self._path}: build the data set again, or raise --data.max_bad"
            )

    def __enter__(self) -> "_BadLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Trainer:
    """One call of `pixtok train`, on each process of a job: all is checked before anything is written."""

    def __init__(
        self,
        experiment: Experiment,
        run_dir: epath.PathLike,
        *,
        init: epath.PathLike | None = None,
        command: Sequence[str] = (),
    ) -> None:
        """Raises InputError."""
        self.ledger = Ledger()
        validate(experiment)
        self.experiment, self.run_dir, self._command = experiment, location(run_dir), list(command)
        self.second_step: float | None = None
        """Seconds from the start of the process until this start's second step was done."""
        self._init = None if init is None else _init_run(Run(epath.Path(init)), experiment)

    def _prepare(self) -> None:
        """Open and check all that there is, before anything is written."""
        experiment = self.experiment
        train, data = experiment.train, experiment.data
        loader = {"data": data, "model": experiment.model, "batch_size": train.batch_size, "seed": train.seed}
        self.loader = Loader(**loader, split="train")
        validation = any(dataset.manifest.documents["validation"] for dataset in self.loader.datasets)
        self._validation = Loader(**loader, split="validation") if validation else None
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise InputError(f"{self.run_dir} is a file: give another --run_dir")
        self._manifest = describe_run(experiment, self.loader.datasets, self._command)
        if self._init is not None and self._init.vocabulary_fingerprint != self._manifest["data"]["vocabulary"]:
            raise InputError(
                f"{self._init.path} knows another vocabulary than {data.path}: build that with the run's --vocabulary"
            )
        self._before = None if Run(self.run_dir).is_new else Run(self.run_dir)
        if self._before is not None and self._before.begun:  # else it has nothing to lose
            check_resumable(self.run_dir, self._before.content, self._manifest)
        # Nobody writes before all have looked; and who asks jax for devices waits in C++ for all to ask.
        check_alike(cluster.barrier("checked", experiment.deadline.start, identity(self._manifest)))
        self._mesh = sharding.make_mesh(experiment.mesh)
        self.program = Program(experiment, self._mesh)

    @contextlib.contextmanager
    def _phase(self, kind: str, seconds: float) -> Iterator[None]:
        """Count the time, and end the process when it takes too long.  Raises TooLargeError."""
        with self.ledger.count(kind), self._watchdog.phase(kind, seconds):
            try:
                yield
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                text = next((line for line in str(error).splitlines() if line), "")
                raise TooLargeError(
                    f"`{kind}` does not fit the memory of {jax.devices()[0].device_kind} ({text}): more "
                    "--train.microbatches, --train.remat block, a larger --mesh.fsdp, or a smaller --train.batch_size; "
                    "`pixtok compile` tells which is enough"
                ) from error

    def run(self) -> ExitCode:
        """Join the job that the environment tells of; train to the last step, or until asked to stop.

        Raises InputError, NotFiniteError, DeadlineError, TooLargeError.
        """
        experiment, steps = self.experiment, self.experiment.train.steps
        deadline = experiment.deadline
        with self.ledger.count("initialise"):
            cluster.join(deadline.start, deadline.peer)
            programs.keep()
        silent = not cluster.lead()
        with contextlib.ExitStack() as stack:
            self._watchdog = stack.enter_context(Watchdog(deadline, self.run_dir))
            stop = stack.enter_context(StopRequest())
            # Longer than the barrier within, which knows who is missing.
            with self._phase("initialise", 2 * deadline.start):
                self._prepare()
            checkpoints = stack.enter_context(
                Checkpoints(self.run_dir / "checkpoints", experiment.checkpoint, deadline.save)
            )
            state, start = self._first_state(checkpoints)
            if start < steps and not silent:
                write_json(self.run_dir / "config.json", self._manifest)
            with (
                Writer(self.run_dir, start, silent=silent) as writer,
                Live(start, steps, silent=silent) as live,
                _BadLog(self.run_dir, self._most_bad()) as bad,
            ):
                self._announce(start, live)
                self.ledger.resume(self.run_dir, writer.lost)
                if start >= steps:
                    live.say(f"nothing to do: train.steps = {steps}")
                    if not silent and not (self.run_dir / "summary.json").exists():  # killed after its last checkpoint
                        self._summarise(start, start, writer)
                    return ExitCode.DONE
                if not silent:
                    self.ledger.write(self.run_dir, now=True)  # a start that is killed counts as one
                done, state, code = self._loop(state, start, stop, checkpoints, writer, live, bad)
                with self._phase("save", deadline.save):
                    if checkpoints.latest() != done:
                        writer.flush()
                        checkpoints.save(done, state, self._manifest | {"mixture": self.loader.stages})
                        checkpoints.latest()
                if not silent:
                    self._summarise(done, start, writer)
                live.say(describe_goodput(self.ledger.total()))
                if done < steps:
                    live.say(f"stopped after step {done} of {steps}, all saved; to go on: {shlex.join(self._command)}")
                    return code
        return ExitCode.DONE

    def _most_bad(self) -> float:
        """Documents that this process may find bad: its share, for each decodes about as many as any other."""
        return self.experiment.data.max_bad * sum(map(len, self.loader.datasets)) / cluster.count()

    def _announce(self, start: int, live: Live) -> None:
        model = f"{rate(self.program.parameters)} parameters"
        filled = f"slots {self.loader.slot_share:.1%} and windows {self.loader.window_share:.1%} filled"
        data = f"{self.loader.documents} documents in {self.loader.row_count} rows ({filled})"
        processes = f" in {cluster.count()} processes" if cluster.count() > 1 else ""
        live.say(f"{self.run_dir}: {model}, {data}, {jax.device_count()} {jax.devices()[0].device_kind}{processes}")
        if start:
            live.say(f"resumed after step {start}{'' if self._init is None else '; --init is for a new run'}")
        steps = self.experiment.train.steps
        if start and self._before is not None and self._before.experiment.train.steps != steps:
            old = self._before.experiment.train.steps
            live.say(f"train.steps was {old} and is {steps}: the learning rate now falls until there")
        first, weights = self.loader.stages[-1]
        if start and first == start:
            live.say(f"from here on rows come from the data sets by the weights {', '.join(f'{w:g}' for w in weights)}")
        if start and self._before is not None:
            was, now = self._before.content["versions"], self._manifest["versions"]
            if changed := [f"{name} {was.get(name)}, now {now[name]}" for name in now if was.get(name) != now[name]]:
                live.say(f"it began with other versions, and may go on a little differently: {'; '.join(changed)}")

    def _first_state(self, checkpoints: Checkpoints) -> tuple[State, int]:
        seconds = self.experiment.deadline.restore
        latest = checkpoints.latest()
        if latest is not None:
            with self._phase("restore", seconds):
                manifest = checkpoints.manifest(latest)
                check_resumable(checkpoints.folder / str(latest), manifest, self._manifest)
                _, now = self.loader.stages[-1]
                self.loader.follow(mixture.resumed(manifest["mixture"], latest, now))
                return jax.block_until_ready(checkpoints.restore(latest, self.program.abstract)), latest
        with self._phase("initialise", seconds):
            state = self.program.init()
            if self._init is not None:
                begun = weights.initial(self._init, self.experiment, self._mesh, self.program.abstract.params)
                state = state.replace(params=begun)
            return jax.block_until_ready(state), 0

    def _loop(
        self,
        state: State,
        start: int,
        stop: StopRequest,
        checkpoints: Checkpoints,
        writer: Writer,
        live: Live,
        bad: _BadLog,
    ) -> tuple[int, State, ExitCode]:
        """→ (steps done, the state after them, what to exit with).

        Reads the figures of a step only once the next is under way.
        """
        train, checkpoint, deadline = self.experiment.train, self.experiment.checkpoint, self.experiment.deadline
        log = _StepLog(self, start, writer, live, checkpoints)
        done = start
        if start == 0:
            self._evaluate(state, 0, writer, live, bad)
        # One process may stop at once; several must first hear of it from each other, in the figures of a step.
        alone = cluster.count() == 1
        with (
            Trace(self.experiment.profile, self.run_dir) as trace,
            self.loader.stream(start, self.program.positions) as batches,
        ):
            while done < train.steps and not log.stop and not (alone and stop.code):
                if done + 1 in trace.turns:
                    with self._phase("profile", deadline.save):
                        trace.turn(done + 1, state)
                first = done == start
                with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
                    with self._phase("first_data" if first else "data", deadline.step):
                        batch = next(batches)
                    bad.add(batch.bad)
                    with self._phase("compile", deadline.compile) if first else self._phase("step", deadline.step):
                        state, metrics = self.program.train_step(state, self.program.put(batch.rows), stop.code)
                        done += 1
                        if first:
                            jax.block_until_ready(metrics)
                        log.read()
                self.ledger.steps += 1
                self._watchdog.at(done)
                log.pending = (done, metrics)
                evaluating = done % train.eval_every == 0 or done == train.steps
                saving = done % checkpoint.every == 0 or done == train.steps
                if evaluating or saving:
                    with self._phase("step", deadline.step):
                        log.read(line=saving)
                    begin = time.perf_counter()
                    if evaluating:
                        self._evaluate(state, done, writer, live, bad)
                    if saving:
                        with self._phase("save", deadline.save):
                            writer.flush()  # what a checkpoint goes on from must not be lost
                            checkpoints.save(done, state, self._manifest | {"mixture": self.loader.stages})
                    log.skip(time.perf_counter() - begin)
                checkpoints.check()
                if not writer.silent:
                    self.ledger.write(self.run_dir)
            with self._phase("step", deadline.step):
                log.read(line=True)
        return done, state, log.stop or stop.code

    def _evaluate(self, state: State, step: int, writer: Writer, live: Live, bad: _BadLog) -> None:
        if self._validation is None:
            return
        with (
            self._phase("evaluate", self.experiment.deadline.compile),
            self._validation.epoch(self.experiment.train.eval_batches, self.program.positions) as batches,
        ):
            figures = likelihood.figures(self.program.evaluate(state.params, bad.watch(batches)), self.experiment.model)
        writer.write(step, "validation", figures)
        live.say(f"step {step}  validation: {describe(figures)}")

    def _summarise(self, done: int, start: int, writer: Writer) -> None:
        seconds = self.ledger.seconds
        busy = seconds.get("step", 0.0) + seconds.get("data", 0.0)
        last = {line["split"]: line for line in writer.lines}
        untrained = next((line for line in writer.lines if line["split"] == "validation" and line["step"] == 0), None)
        self.ledger.write(self.run_dir, now=True)
        write_json(
            self.run_dir / "summary.json",
            {
                "step": done,
                "steps": self.experiment.train.steps,
                "parameters": self.program.parameters,
                "untrained": untrained,
                "train": last.get("train"),
                "validation": last.get("validation"),
                "seen": {name: (last.get("train") or {}).get(name) for name in SEEN},
                "documents": self.loader.documents,
                "rows": self.loader.row_count,
                "slots_filled": self.loader.slot_share,
                "windows_filled": self.loader.window_share,
                "resumed_from": start,
                "seconds": dict(seconds),
                "seconds_to_second_step": self.second_step,
                "waiting_for_data": seconds.get("data", 0.0) / busy if busy else None,
                "goodput": self.ledger.total(),
                "processes": cluster.count(),
                "devices": [device.device_kind for device in jax.devices()],
            },
        )


class _StepLog:
    """Reads the figures of a step while the next one runs; stops the run when they are not finite."""

    def __init__(self, trainer: Trainer, start: int, writer: Writer, live: Live, checkpoints: Checkpoints) -> None:
        self._trainer, self._start = trainer, start
        self._writer, self._live, self._checkpoints = writer, live, checkpoints
        self.pending: tuple[int, Metrics] | None = None
        self.stop = ExitCode.DONE
        """What a process was asked to exit with, in the latest step read; of all processes the same."""
        self._before = max((line.get("seconds", 0.0) for line in writer.lines), default=0.0)
        self._begin = self._mark = time.perf_counter()
        self._timed = np.zeros(3)
        """Pixels, words and FLOPs of the steps since the mark."""
        last = next((line for line in reversed(writer.lines) if line["split"] == "train"), {})
        # Unknown, and so left out, where a run goes on that began before they were counted.
        known = not last or set(SEEN) <= set(last)
        self._total = np.array([last.get(name, 0.0) for name in SEEN]) if known else None
        one = peak(jax.devices()[0].device_kind)
        self._peak = None if one is None else one * jax.device_count()

    def read(self, line: bool = False) -> None:
        """`line`: write one whatever the step, for what is saved after it."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        if step == self._start + 2:
            self._trainer.second_step = age()
        self.stop = ExitCode(int(metrics.stop))
        model = self._trainer.experiment.model
        figures = {name: float(value) for name, value in likelihood.figures(metrics.sums, model).items()}
        if not all(map(math.isfinite, (*figures.values(), float(metrics.grad_norm)))):
            self._fail(step, figures | {"grad_norm": float(metrics.grad_norm)})
        seen, now = np.array([metrics.pixels, metrics.words, metrics.flops]), time.perf_counter()
        if self._total is not None:
            self._total += seen
        if step == self._start + 1:  # its time was the compiler's
            self._mark = now
        else:
            self._timed += seen
        train = self._trainer.experiment.train
        if step % train.log_every and step != train.steps and not line:
            return
        figures |= {
            "lr": float(metrics.learning_rate),
            "grad_norm": float(metrics.grad_norm),
            "seconds": self._before + now - self._begin,
        }
        if self._total is not None:
            figures |= dict(zip(SEEN, self._total.tolist(), strict=True))
        if self._timed.any():
            pixels, words, flops = self._timed / (now - self._mark)
            figures |= {"pixels_per_s": pixels, "words_per_s": words}
            if self._peak is not None:
                figures["mfu"] = flops / self._peak
        self._mark, self._timed = now, np.zeros(3)
        self._writer.write(step, "train", figures)
        self._live.update(step, figures)

    def skip(self, seconds: float) -> None:
        """Leave them, in which something else was done, out of the rates."""
        self._mark += seconds

    def _fail(self, step: int, figures: dict[str, Any]) -> None:
        latest = self._checkpoints.latest()
        kept = (
            f"the last good checkpoint is {self._checkpoints.folder / str(latest)}" if latest else "no checkpoint yet"
        )
        ids = self._trainer.loader.document_ids(step - 1)
        odd = ", ".join(f"{name} = {value}" for name, value in figures.items() if not math.isfinite(value))
        raise NotFiniteError(f"{odd} at step {step}; {kept}; documents of its batch: {', '.join(ids)}")


def _init_run(run: Run, experiment: Experiment) -> Run:
    """Another run of the same model, or of one that predicts pixels as well, with a checkpoint.  Raises InputError."""
    theirs, ours = dict(flatten(run.experiment.model)), dict(flatten(experiment.model))
    for name, value in ours.items():
        # Words alone want less: neither the pixel decoder nor, with a stem, the encoder's blocks.
        if theirs[name] != value and (name, value) not in (("objective", "words"), ("encoder.layers", 0)):
            raise InputError(
                f"{run.path} has model.{name} = {theirs[name]}, and this experiment has {value}: set --model.{name} "
                f"{theirs[name]} to begin with its weights"
            )
    if not run.begun:
        raise InputError(f"{run.path} holds no checkpoint yet")
    return run
