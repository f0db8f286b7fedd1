"""All that a GPU is wanted for, in one command: `make h100 OUT=DIR [MINUTES=9] [TINY=1]`.

Kernels (numerics, then times), the training step of `upw-image` and of three sizes of the family with a profile of
each, and a short real training run. Every part is a process of its own: one that fails, or takes too long, leaves the
others alone. Each result goes to OUT/h100.jsonl the moment it is there; a table comes last. Needs jax and what training
needs; where something is missing (grain, for the real run) its part fails and says so. TINY=1: the same at sizes that a
CPU does in minutes, to see that nothing fails for a typo.

Predicted for an H100 (989 TFLOP/s, 3.35 TB/s): the floors of kernels are in kernels/README.md; upw-image takes 11.06
TFLOP a row and step, so 22 ms at half of the peak. Measured: nothing yet.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "kernels" / "bench.py"


class Part(NamedTuple):
    """One process."""

    name: str
    command: list[str]
    share: float
    """Of all minutes, at most."""


def parts(out: Path, minutes: float, tiny: bool) -> Iterator[Part]:
    kernels = [str(BENCH), "--device", "cpu" if tiny else "gpu", "--minutes", str(0.35 * minutes)]
    yield Part("kernels", [*kernels, "--out", str(out / "gca.jsonl")], 0.42)
    sizes = {"upw-image": 16, "family-768": 32, "family-1024": 32, "family-2048": 8}
    for name, rows in ({"tiny": 1, "family-128": 1} if tiny else sizes).items():
        yield Part(
            f"train {name}",
            [__file__, "train", name, str(rows), "32" if tiny else "224", str(out)],
            0.5 if tiny else 0.12,
        )
    yield Part("demo", [__file__, "demo", str(out), "4" if tiny else "120"], 0.3)


def train(name: str, rows: int, size: int, out: Path) -> dict[str, Any]:
    """One preset's training step, with the most of `rows`, `rows` / 2, … that fits."""
    from pixtok.bench.settings import Settings
    from pixtok.bench.train import measure
    from pixtok.errors import InputError

    while True:
        settings = Settings(rows=rows, size=size, remat="attention", split=True, keep=out / f"profile-{name}")
        try:
            return measure(name, settings)
        except InputError as error:
            print(error, file=sys.stderr)
            if rows == 1:
                raise
            rows //= 2


def demo(out: Path, steps: int) -> dict[str, Any]:
    """The demo, trained for real."""
    pixtok = [sys.executable, "-m", "pixtok"]
    data, run = out / "glyphs", out / "demo"
    subprocess.run([*pixtok, "data", "build", "glyphs", str(data), "--image_size", "64"], check=True, stdout=sys.stderr)
    command = [*pixtok, "train", str(ROOT / "experiments" / "demo.py"), "--data.path", str(data), "--run_dir", str(run)]
    settings = ["--train.steps", str(steps), "--train.warmup_steps", str(steps // 10)]
    subprocess.run([*command, *settings], check=True, stdout=sys.stderr)
    return json.loads((run / "summary.json").read_text())


def run(out: Path, minutes: float, tiny: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    begin, results = time.monotonic(), []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    }
    for part in parts(out, minutes, tiny):
        left = 60 * minutes - (time.monotonic() - begin)
        limit, start = min(left, 60 * minutes * part.share), time.monotonic()
        line: dict[str, Any] = {"part": part.name}
        command = [sys.executable, *part.command]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        try:
            text, _ = process.communicate(timeout=max(limit, 1))
            line["rc"] = process.returncode
            if part.name != "kernels" and not process.returncode:
                line["result"] = json.loads(text)
        except subprocess.TimeoutExpired:
            line["rc"] = f"stopped after {limit:.0f} s"
        except json.JSONDecodeError as error:
            line["rc"] = f"no JSON: {error}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it left
            process.wait()
        line["seconds"] = round(time.monotonic() - start, 1)
        results.append(line)
        with (out / "h100.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{part.name}: {line['rc']}, {line['seconds']} s", file=sys.stderr, flush=True)
    for line in results:
        found = line.get("result", {})
        told = {name: found[name] for name in ("device", "rows", "step_s", "mfu", "GiB", "devices") if name in found}
        print(line["part"], f"rc {line['rc']}", f"{line['seconds']} s", json.dumps(told))
    if any(line["rc"] for line in results):
        sys.exit(1)


def main(args: list[str]) -> None:
    if args[0] == "train":
        print(json.dumps(train(args[1], int(args[2]), int(args[3]), Path(args[4]))))
    elif args[0] == "demo":
        print(json.dumps(demo(Path(args[1]), int(args[2]))))
    else:
        run(Path(args[0]), float(args[1]), args[2] == "1")


if __name__ == "__main__":
    main(sys.argv[1:])
