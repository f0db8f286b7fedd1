"""The search for block sizes: one field at a time, from what is known, over the shapes of the benchmark."""

import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import schedule
from jax import numpy as jnp

from pixtok_kernels import pallas_gpu, pallas_tpu, topology, tuning
from pixtok_kernels.shapes import BENCH, Case, draw

CHOICES: dict[str, dict[str, tuple[int, ...]]] = {
    "tpu": {"rows": (512, 1024, 2048), "lag": (3, 5, 7), "slots": (128, 256, 512), "lanes": (128, 256, 512)},
    "gpu": {"keys": (64, 128), "stages": (2, 3, 4), "splits": (1, 5, 11, 21, 43)},
}
CASES = [case for case in BENCH if case.M == 196]
Cost = Callable[[Case, Any], float]


def _seconds(module: Any, case: Case, blocks: Any) -> float:
    """Of forward and gradient, here; the median of nine."""
    a = draw(case, jnp.bfloat16, ragged=False)
    scale = case.D**-0.5

    def both(a: Any) -> Any:
        o, lse = module.forward(a, scale)
        return o, module.backward(a, scale, o, lse, o)

    with _fixed(module, blocks):
        run = jax.jit(both).lower(a).compile()
    jax.block_until_ready(run(a))
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        jax.block_until_ready(run(a))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _cycles(chip: str, dump: Path, case: Case, blocks: Any) -> float:
    """Of forward and gradient of a window and head, for a chip that is not here."""
    with _fixed(pallas_tpu, blocks):
        return sum(row.cycles for row in schedule.ours(case, chip, dump))


class _fixed:  # noqa: N801, a context
    """These blocks, whatever is tuned."""

    def __init__(self, module: Any, blocks: Any):
        self.place, self.name = (tuning, "blocks") if module is pallas_tpu else (module, "blocks_for")
        self.blocks = blocks

    def __enter__(self) -> None:
        self.kept = getattr(self.place, self.name)
        setattr(self.place, self.name, lambda *_: self.blocks)

    def __exit__(self, *_: object) -> None:
        setattr(self.place, self.name, self.kept)


def search(start: Any, choices: dict[str, tuple[int, ...]], cost: Callable[[Any], float]) -> tuple[Any, float]:
    """The best found by changing one field after the other, and its cost.  What does not compile is named, no more."""
    best, least = start, cost(start)
    for name, sizes in choices.items():
        for size in sizes:
            if size == getattr(best, name):
                continue
            trial = dataclasses.replace(best, **{name: size})
            try:
                got = cost(trial)
            except (ValueError, jax.errors.JaxRuntimeError) as problem:
                print(f"left out {trial}: {str(problem).splitlines()[0]}", flush=True)
                continue
            if got < least:
                best, least = trial, got
    return best, least


def run(chip: str | None, folder: Path) -> Path:
    """Tunes for the device here, by time, or for a TPU that is not, by what its compiler schedules.

    → the file written.  Raises RuntimeError where there is neither.
    """
    with tempfile.TemporaryDirectory() as dump:
        if chip:
            schedule.dump_to(Path(dump))
            kind, platform = topology.tpu(chip).devices[0].device_kind, "tpu"
            cost: Cost = functools.partial(_cycles, chip, Path(dump))
        else:
            kind, platform = jax.devices()[0].device_kind, jax.default_backend()
            if platform not in CHOICES:
                raise RuntimeError(f"there are no blocks to tune for {kind}; name a TPU chip, or run this on a device")
            cost = functools.partial(_seconds, pallas_tpu if platform == "tpu" else pallas_gpu)
        out = folder / tuning.file(kind)
        table = json.loads(out.read_text()) if out.exists() else {}
        for case in CASES:
            size = jnp.dtype(jnp.bfloat16).itemsize
            a = jax.eval_shape(lambda case=case: draw(case, jnp.bfloat16, ragged=False))
            start = tuning.blocks(case, size) if platform == "tpu" else pallas_gpu.blocks_for(a)
            before = cost(case, start)
            best, least = search(start, CHOICES[platform], functools.partial(cost, case))
            print(f"{tuning.key(case, size)}: {before:.6g} -> {least:.6g}, {best}", flush=True)
            table[tuning.key(case, size)] = dataclasses.asdict(best)
            folder.mkdir(exist_ok=True)
            out.write_text(json.dumps(table, indent=1) + "\n")
    return out
