"""Images whose entropy is known, so that the E of a scaling law has a true value.

python experiments/entropy_source.py build datasets/entropy     # 20,000 images of 32 × 8, and their bits per pixel
pixtok train experiments/entropy_source.py                      # how near a model comes to it
pixtok plan experiments/entropy_source.py runs/entropy --design grid --dials 8 12 16 24 32 --budget 1e13 \
    --levels 4 --decades 1.2 --seeds 2 --least_steps 100 --most_epochs 1.1
pixtok launch runs/entropy --parallel 2
python experiments/entropy_source.py fit runs/entropy           # 20 laws, each of one seed for each size and length

A pixel has one of 64 colours: a die with 8 sides, each half as likely as the one before, is thrown, and its left
neighbour chooses which colour each side stands for, by a table that is drawn once.  Whatever the neighbour is, the
entropy of a pixel given those before it is that of the die, H = 1.9630 bits, and so is that of the whole image per
pixel: exactly, at the left border, which is a neighbour of its own, as well.  A window is as wide as an image, so that
the left neighbour is always the pixel before.  Colours that are likely in one row of the table are so in most, and most
are rare: what is left to learn comes ever more rarely, so that losses fall smoothly.  Losses are those of one
validation split, so what counts as true is what the die showed there.  `--dial 16` comes to within 0.0075 bits in about
a minute on 2 cores, and of 20 laws all hold the truth in their interval, which is wide (LOG.md).
"""

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train

SIDES = 8
DIE = 0.5 ** np.arange(1, SIDES + 1) / (1 - 0.5**SIDES)
BITS = float(-(DIE * np.log2(DIE)).sum())
HEIGHT, WIDTH, IMAGES, LEVELS = 32, 8, 20_000, 4


def config(dial: int = 32, steps: int = 2400) -> Experiment:
    stream = Stream(dial, 2, dial // 8, dial // 8)
    return Experiment(
        f"entropy-{dial}",
        Model(stream, stream, stream, vocab_size=6, fold_factor=256 // LEVELS, window=8, halo=1, transfer=True),
        Data("datasets/entropy", slots=32, windows=16),
        Train(
            steps,
            1,
            learning_rate=2.0**-8,
            warmup_steps=steps // 20,
            final_rate=0.02,
            dtype="float32",
            remat="none",
            eval_every=steps,
            eval_batches=10_000,  # all of the split, whose own bits per pixel are known
        ),
        Checkpoint(every=steps, keep=1),
    )


def draw(count: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(so many images, (count, HEIGHT, WIDTH, 3) bytes; bits per pixel of each, of what the die showed).

    Levels are the middles of their bins, so that what folding loses is known.
    """
    rng = np.random.default_rng(seed)
    colours = LEVELS**3
    popularity = -np.log(rng.permutation(colours) + 1)
    # A sample without replacement for each neighbour, the last for none.
    table = np.argsort(-popularity - rng.gumbel(size=(colours + 1, colours)), axis=1)[:, :SIDES]
    thrown = rng.choice(SIDES, p=DIE, size=(WIDTH, count, HEIGHT))
    drawn = np.empty(thrown.shape, int)
    colour = colours
    for column in range(WIDTH):
        colour = drawn[column] = table[colour, thrown[column]]
    levels = np.stack(np.unravel_index(drawn.transpose(1, 2, 0), (LEVELS,) * 3), axis=-1)
    return (256 // LEVELS * levels + 128 // LEVELS).astype(np.uint8), -np.log2(DIE[thrown]).mean((0, 2))


def build(out: Path) -> None:
    """A data set."""
    from PIL import Image

    from pixtok.data.build import Settings
    from pixtok.data.build import build as build_dataset
    from pixtok.data.index import SPLITS, Dataset

    source, (images, bits) = out.with_suffix(".tar"), draw(IMAGES)
    source.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source, "w") as tar:
        for number, image in enumerate(images):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png")
            entry = tarfile.TarInfo(f"{number:05d}.png")
            entry.size = file.tell()
            file.seek(0)
            tar.addfile(entry, file)
    build_dataset(str(source), out, Settings(vocabulary="none", validation=0.05, test=0.0))
    source.unlink()
    dataset = Dataset(out)
    held_out = np.flatnonzero(dataset.index.split_N == SPLITS.index("validation"))
    shown = float(np.mean([bits[int(Path(item.id).stem)] for item in dataset.read(held_out.tolist())]))
    out.with_suffix(".json").write_text(json.dumps({"source": BITS, "validation": shown}))
    print(f"{out}: {BITS:.4f} bits per pixel, {shown:.4f} of the validation split, {shown / 3:.4f} bits/dim")


def fits(folder: Path, repeats: int = 20) -> Iterator[dict[str, Any]]:
    """E of so many laws in bits per pixel: for each, one run of each size and level is drawn, of all seeds."""
    from pixtok.scaling import fit, plan, runs

    all_runs = runs.read([folder])
    planned = plan.load(folder)
    cells = [
        (planned.runs[int(name) - 1].level, n) for name, n in zip(all_runs.names, all_runs.points.n_R, strict=True)
    ]
    rng = np.random.default_rng(0)
    for number in range(repeats):
        drawn = np.array(
            [rng.choice([at for at, own in enumerate(cells) if own == cell]) for cell in sorted(set(cells))]
        )
        picked = runs.pick(all_runs, drawn)
        study = fit.study(picked, bootstraps=200, seed=number)
        E = study.parameters["E"]
        yield {"E": 3 * E.value, "low": 3 * E.low, "high": 3 * E.high, "state": study.fit.state}


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2])
    if verb == "build":
        build(folder)
    else:
        found, true = list(fits(folder)), json.loads(Path("datasets/entropy.json").read_text())["validation"]
        covered = sum(line["low"] <= true <= line["high"] for line in found)
        print("\n".join(map(json.dumps, found)))
        print(f"{covered} of {len(found)} intervals hold the true {true:.4f} bits per pixel; they share runs")
