"""What the pixel decoder is worth: conditional attention against full causal attention, halo, summaries, depth.

pixtok data build CIFAR_FOLDER datasets/cifar10        # a folder of 32² JPEG files, a sub-folder for each class
python experiments/pixel_decoder.py                    # all runs that are not finished yet, then the table
python experiments/pixel_decoder.py speed              # pixels/s of both, taking turns in one process

Every variant sees the same number of steps and images, with three seeds. `causal` is the same model with one window for
the whole image: encoder and decoder then attend to all earlier pixels.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

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


VARIANTS = {
    "conditional": [],
    "causal": ["--model.window", "32", "--model.halo", "0", "--data.windows", "1"],
    "halo 0": ["--model.halo", "0"],
    "halo 2": ["--model.halo", "2"],
    "halo 4": ["--model.halo", "4"],
    "no summaries": ["--model.no-summaries"],
    "depth 0": ["--model.decoder.layers", "0"],
    "depth 1": ["--model.decoder.layers", "1"],
    "depth 3": ["--model.decoder.layers", "3"],
    "depth 4": ["--model.decoder.layers", "4"],
}
"""Settings that differ from `config`, which is halo 1, depth 2."""


def run_dir(variant: str, seed: int) -> Path:
    return RUNS / f"{variant.replace(' ', '-')}-{seed}"


def score(folder: Path) -> float | None:
    """Validation bits/dim of a finished run."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    return summary["validation"]["bpd_8bit"] if summary.get("step") == STEPS else None


def run_all() -> None:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(RUNS / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }
    for seed in range(SEEDS):
        for variant, settings in VARIANTS.items():
            folder = run_dir(variant, seed)
            if score(folder) is None:
                command = [sys.executable, "-m", "pixtok", "train", __file__, "--run_dir", str(folder)]
                subprocess.run([*command, "--train.seed", str(seed), *settings], check=True, env=environment)
        table()


def table() -> None:
    """Print and keep bits/dim: mean and 95 % interval over seeds, and of the difference to `conditional`, paired."""
    from scipy.stats import t

    def interval(values: list[float]) -> tuple[float, float]:
        if len(values) < 2:
            return values[0], float("nan")
        half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
        return statistics.mean(values), float(half)

    rows = []
    for variant in VARIANTS:
        scores = [score(run_dir(variant, seed)) for seed in range(SEEDS)]
        base = [score(run_dir("conditional", seed)) for seed in range(SEEDS)]
        known = [(a, b) for a, b in zip(scores, base, strict=True) if a is not None and b is not None]
        if known:
            own, gap = interval([a for a, _ in known]), interval([a - b for a, b in known])
            rows.append({"variant": variant, "seeds": len(known), "bpd_8bit": own, "difference": gap})
            print(f"{variant:14} {own[0]:.3f} ± {own[1]:.3f}   {gap[0]:+.3f} ± {gap[1]:.3f}   {len(known)} seeds")
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(kept | {"steps": STEPS, "rows": rows}, indent=1) + "\n")


def speed(steps: int = 7) -> None:
    """Pixels/s of training, median over steps that take turns."""
    import jax

    from pixtok import sharding
    from pixtok.data.pipeline import Loader
    from pixtok.step import Program

    base = config()
    causal = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, window=32, halo=0),
        data=dataclasses.replace(base.data, windows=1),
    )
    lanes = {}
    for name, experiment in {"conditional": base, "causal": causal}.items():
        loader = Loader(experiment.data, experiment.model, split="train", batch_size=8, seed=0)
        program = Program(experiment, sharding.make_mesh(experiment.mesh))
        rows = program.put(loader.batch(0).rows)
        lanes[name] = [program, rows, program.init(), []]
    for step in range(steps + 1):
        for lane in lanes.values():
            program, rows, state, seconds = lane
            begin = time.perf_counter()
            lane[2], metrics = program.train_step(state, rows)
            jax.block_until_ready(metrics)
            if step:  # the first compiles
                seconds.append(time.perf_counter() - begin)
    pixels = {name: 8 * 32 * 32 / statistics.median(lane[3]) for name, lane in lanes.items()}
    print({name: round(value) for name, value in pixels.items()}, f"{pixels['conditional'] / pixels['causal']:.2f} ×")
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(kept | {"pixels_per_s": pixels}, indent=1) + "\n")


if __name__ == "__main__":
    speed() if "speed" in sys.argv[1:] else run_all()
