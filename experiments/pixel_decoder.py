"""What the pixel decoder is worth: conditional attention against full causal attention, halo, summaries, depth.

pixtok data build CIFAR_FOLDER datasets/cifar10        # a folder of 32² JPEG files, a sub-folder for each class
python experiments/pixel_decoder.py                    # all runs that are not finished yet, then the table
python experiments/pixel_decoder.py 1                  # those of one seed: start one for each core
python experiments/pixel_decoder.py speed              # pixels/s of all, taking turns in one process

Bits/dim with 95 % intervals, and pixels/s of training, go to results/pixel_decoder.md. Every variant sees the same
number of steps and images, with three seeds. `causal` is the same model with one window for the whole image: encoder
and decoder then attend to all earlier pixels.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train

STEPS, SEEDS = 300, 3
RUNS = Path("runs/pixel_decoder")
RESULTS = Path(__file__).parent / "results" / "pixel_decoder.json"


def config() -> Experiment:
    model = Model(
        encoder=Stream(width=48, layers=2, heads=2, kv_heads=1),
        trunk=Stream(width=96, layers=2, heads=3, kv_heads=1),
        decoder=Stream(width=48, layers=2, heads=2, kv_heads=1),
        fold_factor=1,
        window=8,
        halo=1,
    )
    train = Train(
        steps=STEPS,
        batch_size=8,
        learning_rate=2e-3,
        warmup_steps=20,
        dtype="float32",
        eval_every=STEPS,
        eval_batches=64,
    )
    data = Data(path="datasets/cifar10", slots=32, windows=16)
    return Experiment("pixel_decoder", model, data, train, Checkpoint(every=100, keep=1))


VARIANTS: dict[str, dict[str, Any]] = {
    "conditional": {},
    "causal": {"model.window": 32, "model.halo": 0, "data.windows": 1},
    "halo 0": {"model.halo": 0},
    "halo 2": {"model.halo": 2},
    "halo 4": {"model.halo": 4},
    "no summaries": {"model.summaries": False},
    "depth 0": {"model.decoder.layers": 0},
    "depth 1": {"model.decoder.layers": 1},
    "depth 3": {"model.decoder.layers": 3},
    "depth 4": {"model.decoder.layers": 4},
}
"""Settings that differ from `config`, which is halo 1, depth 2."""


def flags(variant: str) -> list[str]:
    """The settings of a variant on the command line of `pixtok train`."""
    found = []
    for name, value in VARIANTS[variant].items():
        found += ["--model.no-summaries"] if name == "model.summaries" else [f"--{name}", str(value)]
    return found


def experiment(variant: str) -> Experiment:
    """`config` with the settings of a variant."""

    def changed(settings: Any, names: list[str], value: Any) -> Any:
        inner = changed(getattr(settings, names[0]), names[1:], value) if len(names) > 1 else value
        return dataclasses.replace(settings, **{names[0]: inner})

    made = config()
    for name, value in VARIANTS[variant].items():
        made = changed(made, name.split("."), value)
    return made


def run_dir(variant: str, seed: int) -> Path:
    return RUNS / f"{variant.replace(' ', '-')}-{seed}"


def score(folder: Path) -> float | None:
    """Validation bits/dim of a finished run."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    return summary["validation"]["bpd_8bit"] if summary.get("step") == STEPS else None


def run(seeds: Sequence[int]) -> None:
    """All runs of some seeds, one after the other; a finished one is not run again."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(RUNS / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }
    for seed in seeds:
        for variant in VARIANTS:
            folder = run_dir(variant, seed)
            if score(folder) is None:
                command = [sys.executable, "-m", "pixtok", "train", __file__, "--run_dir", str(folder)]
                subprocess.run([*command, "--train.seed", str(seed), *flags(variant)], check=True, env=environment)
        table()


def table() -> None:
    """Keep and print bits/dim: mean and 95 % interval over seeds, and of the difference to `conditional`, paired."""
    from scipy.stats import t

    def interval(values: list[float]) -> dict[str, float | None]:
        count = len(values)
        half = t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5 if count > 1 else None
        return {"mean": statistics.mean(values), "half_width": half}

    rows = []
    for variant in VARIANTS:
        both = [(score(run_dir(variant, seed)), score(run_dir("conditional", seed))) for seed in range(SEEDS)]
        known = [(own, base) for own, base in both if own is not None and base is not None]
        if known:
            own, gap = interval([a for a, _ in known]), interval([a - b for a, b in known])
            rows.append({"variant": variant, "seeds": len(known), "bpd_8bit": own, "difference": gap})
    keep({"steps": STEPS, "rows": rows})


def keep(new: dict[str, Any]) -> None:
    """Add to the results; write and print them as a table."""
    results = (json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}) | new

    def cell(interval: dict[str, float | None], sign: str = "") -> str:
        half = interval["half_width"]
        return f"{interval['mean']:{sign}.3f}" + ("" if half is None else f" ± {half:.3f}")

    lines = ["| variant | bits/dim | difference to conditional | seeds | pixels/s |", "|---|---|---|---|---|"]
    for row in results.get("rows", []):
        pixels = results.get("pixels_per_s", {}).get(row["variant"])
        gap = "" if row["variant"] == "conditional" else cell(row["difference"], "+")
        cells = [row["variant"], cell(row["bpd_8bit"]), gap, str(row["seeds"])]
        lines.append(f"| {' | '.join([*cells, f'{pixels:,.0f}' if pixels else ''])} |")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def speed(steps: int = 7) -> None:
    """Pixels/s of training, median over steps that take turns."""
    import jax

    from pixtok import sharding
    from pixtok.data.pipeline import Loader
    from pixtok.step import Program

    lanes = {}
    for variant in VARIANTS:
        made = experiment(variant)
        loader = Loader(made.data, made.model, split="train", batch_size=8, seed=0)
        program = Program(made, sharding.make_mesh(made.mesh))
        lanes[variant] = [program, program.put(loader.batch(0).rows), program.init(), []]
    for step in range(steps + 1):
        for lane in lanes.values():
            program, rows, state, seconds = lane
            begin = time.perf_counter()
            lane[2], metrics = program.train_step(state, rows)
            jax.block_until_ready(metrics)
            if step:  # the first compiles
                seconds.append(time.perf_counter() - begin)
    pixels = {name: 8 * 32 * 32 / statistics.median(lane[3]) for name, lane in lanes.items()}
    print(f"conditional is {pixels['conditional'] / pixels['causal']:.2f} times as fast as causal")
    keep({"pixels_per_s": pixels})


if __name__ == "__main__":
    if "speed" in sys.argv[1:]:
        speed()
    else:
        run([int(seed) for seed in sys.argv[1:]] or range(SEEDS))
