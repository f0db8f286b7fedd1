"""launch/slurm.sbatch on a real Slurm of one node."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import one_node_slurm
from helpers import QUICK, ROOT

EXPERIMENT = """
from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train


def config():
    return Experiment(
        "tiny",
        Model(Stream(16, 1, 2, 1), Stream(16, 1, 2, 1), Stream(16, 1, 2, 1), fold_factor=64, window=4),
        Data({path!r}, slots=96, windows=24),
        # The same learning rate, however many steps there are.
        Train(steps={steps}, batch_size=4, learning_rate=1e-2, warmup_steps=2, final_rate=1.0, dtype="float32",
              remat="none", log_every=1, eval_every=100_000, eval_batches=2),
        Checkpoint(every=100_000),
    )
"""
STAND_IN = """#!/bin/bash
echo "start ${SLURM_RESTART_COUNT:-0}: $*"
trap 'exit 75' TERM USR1
case $2 in
    lost) exit 4 ;;
    wrong) exit 2 ;;
    element) [[ ${SLURM_RESTART_COUNT:-0} == 0 ]] && exit 75 ;;
esac
[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || exit 0
while :; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def slurm():
    reason = one_node_slurm.missing()
    if reason is not None:
        pytest.skip(reason)
    with one_node_slurm.cluster() as env:
        yield env


class Jobs:
    """Jobs of launch/slurm.sbatch, in one folder, with a program in place of the installed pixtok."""

    def __init__(self, folder: Path, env: dict[str, str], program: str) -> None:
        self.folder = folder
        pixtok = folder / "pixtok"  # proctrack/linuxproc cannot signal a program whose name has a space
        pixtok.write_text(program)
        pixtok.chmod(0o755)
        self._env = {name: value for name, value in env.items() if not name.startswith("JAX_")} | {
            "PIXTOK": str(pixtok),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            "XLA_FLAGS": QUICK,
            "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        }

    def call(self, *command: object) -> str:
        done = subprocess.run(
            [*map(str, command)], env=self._env, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: object, options: str = "--ntasks=1") -> str:
        script = ROOT / "launch" / "slurm.sbatch"
        return self.call("sbatch", "--parsable", "--output=%A.%a.log", *options.split(), script, *arguments)

    def log(self, job: str) -> str:
        return "".join(file.read_text() for file in sorted(self.folder.glob(f"{job}.*.log")))

    def states(self, job: str) -> list[dict[str, str]]:
        """Of a job, or of each element of an array."""
        jobs = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in jobs]

    def wait(self, job: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 600
        while not done():
            assert time.monotonic() < deadline, (self.states(job), self.log(job))
            time.sleep(0.2)

    def end(self, job: str) -> list[tuple[str, str, str]]:
        """Wait until a job is over → state, exit code and number of restarts, of each element."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        self.wait(job, lambda: all(state["JobState"] in over for state in self.states(job)))
        return [(state["JobState"], state["ExitCode"], state["Restarts"]) for state in self.states(job)]


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each training step; a step that was done twice would be one line too many."""
    file = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    steps = [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]
    assert len(steps) == len(dict(steps))
    return dict(steps)


@pytest.mark.slow
def test_preempted_and_queued_again_is_never_preempted(slurm, dataset, tmp_path):
    """A job of higher priority takes the node: the log knows of it, the losses do not."""
    jobs = Jobs(tmp_path, slurm, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pixtok "$@"\n')
    experiment = tmp_path / "my experiment.py"

    def experiment_of(steps: int) -> Path:
        experiment.write_text(EXPERIMENT.format(path=str(dataset), steps=steps))
        return experiment

    job = jobs.submit(experiment_of(100_000), "--run_dir", "a run", options="--ntasks=2")
    jobs.wait(job, lambda: len(losses(tmp_path / "a run")) > 3)
    until_told = "while ! test -e enough; do sleep 0.1; done"
    jobs.call("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", f"--wrap={until_told}")
    jobs.wait(job, lambda: "exit code 75, queued again" in jobs.log(job))
    before = max(losses(tmp_path / "a run"))
    experiment_of(before + 3)
    (tmp_path / "enough").touch()
    assert jobs.end(job) == [("COMPLETED", "0:0", "1")], jobs.log(job)
    assert "2 cpu in 2 processes" in jobs.log(job)
    assert f"resumed after step {before}" in jobs.log(job)

    undisturbed = jobs.submit(experiment, "--run_dir", "another run", options="--ntasks=2")
    assert jobs.end(undisturbed) == [("COMPLETED", "0:0", "0")], jobs.log(undisturbed)
    got, expected = losses(tmp_path / "a run"), losses(tmp_path / "another run")
    assert list(got) == list(expected) == list(range(1, before + 4))
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_who_is_queued_again(slurm, tmp_path):
    """Stand-ins for pixtok, which exit as it does: Slurm's part and the script's, for each way to end."""
    jobs = Jobs(tmp_path, slurm, STAND_IN)
    (tmp_path / "sweep").write_text("--train.seed 1\n--train.seed 2 --name 'a b'\n")
    limited = jobs.submit("limited", options="--ntasks=1 --time=1")
    requeued, cancelled = jobs.submit("requeued"), jobs.submit("cancelled")
    lost, wrong = jobs.submit("lost"), jobs.submit("wrong")
    sweep = jobs.submit("--sweep", "sweep", "element", options="--ntasks=1 --array=1-2")
    for job, command in ((requeued, ["scontrol", "requeue"]), (cancelled, ["scancel"])):
        jobs.wait(job, lambda job=job: "start 0" in jobs.log(job))
        jobs.call(*command, job)
    assert jobs.end(wrong) == [("FAILED", "2:0", "0")]
    assert jobs.end(lost) == [("FAILED", "4:0", "3")]
    assert jobs.end(sweep) == [("COMPLETED", "0:0", "1")] * 2
    for seed, rest in ((1, ""), (2, " --name a b")):
        assert f"start 1: train element --train.seed {seed}{rest} --run_dir runs/element/{seed}\n" in jobs.log(sweep)
    assert jobs.end(limited) == [("COMPLETED", "0:0", "1")]
    assert jobs.end(requeued) == [("COMPLETED", "0:0", "1")]
    ((state, _, restarts),) = jobs.end(cancelled)
    assert (state, restarts) == ("CANCELLED", "0")
    assert jobs.log(cancelled).count("start") == 1
    assert not list(tmp_path.glob("*.retries"))
