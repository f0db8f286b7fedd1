"""Images of a few digits, from large and plain to small and faint: `python experiments/reading/source.py CIFAR`.

One to three digits in one of several fonts, 6 to 20 pixels high, on a flat, graded or photographed ground, at any
quarter of a pixel up to 4 pixels from the middle of an image of 32 × 64.  `CIFAR` is a folder or tar of photographs, for
grounds; training and test images take different ones.  What is drawn depends on the set and the number of an image
alone, so that a set may be made again anywhere.  Five minutes on one core: tars in datasets/reading, and what
`pixtok data build` makes of them.
"""

import functools
import importlib.resources
import io
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 32, 64
HEIGHTS = (6, 7, 8, 10, 12, 14, 16, 20)
"""Of a digit's ink, in pixels."""
CONTRASTS = (8, 16, 32, 64, 128)
"""Difference between ink and ground, in each channel of 8 bits."""
CONTRAST = 64
"""Of tests that vary something else."""
GROUNDS = ("flat", "gradient", "photo")
FONTS = (
    "DejaVuSans DejaVuSans-Bold DejaVuSansMono DejaVuSerif-Bold DejaVuSerif-Italic STIXGeneral STIXGeneralItalic "
    "cmr10 cmss10 cmtt10"
).split()
HELD_OUT = "DejaVuSansMono-Bold DejaVuSans-Oblique DejaVuSerif STIXGeneralBol".split()
"""Fonts that no model is trained on."""
DRIFT = 4
"""Of the text from the middle of an image, in pixels."""
SIZES = {"train": 240_000, "unlabelled": 60_000, "labels": 16_000}
"""Images of the sets that are trained on."""
TESTS = {"test": 2000, "held-out": 500, "contrast": 100}
"""Images of the sets that are read, for each height (`contrast`: for each height and contrast)."""
_FINE = 4
_TINT = 16
"""Deviation of the channels of a plain ground from grey."""


class Drawn(NamedTuple):
    """One image, and what is on it."""

    image: np.ndarray
    """(HEIGHT, WIDTH, 3), uint8."""
    text: str
    height: float
    contrast: float
    ground: str
    font: str

    @property
    def name(self) -> str:
        """What a file of it is called, after its number."""
        return f"h{self.height:04.1f}-c{self.contrast:03.0f}-{self.ground}-{self.font}"


@functools.cache
def _font(name: str, height: float) -> ImageFont.FreeTypeFont:
    """A font whose zero is `height` pixels high, drawn `_FINE` times as large."""
    file = str(importlib.resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf")
    _, top, _, bottom = ImageFont.truetype(file, 1000).getbbox("0")
    return ImageFont.truetype(file, 1000 * height * _FINE / (bottom - top))


def coverage(rng: np.random.Generator, text: str, font: str, height: float) -> np.ndarray | None:
    """How much of each pixel ink covers, (HEIGHT, WIDTH) from 0 to 1; None where the text is too wide."""
    drawn = _font(font, height)
    left, top, right, bottom = map(int, drawn.getbbox(text))
    room = np.array([WIDTH * _FINE - (right - left), HEIGHT * _FINE - (bottom - top)])
    if room.min() < 2 * _FINE:
        return None
    drift = np.minimum(DRIFT * _FINE, room // 2 - 1)
    x, y = room // 2 + rng.integers(-drift, drift + 1)
    page = Image.new("L", (WIDTH * _FINE, HEIGHT * _FINE))
    ImageDraw.Draw(page).text((int(x) - left, int(y) - top), text, 255, drawn)
    return np.asarray(page.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32) / 255


def _ground(rng: np.random.Generator, kind: str, photos: np.ndarray) -> np.ndarray:
    """(HEIGHT, WIDTH, 3), from 0 to 255."""
    if kind == "photo":
        photo = Image.fromarray(photos[rng.integers(len(photos))])
        scale = rng.uniform(WIDTH, 2 * WIDTH)
        large = np.asarray(photo.resize((round(scale), round(scale)), Image.Resampling.BICUBIC), np.float32)
        y, x = (rng.integers(size - wanted + 1) for size, wanted in zip(large.shape, (HEIGHT, WIDTH), strict=False))
        return large[y : y + HEIGHT, x : x + WIDTH]
    start, end = rng.uniform(0, 255, (2, 1)) + rng.normal(0, _TINT, (2, 3))
    if kind == "flat":
        end = start
    way = np.linspace(0, 1, WIDTH)[None, :] if rng.random() < 0.5 else np.linspace(0, 1, HEIGHT)[:, None]
    return (start + np.broadcast_to(way[..., None], (HEIGHT, WIDTH, 1)) * (end - start)).clip(0, 255)


def draw(
    seed: tuple[int, int],
    photos: np.ndarray,
    fonts: list[str],
    lengths: tuple[int, int],
    height: float,
    contrast: float,
) -> Drawn:
    """The image of a seed: `lengths`, of the shortest and longest text."""
    rng = np.random.default_rng(seed)
    ink = None
    while ink is None:
        text = "".join(map(str, rng.integers(10, size=rng.integers(lengths[0], lengths[1] + 1))))
        font = fonts[rng.integers(len(fonts))]
        ink = coverage(rng, text, font, height)
    kind = GROUNDS[rng.integers(len(GROUNDS))]
    sign = 1 if rng.random() < 0.5 else -1
    # Room for the ink, so that nothing is cut off at black or white.
    ground = _ground(rng, kind, photos) * (255 - contrast) / 255 + (contrast if sign < 0 else 0)
    pixels = np.rint(ground + sign * contrast * ink[..., None]).clip(0, 255).astype(np.uint8)
    return Drawn(pixels, text, height, contrast, kind, font)


_SETS = ("train", "unlabelled", "labels", "test", "held-out", "contrast")


def training(name: str, photos: np.ndarray, count: int) -> Iterator[Drawn]:
    """The first images of a set that is trained on: any height and contrast between the least and the largest."""
    for number in range(count):
        seed = (_SETS.index(name), number)
        height, contrast = np.random.default_rng((*seed, 1)).uniform(
            (HEIGHTS[0], CONTRASTS[0]), (HEIGHTS[-1], CONTRASTS[-1])
        )
        yield draw(seed, photos, FONTS, (1, 3), round(height, 1), round(contrast))


def tests(name: str, photos: np.ndarray, each: int | None = None) -> Iterator[Drawn]:
    """The images of a set that is read, of 2 or 3 digits; `each`, None: as many as `TESTS` tells."""
    fonts = HELD_OUT if name == "held-out" else FONTS
    number = 0
    for contrast in CONTRASTS if name == "contrast" else (CONTRAST,):
        for height in HEIGHTS:
            for _ in range(each or TESTS[name]):
                yield draw((_SETS.index(name), number), photos, fonts, (2, 3), height, contrast)
                number += 1


def photographs(source: str) -> tuple[np.ndarray, np.ndarray]:
    """(those for training, those for tests), (N, 32, 32, 3) uint8: every tenth is for tests."""
    from pixtok.data import images
    from pixtok.data.sources import open_source

    found = []
    for entry in open_source(source, Path(tempfile.gettempdir())).entries():
        parts = getattr(entry.document, "parts", ())
        pixels = [images.decode(part)[0] for part in parts if isinstance(part, bytes)]
        found += [np.asarray(Image.fromarray(one).resize((32, 32))) for one in pixels]
    every = np.stack(found)
    is_test = np.arange(len(every)) % 10 == 0
    return every[~is_test], every[is_test]


def _pack(drawn: Iterator[Drawn], path: Path, texts: bool) -> None:
    with tarfile.open(path, "w") as archive:
        for number, one in enumerate(drawn):
            file = io.BytesIO()
            Image.fromarray(one.image).save(file, "PNG", compress_level=1)
            for suffix, content in (("png", file.getvalue()), ("txt", one.text.encode())):
                if suffix == "png" or texts:
                    info = tarfile.TarInfo(f"{number:06d}-{one.name}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def main(source: str, out: Path) -> None:
    """Make all sets that are not there."""
    from pixtok.data.build import Settings, build

    out.mkdir(parents=True, exist_ok=True)
    ours, theirs = photographs(source)
    for name, count in SIZES.items():
        if (out / name).exists():
            continue
        with tempfile.TemporaryDirectory(dir=out) as folder:
            tar = Path(folder) / f"{name}.tar"
            _pack(training(name, ours, count), tar, name != "unlabelled")
            build(str(tar), out / name, Settings(caption="after", validation=min(0.05, 2000 / count), test=0))
    for name in TESTS:
        if (out / f"{name}.npz").exists():
            continue
        found = list(tests(name, theirs))
        np.savez(out / f"{name}.npz", **{key: np.array([getattr(one, key) for one in found]) for key in Drawn._fields})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "datasets/reading"))
