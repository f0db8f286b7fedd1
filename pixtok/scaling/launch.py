"""Run what is planned, on what is there: one after another, or as an array of Slurm jobs.

A run that ended is not run again; one that was stopped goes on; one that failed stays failed until it is asked for.
"""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

from pixtok.errors import ExitCode, InputError
from pixtok.metrics import read
from pixtok.scaling.plan import Plan, Planned
from pixtok.signals import StopRequest

_STOPPED = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)


class State(NamedTuple):
    """Of a run."""

    done: bool
    failed: int | None
    """The exit code with which it ended last here, where that was a failure."""


def run_dir(folder: Path, number: int) -> Path:
    """Of run `number`, from 1."""
    return folder / "runs" / str(number)


def _done(folder: Path, number: int, planned: Planned) -> bool:
    try:
        return json.loads((run_dir(folder, number) / "summary.json").read_text())["step"] >= planned.steps
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def state(folder: Path, number: int, planned: Planned) -> State:
    """What became of it so far."""
    if _done(folder, number, planned):
        return State(True, None)
    codes = [line["code"] for line in read(epath.Path(folder / "launch.jsonl")) if line["run"] == number]
    return State(False, codes[-1] if codes and codes[-1] not in _STOPPED else None)


def waiting(folder: Path, plan: Plan, retry: bool) -> tuple[list[int], list[int]]:
    """(Runs to make, runs that failed and are not asked for)."""
    states = [state(folder, number, run) for number, run in enumerate(plan.runs, 1)]
    failed = [number for number, one in enumerate(states, 1) if one.failed is not None]
    wanted = [number for number, one in enumerate(states, 1) if not one.done and (retry or number not in failed)]
    return wanted, [] if retry else failed


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises InputError where another launch of this plan is at work."""
    with (folder / "launch.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another `pixtok launch` is at work in {folder}") from None
        yield


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    lane: int
    """Which share of the cores it has."""
    since: float


def _start(folder: Path, plan: Plan, number: int, lane: int, parallel: int) -> _Running:
    log = run_dir(folder, number).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pixtok", "train", plan.experiment, *plan.runs[number - 1].options]
    cores = sorted(os.sched_getaffinity(0))[lane::parallel] if hasattr(os, "sched_getaffinity") else []
    if parallel > 1 and cores and shutil.which("taskset"):
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--run_dir", str(run_dir(folder, number))],
            stdout=file,
            stderr=file,
            start_new_session=True,  # a Ctrl-C here is passed on once, not sent by the terminal as well
        )
    return _Running(process, lane, time.monotonic())


def local(folder: Path, plan: Plan, parallel: int, retry: bool, say: Callable[[str], None]) -> ExitCode:
    """One after another, or some at a time, each with its share of the cores; cheapest first.

    What they print goes to FOLDER/runs/NUMBER.log.  A request to stop is passed on, and waits for them to save.
    Raises InputError.
    """
    if not Path(plan.experiment).is_file():
        raise InputError(f"no {plan.experiment} here: launch from the folder in which the plan was made")
    with _alone(folder), StopRequest() as stop:
        todo, failed = waiting(folder, plan, retry)
        say(f"{len(plan.runs) - len(todo) - len(failed)} of {len(plan.runs)} runs are done, {len(todo)} to go")
        total, spent, begin = sum(plan.runs[number - 1].c for number in todo), 0.0, time.monotonic()
        running: dict[int, _Running] = {}
        stopped = ExitCode.DONE
        try:
            while running or (todo and not stopped):
                while todo and len(running) < parallel and not stopped:
                    free = min(set(range(parallel)) - {one.lane for one in running.values()})
                    running[todo[0]] = _start(folder, plan, todo[0], free, parallel)
                    todo.pop(0)
                if stop.code and not stopped:
                    stopped = ExitCode(stop.code)
                    _end(running)
                for number in [number for number, one in running.items() if one.process.poll() is not None]:
                    one = running.pop(number)
                    code, seconds = one.process.returncode, time.monotonic() - one.since
                    if stopped and code == -signal.SIGTERM:  # before it could save: there was nothing yet
                        code = int(ExitCode.PREEMPTED)
                    with (folder / "launch.jsonl").open("a") as file:
                        file.write(json.dumps({"run": number, "code": code, "seconds": round(seconds, 1)}) + "\n")
                    spent += plan.runs[number - 1].c
                    left = (time.monotonic() - begin) / spent * (total - spent) / 60
                    if code in _STOPPED:
                        stopped, what = stopped or ExitCode(code), "was stopped, and saved"
                    elif code == 0 and _done(folder, number, plan.runs[number - 1]):
                        what = "ended"
                    else:
                        what = f"FAILED with exit code {code}, see {run_dir(folder, number)}.log"
                        failed.append(number)
                    say(f"run {number} {what} after {seconds:.0f} s; about {left:.0f} minutes left")
                time.sleep(0.2)
        finally:
            _end(running)
            for one in running.values():
                one.process.wait()
    if failed:
        say(f"failed: {', '.join(map(str, sorted(failed)))}; --retry runs them again")
    return stopped or (ExitCode.BUG if failed else ExitCode.DONE)


def _end(running: dict[int, _Running]) -> None:
    for one in running.values():
        one.process.terminate()


def slurm(folder: Path, plan: Plan, script: Path, options: str, retry: bool) -> Iterator[str]:
    """The command of an array of jobs, one for each run that is not done; it is given to Slurm when that is here.

    Runs that failed in jobs are in Slurm's own account: all that did not end are submitted again.  Raises InputError.
    """
    todo, _ = waiting(folder, plan, retry)
    if not script.is_file():
        raise InputError(f"no {script}: give --script, the path of launch/slurm.sbatch of pixtok's repository")
    if not todo:
        yield "all runs are done"
        return
    command = ["sbatch", "--parsable", f"--array={','.join(map(str, todo))}", *shlex.split(options), str(script)]
    command += ["--sweep", str(folder / "sweep.txt"), plan.experiment, "--run_dir", str(folder / "runs")]
    yield shlex.join(command)
    if shutil.which("sbatch") is None:
        raise InputError("there is no sbatch here: run this command where there is one")
    with _alone(folder):
        file = folder / "slurm.job"
        if file.exists() and _slurm("squeue", "--noheader", f"--jobs={file.read_text()}", missing_is_done=True):
            raise InputError(f"job {file.read_text()} of this plan is still in the queue: scancel it, or wait for it")
        job = _slurm(*command).split(";")[0]
        file.write_text(job)
    yield f"job {job}"


def _slurm(*command: str, missing_is_done: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not missing_is_done:  # squeue fails for a job that is long over
        raise InputError(f"{command[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()
