"""Images of a few digits, from large and plain to small and faint: `python experiments/reading/source.py CIFAR`.

One to three digits in one of several fonts, 6 to 20 pixels high, on a flat, graded or photographed ground, at any
quarter of a pixel up to 4 pixels from the middle of an image of 32 × 64.  `CIFAR`: a folder or tar of small
photographs, for grounds; training and test images take different ones.  What is drawn depends on them, on the set, and
on the number of an image alone, so that a set may be made again anywhere.  Data sets go to datasets/reading.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
import itertools
import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixtok.data import images
from pixtok.data.build import Settings, build
from pixtok.data.glyphs import FONTS
from pixtok.data.sources import open_source
from pixtok.document import Document
from pixtok.errors import ExitCode, InputError

HEIGHT, WIDTH = 32, 64
HEIGHTS = (6, 7, 8, 10, 12, 14, 16, 20)
"""Of a digit's ink, in pixels."""
CONTRASTS = (8, 16, 32, 64, 128)
"""Difference between ink and ground, in each channel of 8 bits."""
CONTRAST = 64
"""Of tests that vary something else."""
GROUNDS = ("flat", "gradient", "photo")
HELD_OUT = "cmr10 cmss10 cmtt10".split()
"""Fonts of a family that no model is trained on."""
DRIFT = 4
"""Of the text from the middle of an image, in pixels."""
SIZES = {"train": 264_000, "unlabelled": 40_000, "labels-1000": 1111, "labels-4000": 4444, "labels-16000": 17_778}
"""Images of the sets that are trained on, of which a tenth, at most `VALIDATION`, are for validation; those of labels
are parts of each other."""
VALIDATION = 2000
TESTS = {"test": 2000, "held-out": 500, "contrast": 100}
"""Images of the sets that are read, for each height (`contrast`: for each height and contrast)."""
_SEEDS = {"train": 0, "unlabelled": 1, **dict.fromkeys(("labels-1000", "labels-4000", "labels-16000"), 2)}
_SEEDS |= {"test": 3, "held-out": 4, "contrast": 5}
VERSION = 1
"""Of what is drawn: a change of it makes data sets, and so runs, others."""
_FINE = 4
_TINT = 16
"""Deviation of the channels of a plain ground from grey."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """What an image shows, and what of it is given before the text."""

    text: str
    height: float
    contrast: int
    kind: str
    """Of ground."""
    font: str
    origin: tuple[int, int]
    """Column and row at which the text is drawn, in parts of a pixel."""
    sign: int
    """1: ink is lighter than the ground."""
    ground: np.ndarray
    """(HEIGHT, WIDTH, 3), with room for the ink, so that nothing is cut off at black or white."""

    @property
    def name(self) -> str:
        """What a file of it is called, after its number."""
        return f"h{self.height:04.1f}-c{self.contrast:03d}-{self.kind}-{self.font}"

    def image(self, text: str | None = None) -> np.ndarray:
        """(HEIGHT, WIDTH, 3) uint8; `text`: another in its place."""
        page = Image.new("L", (WIDTH * _FINE, HEIGHT * _FINE))
        ImageDraw.Draw(page).text(self.origin, text or self.text, 255, _font(self.font, self.height))
        ink = np.asarray(page.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32) / 255
        return np.rint(self.ground + self.sign * self.contrast * ink[..., None]).clip(0, 255).astype(np.uint8)


@functools.cache
def _font(name: str, height: float) -> ImageFont.FreeTypeFont:
    """A font whose zero is `height` pixels high, `_FINE` times as large."""
    file = str(importlib.resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf")
    _, top, _, bottom = ImageFont.truetype(file, 1000).getbbox("0")
    return ImageFont.truetype(file, 1000 * height * _FINE / (bottom - top))


def _origin(rng: np.random.Generator, text: str, font: str, height: float) -> tuple[int, int] | None:
    """Where a text may stand; None where it is too wide."""
    left, top, right, bottom = map(int, _font(font, height).getbbox(text))
    room = np.array([WIDTH * _FINE - (right - left), HEIGHT * _FINE - (bottom - top)])
    if room.min() < 2 * _FINE:
        return None
    drift = np.minimum(DRIFT * _FINE, room // 2 - 1)
    x, y = (room // 2 + rng.integers(-drift, drift + 1)).tolist()
    return x - left, y - top


def _ground(rng: np.random.Generator, kind: str, photos: np.ndarray) -> np.ndarray:
    """(HEIGHT, WIDTH, 3), from 0 to 255."""
    if kind == "photo":
        scale = round(rng.uniform(WIDTH, 2 * WIDTH))
        photo = Image.fromarray(photos[int(rng.integers(len(photos)))]).resize((scale, scale), Image.Resampling.BICUBIC)
        y, x = rng.integers(scale - HEIGHT + 1), rng.integers(scale - WIDTH + 1)
        return np.asarray(photo, np.float32)[y : y + HEIGHT, x : x + WIDTH]
    start, end = rng.uniform(0, 255, (2, 1)) + rng.normal(0, _TINT, (2, 3))
    if kind == "flat":
        end = start
    way = np.linspace(0, 1, WIDTH)[None, :] if rng.random() < 0.5 else np.linspace(0, 1, HEIGHT)[:, None]
    graded = start + np.broadcast_to(way[..., None], (HEIGHT, WIDTH, 1)) * (end - start)
    return graded.clip(0, 255).astype(np.float32)


def scene(
    seed: tuple[int, int],
    photos: np.ndarray,
    fonts: Sequence[str],
    lengths: tuple[int, int],
    height: float,
    contrast: int,
) -> Scene:
    """The scene of a seed; `lengths`: of the shortest and the longest text."""
    rng = np.random.default_rng(seed)
    text, font, origin = "", "", None
    while origin is None:
        text = "".join(map(str, rng.integers(10, size=rng.integers(lengths[0], lengths[1] + 1))))
        font = fonts[int(rng.integers(len(fonts)))]
        origin = _origin(rng, text, font, height)
    kind = GROUNDS[int(rng.integers(len(GROUNDS)))]
    sign = 1 if rng.random() < 0.5 else -1
    ground = _ground(rng, kind, photos) * (255 - contrast) / 255 + (contrast if sign < 0 else 0)
    return Scene(text, height, contrast, kind, font, origin, sign, ground)


def training(name: str, photos: np.ndarray, count: int) -> Iterator[Scene]:
    """The first scenes of a set that is trained on: any height and contrast between the least and the largest."""
    for number in range(count):
        seed = (_SEEDS[name], number)
        low, high = (HEIGHTS[0], CONTRASTS[0]), (HEIGHTS[-1], CONTRASTS[-1])
        height, contrast = np.random.default_rng((*seed, 1)).uniform(low, high)
        yield scene(seed, photos, FONTS, (1, 3), round(height, 1), round(contrast))


def contrasts(name: str) -> tuple[int, ...]:
    """Of a set that is read."""
    return CONTRASTS if name == "contrast" else (CONTRAST,)


def tests(name: str, photos: np.ndarray, each: int) -> Iterator[Scene]:
    """The scenes of a set that is read, of 2 or 3 digits; `each`: for each height, and contrast."""
    cells = itertools.product(contrasts(name), HEIGHTS, range(each))
    for number, (contrast, height, _) in enumerate(cells):
        fonts = HELD_OUT if name == "held-out" else FONTS
        yield scene((_SEEDS[name], number), photos, fonts, (2, 3), height, contrast)


def photographs(source: str) -> tuple[np.ndarray, np.ndarray]:
    """(those for training, those for tests), (N, 32, 32, 3) uint8: every tenth is for tests.  Raises InputError."""
    found = []
    for entry in open_source(source, Path(tempfile.gettempdir())).entries():
        parts = entry.document.parts if isinstance(entry.document, Document) else ()
        whole = (Image.fromarray(images.decode(part)[0]) for part in parts if isinstance(part, bytes))
        found += [np.asarray(one.resize((32, 32))) for one in whole]
    if not found:
        raise InputError(f"{source} holds no photographs")
    every = np.stack(found)
    is_test = np.arange(len(every)) % 10 == 0
    return every[~is_test], every[is_test]


def pack(scenes: Iterable[Scene], path: Path, texts: bool) -> None:
    """A tar of images, and of their texts."""
    with tarfile.open(path, "w") as archive:
        for number, one in enumerate(scenes):
            file = io.BytesIO()
            Image.fromarray(one.image()).save(file, "PNG", compress_level=1)
            files = {"png": file.getvalue(), "txt": one.text.encode()}
            for suffix, content in files.items() if texts else [("png", files["png"])]:
                info = tarfile.TarInfo(f"{number:06d}-{one.name}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _made_from(name: str, count: int, photos: np.ndarray) -> dict[str, Any]:
    """What a set is made from: one made from something else is made anew."""
    return {
        "set": name,
        "images": count,
        "version": VERSION,
        "photographs": hashlib.sha256(photos.tobytes()).hexdigest(),
    }


def stamp(folder: Path, name: str, count: int, photos: np.ndarray) -> None:
    """Say what a set was made from."""
    (folder / f"{name}.json").write_text(json.dumps(_made_from(name, count, photos)))


def is_made(folder: Path, name: str, count: int, photos: np.ndarray) -> bool:
    """Whether `folder` has the set `name`, made of these photographs by this version."""
    file = folder / f"{name}.json"
    return file.exists() and json.loads(file.read_text()) == _made_from(name, count, photos)


def main(source: str, out: Path) -> None:
    """Make all sets that are not there, or are of another version."""
    out.mkdir(parents=True, exist_ok=True)
    ours, theirs = photographs(source)
    for name, count in SIZES.items():
        if is_made(out, name, count, ours):
            continue
        shutil.rmtree(out / name, ignore_errors=True)
        tar = out / f"{name}.tar"  # of one name always: a data set knows what it was made from
        pack(training(name, ours, count), tar, name != "unlabelled")
        build(str(tar), out / name, Settings(caption="after", validation=min(0.1, VALIDATION / count), test=0))
        tar.unlink()
        stamp(out, name, count, ours)
    for name, each in TESTS.items():
        if is_made(out, name, each, theirs):
            continue
        fields = ("text", "height", "contrast", "kind", "font")
        drawn = [(one.image(), *(getattr(one, field) for field in fields)) for one in tests(name, theirs, each)]
        columns = dict(zip(("image", *fields), map(np.array, zip(*drawn, strict=True)), strict=True))
        np.savez_compressed(out / f"{name}.npz", **columns)
        stamp(out, name, each, theirs)


def command(run: Callable[[str], object], words: list[str]) -> None:
    """A script whose one word is CIFAR.  Bad input is one line and exit code 2."""
    try:
        if len(words) != 2:
            raise InputError(f"usage: python {words[0]} CIFAR, a folder or tar of small photographs")
        run(words[1])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)


if __name__ == "__main__":
    command(lambda cifar: main(cifar, Path("datasets/reading")), sys.argv)
