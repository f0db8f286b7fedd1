"""Programs that only note how they were called."""

import json
import os
import sys
from pathlib import Path

import pytest

FAKE = f"""#!{sys.executable} -IS
import fcntl, json, os, pathlib, signal, sys, time
folder = pathlib.Path(__file__).parents[1]
name = pathlib.Path(__file__).name
number = os.environ.get("JAX_PROCESS_ID", "0")
stdin = sys.stdin.read() if "-" in sys.argv else None
signals = []
for which in (signal.SIGTERM, signal.SIGINT):
    signal.signal(which, lambda given, _: signals.append(given))
with (folder / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    script = folder / f"{{name}}.{{number}}"
    steps = json.loads(script.read_text()) if script.exists() else []
    step = steps.pop(0) if steps else 0
    script.write_text(json.dumps(steps))
    env = {{key: os.environ[key] for key in os.environ if key.startswith(("JAX_", "PIXTOK_", "SRUN_"))}}
    call = {{"program": name, "args": sys.argv[1:], "env": env, "stdin": stdin}}
    with (folder / "calls").open("a") as calls:
        calls.write(json.dumps(call) + chr(10))
if isinstance(step, str):
    step, _, other = step.partition(" after ")
    while other and f'"program": "{{other}}"' not in (folder / "calls").read_text():
        time.sleep(0.02)
    print(step, flush=True)
    if step != "wait":
        sys.exit()
    deadline = time.monotonic() + 60
    while not signals and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    print("signals:", *signals, flush=True)
    sys.exit({{(15,): 75, (2,): 130}}.get(tuple(signals), 1))
if step < 0:
    os.kill(os.getpid(), -step)
sys.exit(step)
"""
NAMES = ("pixtok", "srun", "squeue", "scontrol", "sbatch", "gcloud", "kubectl", "curl")


class Programs:
    """Fake programs on a PATH.  A script is what the calls of one do in turn: exit with a code, die by a signal

    (negative), print a text, or "wait" for SIGTERM or SIGINT and exit as pixtok does; at its end all exit with 0.
    Of "A after B", A is printed once B was called and heeds signals.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name in NAMES:
            file = folder / "bin" / name
            file.write_text(FAKE)
            file.chmod(0o755)
        nap = folder / "bin" / "sleep"
        nap.write_text("#!/bin/sh\nexec /bin/sleep 0.05\n")
        nap.chmod(0o755)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "SLURM_", "PIXTOK"))}
        self.env = clean | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def script(self, name: str, *steps: int | str, process: int = 0) -> None:
        """What the calls of a program do, of its process in a job."""
        (self.folder / f"{name}.{process}").write_text(json.dumps(steps))

    def calls(self, name: str | None = None) -> list[dict]:
        """The calls so far, of one program or of all."""
        file = self.folder / "calls"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [call for call in found if name in (None, call["program"])]


@pytest.fixture
def programs(tmp_path) -> Programs:
    (tmp_path / "programs").mkdir()
    return Programs(tmp_path / "programs")
