"""All that a GPU is wanted for, in one command: `make h100 OUT=DIR [MINUTES=9] [TINY=1]`.

Kernels (numerics, then times), the training step of `upw-image` and of three sizes of the family with a profile of
each (OUT/NAME.xplane.pb), and a short real training run, on images of known entropy. Every part is a process of its
own: one that fails, or takes longer than its share of the minutes that are left, leaves the others alone. Each result
goes to OUT/h100.jsonl the moment it is there; a table comes last. Needs jax, flax, optax, orbax-checkpoint, einops,
absl-py, jaxtyping and tokenizers, and nothing else of what `pixtok train` wants. TINY=1: the same at sizes that a CPU
does in minutes, to see that nothing fails for a typo.

Predicted for an H100 (989 TFLOP/s, 3.35 TB/s): the floors of kernels are in kernels/README.md; upw-image takes 11.06
TFLOP a row and step, so 22 ms at half of the peak. Measured: nothing yet.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "kernels" / "bench.py"


class Part(NamedTuple):
    """One process."""

    name: str
    command: list[str]
    weight: float
    """Of the minutes that are left, it gets this over the sum of its own and of those that come after it."""


def parts(out: Path, minutes: float, tiny: bool) -> list[Part]:
    kernels = [str(BENCH), "--device", "cpu" if tiny else "gpu", "--minutes", str(0.35 * minutes)]
    sizes = {"upw-image": 16, "family-768": 32, "family-1024": 32, "family-2048": 8}
    if tiny:
        kernels += ["--largest", "1024", "--lanes", "library"]
        sizes = {"tiny": 1, "family-128": 1}
    return [
        Part("kernels", [*kernels, "--out", str(out / "gca.jsonl")], 4),
        *(
            Part(f"train {name}", [__file__, "train", name, str(rows), "32" if tiny else "224", str(out)], 1.2)
            for name, rows in sizes.items()
        ),
        Part("learn", [__file__, "learn", "8" if tiny else "4000", "2" if tiny else "32"], 1.2),
    ]


def train(name: str, rows: int, size: int, out: Path) -> dict[str, Any]:
    """One preset's training step, with the most of `rows`, `rows` / 2, … that fits."""
    from pixtok.bench.settings import Settings
    from pixtok.bench.train import measure
    from pixtok.errors import InputError

    while True:
        profile = out / f"profile-{name}"
        try:
            found = measure(name, Settings(rows=rows, size=size, remat="attention", split=True, keep=profile))
            max(profile.rglob("*.xplane.pb")).rename(out / f"{name}.xplane.pb")
            shutil.rmtree(profile)
            return found
        except InputError as error:
            print(error, file=sys.stderr)
            if rows == 1:
                raise
            rows //= 2


def learn(steps: int, rows: int) -> dict[str, Any]:
    """A model of `entropy_source`, 4 images in a row: bits per pixel above what can be known.

    The batches are made here, for want of the loader's libraries.
    """
    import entropy_source as source
    import jax

    from pixtok import likelihood, sharding
    from pixtok.bench.train import batch
    from pixtok.config import Mesh
    from pixtok.step import Program

    made = source.config(64, steps)
    made = dataclasses.replace(made, train=dataclasses.replace(made.train, batch_size=rows))
    program = Program(made, sharding.make_mesh(Mesh(), jax.devices()[:1]))
    # The table of the source hangs on the seed of its draw, so all are of one.
    images, bits = source.draw(4 * rows * (8 + min(steps, 1000)))
    batches = [batch(made, each) for each in images.reshape(-1, 4 * rows, *images.shape[1:])]
    held_out, batches = batches[:8], batches[8:]
    state, begin, seconds = program.init(), time.perf_counter(), 0.0
    for step in range(steps):
        state, metrics = program.train_step(state, program.put(batches[step % len(batches)]))
        if step in (0, steps - 1):
            jax.block_until_ready(metrics)
            begin, seconds = time.perf_counter(), time.perf_counter() - begin
    sums = program.evaluate(state.params, [SimpleNamespace(rows=each) for each in held_out])
    found = 3 * likelihood.figures(sums, made.model)["bpd_8bit"]
    true = float(bits[: 4 * rows * 8].mean())
    return {
        "device": jax.devices()[0].device_kind,
        "rows": rows,
        "steps": steps,
        "step_s": seconds / max(steps - 1, 1),
        "bits_per_pixel": found,
        "above_the_truth": found - true,
    }


def failed(path: Path) -> int:
    """How many of the kernels' numbers are wrong, or below their targets."""
    return sum(json.loads(line).get("ok") is False for line in path.read_text().splitlines()) if path.exists() else 0


def run(out: Path, minutes: float, tiny: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    begin, results = time.monotonic(), []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    }
    planned = parts(out, minutes, tiny)
    (out / "h100.jsonl").unlink(missing_ok=True)
    for number, part in enumerate(planned):
        left, start = 60 * minutes - (time.monotonic() - begin), time.monotonic()
        limit = left * part.weight / sum(each.weight for each in planned[number:])
        line: dict[str, Any] = {"part": part.name}
        command = [sys.executable, *part.command]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        try:
            text, _ = process.communicate(timeout=max(limit, 1))
            line["rc"] = process.returncode
            if part.name == "kernels":
                line["failed"] = failed(out / "gca.jsonl")
            elif not process.returncode:
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
        found = line | line.get("result", {})
        names = ("device", "rows", "step_s", "mfu", "GiB", "above_the_truth", "failed")
        told = {name: found[name] for name in names if name in found}
        print(line["part"], f"rc {line['rc']}", f"{line['seconds']} s", json.dumps(told))
    if any(line["rc"] for line in results):
        sys.exit(1)


def main(args: list[str]) -> None:
    if args[0] == "train":
        print(json.dumps(train(args[1], int(args[2]), int(args[3]), Path(args[4]))))
    elif args[0] == "learn":
        print(json.dumps(learn(int(args[1]), int(args[2]))))
    else:
        run(Path(args[0]), float(args[1]), args[2] == "1")


if __name__ == "__main__":
    main(sys.argv[1:])
