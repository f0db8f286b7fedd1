"""Draw from a trained run, and keep what was drawn as files."""

import math
from pathlib import Path

import numpy as np
import PIL.Image
from etils import epath

from pixtok import weights
from pixtok.axes import Image
from pixtok.data import images
from pixtok.draw import Draw
from pixtok.errors import InputError
from pixtok.files import location, progress_bar, write
from pixtok.generate import Generator
from pixtok.reader import Reader
from pixtok.run import Run
from pixtok.words import NoWords

GREY = 128


class Sampler:
    """A run that draws into a folder."""

    def __init__(self, run_dir: epath.PathLike, *, step: int | None = None, out: epath.PathLike | None = None) -> None:
        """`step` None: the latest; `out` None: the folder `samples` of the run.  Raises InputError."""
        self._run = Run(epath.Path(run_dir))
        _, _, self._params = weights.load(self._run, step)
        self._out = location(out) if out else self._run.path / "samples"

    def _common_size(self) -> tuple[int, int]:
        sizes = np.concatenate([dataset.index.part_T2 for dataset in self._run.datasets()])
        sizes, counts = np.unique(sizes[sizes[:, 0] > 0], axis=0, return_counts=True)
        if not len(sizes):
            raise InputError("the run's data set holds no images: give --size")
        height, width = sizes[counts.argmax()].tolist()
        return images.fit(height, width, self._run.experiment.data.image_size)

    def new(self, size: tuple[int, int] | None, count: int, how: Draw, prompt: str = "") -> list[epath.Path]:
        """Draw whole images of (height, width), after the text `prompt`.  → the files.

        `size` None: the most common one of the run's data set.
        """
        size = size or self._common_size()
        blank = np.full((*size, 3), GREY, np.uint8)
        return self._draw(blank, np.ones(size, bool), count, how, prompt)

    def complete(self, image: Path, keep_rows: int, count: int, how: Draw) -> list[epath.Path]:
        """Draw all rows of pixels of an image but the first `keep_rows`.  Raises InputError."""
        known = images.read(image)
        if not 0 <= keep_rows < len(known):
            raise InputError(f"--keep_rows must be from 0 to {len(known) - 1} for {image}; got {keep_rows}")
        mask = np.zeros(known.shape[:2], bool)
        mask[keep_rows:] = True
        return self._draw(known, mask, count, how)

    def edit(self, image: Path, mask: Path, count: int, how: Draw) -> list[epath.Path]:
        """Draw the pixels of an image where another image of its size is light.  Raises InputError."""
        known, light = images.read(image), images.read(mask).mean(-1) > GREY
        if light.shape != known.shape[:2]:
            raise InputError(
                f"{mask} must be of the size of {image}, {known.shape[0]} × {known.shape[1]}; it is "
                f"{light.shape[0]} × {light.shape[1]}"
            )
        if not light.any():
            raise InputError(f"{mask} is dark everywhere: paint white what is to be drawn anew")
        return self._draw(known, light, count, how)

    def read(self, image: Path, count: int, how: Draw) -> list[epath.Path]:
        """Draw the text that follows an image, brought down to the size that the run was trained on.  → the files."""
        known = images.read(image, self._run.experiment.data.image_size)
        reader = Reader(self._run.experiment.model, self._params, self._run.datasets()[0].vocabulary())
        texts = reader.read([known] * count, batch_size=count, how=how)
        files = []
        for number, text in enumerate(texts):
            files.append(self._out / f"{number:03d}.txt")
            write(files[-1], f"{text}\n".encode())
        return files

    def _draw(self, known: Image, mask: np.ndarray, count: int, how: Draw, text: str = "") -> list[epath.Path]:
        vocabulary = self._run.datasets()[0].vocabulary() if text else NoWords()
        generator = Generator(self._run.experiment.model, self._params, vocabulary)
        with progress_bar("drawing") as bar:
            task = bar.add_task("", total=count * mask.size, note="pixels")
            drawn = generator.images(
                known, mask, text=text, count=count, how=how, progress=lambda done: bar.advance(task, done)
            )
        files = []
        for number, image in enumerate(drawn):
            files.append(self._out / f"{number:03d}.png")
            write(files[-1], images.encode(image))
        if len(drawn) > 1:
            files.append(self._out / "sheet.png")
            write(files[-1], images.encode(np.asarray(sheet(list(drawn)))))
        return files


def sheet(drawn: list[Image], columns: int | None = None, long_side: int = 128) -> PIL.Image.Image:
    """Images side by side, enlarged by a whole factor up to `long_side`."""
    columns = columns or math.ceil(len(drawn) ** 0.5)
    height, width = drawn[0].shape[:2]
    scale = max(1, long_side // max(height, width))
    gap = 4
    rows = -(-len(drawn) // columns)
    size = (columns * (width * scale + gap) + gap, rows * (height * scale + gap) + gap)
    page = PIL.Image.new("RGB", size, "white")
    for number, image in enumerate(drawn):
        tile = PIL.Image.fromarray(image).resize((width * scale, height * scale), PIL.Image.Resampling.NEAREST)
        page.paste(tile, (gap + number % columns * (tile.width + gap), gap + number // columns * (tile.height + gap)))
    return page
