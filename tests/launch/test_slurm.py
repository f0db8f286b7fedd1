"""launch/slurm.sbatch on a real Slurm of one node."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import one_node_slurm
from helpers import QUICK, ROOT

EXPERIMENT = '''
from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train


def config():
    return Experiment(
        "tiny",
        Model(Stream(16, 1, 2, 1), Stream(16, 1, 2, 1), Stream(16, 1, 2, 1), fold_factor=64, window=4),
        Data({path!r}, slots=96, windows=24),
        Train(steps={steps}, batch_size=4, learning_rate=1e-2, warmup_steps=2, dtype="float32", remat="none",
              log_every=1, eval_every={steps}, eval_batches=2),
        Checkpoint(every=1000, keep=2),
    )
'''
STEPS = 400


@pytest.fixture(scope="module")
def slurm():
    reason = one_node_slurm.missing()
    if reason is not None:
        pytest.skip(reason)
    with one_node_slurm.cluster() as env:
        yield env


class Jobs:
    """Jobs of launch/slurm.sbatch with two processes of a CPU device each, in one folder."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        pixtok = folder / "my pixtok"
        pixtok.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pixtok "$@"\n')
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

    def submit(self, *arguments: object) -> str:
        script = ROOT / "launch" / "slurm.sbatch"
        return self.call("sbatch", "--parsable", "--ntasks=2", "--output=%j.log", script, *arguments)

    def log(self, job: str) -> str:
        file = self.folder / f"{job}.log"
        return file.read_text() if file.exists() else ""

    def state(self, job: str) -> dict[str, str]:
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, done, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, (self.state(job), self.log(job))
            time.sleep(0.2)

    def ends(self, job: str) -> str:
        """Wait until a job is over → its state."""
        self.wait(job, lambda: self.state(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
        return self.state(job)["JobState"]


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each training step; a step that was done twice would be one line too many."""
    file = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    steps = [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]
    assert len(steps) == len(dict(steps))
    return dict(steps)


@pytest.mark.slow
def test_preempted_and_queued_again_is_never_preempted(slurm, dataset, tmp_path):
    """A job of higher priority takes the node; Slurm's log says so, and the losses say nothing of it.

    In the same queue: a job that is cancelled stays so, and bad input is not tried again.
    """
    jobs = Jobs(tmp_path, slurm)
    experiment = tmp_path / "my experiment.py"
    experiment.write_text(EXPERIMENT.format(path=str(dataset), steps=STEPS))

    undisturbed = jobs.submit(experiment, "--run_dir", "a run")
    assert jobs.ends(undisturbed) == "COMPLETED", jobs.log(undisturbed)

    job = jobs.submit(experiment, "--run_dir", "another run")
    jobs.wait(job, lambda: len(losses(tmp_path / "another run")) > 3)
    jobs.call("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")
    assert jobs.ends(job) == "COMPLETED", jobs.log(job)
    assert jobs.state(job)["Restarts"] == "1"
    log = jobs.log(job)
    assert "exit code 75, queued again" in log
    assert "1: " in log  # lines of the second process

    expected, got = losses(tmp_path / "a run"), losses(tmp_path / "another run")
    assert sorted(got) == sorted(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([got[step] for step in expected], list(expected.values()), rtol=0, atol=1e-5)

    cancelled = jobs.submit(experiment, "--run_dir", "a third run")
    jobs.wait(cancelled, lambda: len(losses(tmp_path / "a third run")) > 3)
    jobs.call("scancel", cancelled)
    assert jobs.ends(cancelled) == "CANCELLED"
    wrong = jobs.submit(experiment, "--train.no_such_thing", "1")
    assert jobs.ends(wrong) == "FAILED"
    assert jobs.state(wrong)["ExitCode"] == "2:0"
    for over in (cancelled, wrong):
        assert jobs.state(over)["Restarts"] == "0", jobs.log(over)
