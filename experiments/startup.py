"""How long `pixtok train` takes from the start of its process until its second step is done, on the demo.

python experiments/startup.py [ROUNDS]       # 2 minutes on 2 cores; ROUNDS 3

Once with no compiled programs on disk, then ROUNDS times with those that the first start left; evaluation before the
first step included.  All goes to a temporary folder.  Prints a line for each start: the seconds, where they went, and
seconds of the CPU in all, also after the second step.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from pixtok.data.build import Settings, build

DEMO = Path(__file__).with_name("demo.py")


def start(folder: Path, number: int) -> dict[str, float]:
    """One start → seconds."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    run_dir, before = folder / str(number), resource.getrusage(resource.RUSAGE_CHILDREN)
    options = {"run_dir": run_dir, "data.path": folder / "glyphs", "train.steps": 2, "train.warmup_steps": 1}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "pixtok", "train", str(DEMO), *flags]
    subprocess.run(command, env=env | {"XDG_CACHE_HOME": str(folder)}, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads((run_dir / "summary.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = {"second_step": summary["seconds_to_second_step"], **summary["seconds"], "cpu": cpu}
    return {kind: round(value, 1) for kind, value in seconds.items()}


def main(rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build("glyphs", Path(folder) / "glyphs", Settings(image_size=64))
        for number in range(rounds + 1):
            line = {"compiled before": number > 0, **start(Path(folder), number)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
