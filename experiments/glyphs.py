"""The demo's model and data, 25 times as many steps: what it draws, completes and edits.

pixtok data build glyphs datasets/glyphs
pixtok train experiments/glyphs.py
python experiments/glyphs.py                # → results/samples.png, results/completions.png

53 minutes on one core shared with other work (x86-64, jax 0.10.2), 2026-11-24: validation bits/dim 4.790 -> 0.728,
first pixels 8.514 -> 0.786 nats, words 5.581 -> 1.257 nats.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from pixtok import weights
from pixtok.config import Checkpoint, Experiment, load
from pixtok.data import images
from pixtok.data.index import SPLITS
from pixtok.draw import Draw
from pixtok.generate import Generator
from pixtok.run import Run

PROMPTS = ("moon", "hand", "2026", "star")
HOW = Draw(temperature=0.8)
RESULTS = Path(__file__).parent / "results"


def config() -> Experiment:
    demo = load(Path(__file__).with_name("demo.py"))
    train = dataclasses.replace(demo.train, steps=3000, warmup_steps=100, eval_every=500)
    return dataclasses.replace(demo, name="glyphs", train=train, checkpoint=Checkpoint(every=500))


def save(name: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """A labelled table of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * len(columns), 0.9 * len(rows) + 0.3), layout="constrained")
    for line, axes in zip(rows, figure.subplots(len(rows), len(columns), squeeze=False), strict=True):
        for column, (axis, image) in enumerate(zip(axes, line[1], strict=True)):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if line is rows[0]:
                axis.set_title(columns[column], fontsize=9)
            if column == 0:
                axis.set_ylabel(line[0], fontsize=9)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / name, dpi=100)
    print(RESULTS / name)


def main(draws: int = 4) -> None:
    run = Run(epath.Path("runs/glyphs"))
    (dataset,) = run.datasets()
    generator = Generator(run.experiment.model, weights.load(run, None)[2], dataset.vocabulary())

    test = np.flatnonzero(dataset.index.split_N == SPLITS.index("test"))
    photos = [images.decode(part)[0] for item in dataset.read(test) for part in item.parts if isinstance(part, bytes)]
    height, width = photos[0].shape[:2]

    def crossed(image: np.ndarray) -> bool:
        """Is there ink in the last row that is kept, and to the left and right of where an edit begins and ends?"""
        ink = (image != image[0, 0]).any(-1)
        return bool(ink[height // 2 - 1].any() and ink[:, : width // 4].any() and ink[:, 3 * width // 4 :].any())

    blank, everywhere = np.zeros((height, width, 3), np.uint8), np.ones((height, width), bool)
    rows = [(prompt, generator.images(blank, everywhere, text=prompt, count=draws, how=HOW)) for prompt in PROMPTS]
    rows.append(("no text", generator.images(blank, everywhere, count=draws, how=HOW)))
    save("samples.png", [""] * draws, [(label, list(drawn)) for label, drawn in rows])

    lower, middle = np.zeros_like(everywhere), np.zeros_like(everywhere)
    lower[height // 2 :] = True
    middle[:, width // 4 : 3 * width // 4] = True
    table = []
    for number, image in enumerate(list(filter(crossed, photos))[:4]):
        line = [image]
        for mask in (lower, middle):
            known = np.where(mask[..., None], 255, image).astype(np.uint8)
            line += [known, *generator.images(image, mask, count=2, how=HOW)]
        table.append((f"test {number}", line))
    save("completions.png", ["image", "known", "completed", "completed", "known", "edited", "edited"], table)


if __name__ == "__main__":
    main()
