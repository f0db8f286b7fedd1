"""UPW's cost and ours: first-pixel loss after equal images, under the same trunk.

pixtok data build CIFAR_FOLDER datasets/cifar10        # a folder of 32² JPEG files, a sub-folder for each class
python experiments/first_pixel.py                      # all runs that are not finished yet, then the table
python experiments/first_pixel.py upw                  # those of one arm: start one for each core
python experiments/first_pixel.py table                # the table of results/first_pixel.json, and FLOPs; runs nothing

Three arms with one trunk, 192 wide with 5 blocks. `upw`: its pixels are as wide as the trunk, and all else is as in
UPW. `narrow`: the encoder of pixtok's family and its positions, initial weights and rates, with UPW's objective;
`family`: that with its pixel decoder and the likelihood of all pixels. So `upw` and `narrow` differ in more than the
width of pixels. Each arm takes the best of three learning rates on validation with seed 0, and then three other seeds,
which count. Nats of the first pixel of a window (that one follows, and its folded colour) on 768 validation images,
after 300 steps of 8 images.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from pixtok import flops
from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train, family
from pixtok.errors import InputError

ARMS, SEEDS, STEPS = ("upw", "narrow", "family"), 3, 300
RATES = {"upw": (3e-4, 1e-3, 3e-3), "narrow": (5e-4, 2e-3, 8e-3), "family": (5e-4, 2e-3, 8e-3)}
RUNS = Path("runs/first_pixel")
RESULTS = Path(__file__).parent / "results" / "first_pixel.json"


def model(arm: str, trunk: int = 192, window: int = 8) -> Model:
    ours = family(trunk, window=window)
    if arm == "family":
        return ours
    as_upw = {"vocab_size": ours.vocab_size, "objective": "reference", "window": window}
    if arm == "narrow":
        return Model(ours.encoder, ours.trunk, ours.decoder, transfer=True, **as_upw)
    if arm != "upw":
        raise InputError(f"--arm must be one of {', '.join(ARMS)}; got {arm}")
    wide = Stream(trunk, ours.encoder.layers, ours.trunk.heads, ours.trunk.kv_heads)
    return Model(wide, ours.trunk, wide, variant="upw", **as_upw)


def config(arm: str = "family", rate: float = 2e-3, seed: int = 0) -> Experiment:
    train = Train(
        steps=STEPS,
        batch_size=8,
        learning_rate=rate,
        warmup_steps=30,
        dtype="float32",
        seed=seed,
        eval_every=STEPS,
        eval_batches=96,
    )
    data = Data(path="datasets/cifar10", slots=40, windows=16)
    return Experiment(f"first_pixel-{arm}", model(arm), data, train, Checkpoint(every=150, keep=1))


def run(arm: str, rate: float, seed: int) -> float:
    """Nats of a first pixel on validation, of a run that is finished first."""
    folder = RUNS / f"{arm}-{rate:g}-{seed}"
    summary = folder / "summary.json"
    if not summary.is_file() or json.loads(summary.read_text())["step"] < STEPS:
        options = {"arm": arm, "rate": rate, "seed": seed, "run_dir": folder}
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "pixtok", "train", __file__, *flags], check=True, env=os.environ)
    return json.loads(summary.read_text())["validation"]["nats_first_pixel"]


def gflop(arm: str, **size: int) -> dict[str, float]:
    """Forward, for one image: encoder and trunk, and all."""
    made = model(arm, **size)
    windows, W = 196 if size else 16, made.window**2
    shape = Experiment("", made, Data("", slots=windows + 4, windows=windows), Train(1, 1))
    groups = flops.ledger(made, flops.full(shape))
    assert windows * W in (224**2, 32**2)
    both = sum(groups[name].forward for name in ("encoder", "trunk"))
    return {"encoder_and_trunk": both / 1e9, "all": sum(entry.forward for entry in groups.values()) / 1e9}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| arm | rate | first pixel, nats | GFLOP a 32² image, encoder + trunk | all |",
        "|---|---|---|---|---|",
    ]
    for arm, one in found.items():
        cost, nats = gflop(arm), one["nats"]
        # Student's t with two degrees of freedom.
        half = 4.303 * statistics.stdev(nats) / math.sqrt(len(nats)) if len(nats) == SEEDS else math.nan
        lines.append(
            f"| {arm} | {one['rate']:g} | {statistics.mean(nats):.3f} ± {half:.3f} | {cost['encoder_and_trunk']:.3f} "
            f"| {cost['all']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for arm in [] if sys.argv[1:] == ["table"] else sys.argv[1:] or ARMS:
        first = {rate: run(arm, rate, 0) for rate in RATES[arm]}
        best = min(first, key=lambda rate: first[rate])
        nats = [run(arm, best, seed) for seed in range(1, 1 + SEEDS)]
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found[arm] = {"rate": best, "nats": nats, "rates": {f"{rate:g}": value for rate, value in first.items()}}
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    print("\nGFLOP of one image of 224² under a trunk of 768 (4 blocks in all encoders; upw-image has 5):")
    for arm in found:
        cost = gflop(arm, trunk=768, window=16)
        print(f"{arm}: {cost['encoder_and_trunk']:,.1f} encoder and trunk, {cost['all']:,.1f} in all")


if __name__ == "__main__":
    main()
