"""The embedded data set: rendered digits and words, their text as caption.

Drawn deterministically from a seed, with the fonts that matplotlib's wheel carries, by a TFDS builder, so
that it takes the same way into a data set as any other TFDS data.
"""

import dataclasses
import functools
import importlib.resources
import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 32, 64
EXAMPLES = 6144
FONTS = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSansMono-Bold "
    "DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic STIXGeneral STIXGeneralBol STIXGeneralItalic"
).split()
WORDS = (
    "air all arm art bag bed big bit box boy bus can car cat cup cut day dog dry ear east egg end eye far few fish "
    "five four fun game gold good gray hand hat head high home hot ice ink iron jar job joy key kid king lake lamp "
    "leaf left leg line lion long low map milk moon nest new nine nose now oak off oil old one open owl page park "
    "pen pink post quiz rain red ring road room rope salt sand sea seed ship six sky snow song star sun tall ten "
    "three tree two up van very wall warm wave west wind wolf wood year yes zero zoo"
).split()


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    file = importlib.resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(file), size)


def draw(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """One image of HEIGHT × WIDTH and its text: one to four digits, or a word."""
    if rng.random() < 0.5:
        text = "".join(map(str, rng.integers(10, size=rng.integers(1, 5))))
    else:
        text = WORDS[rng.integers(len(WORDS))]
    name = FONTS[rng.integers(len(FONTS))]
    size = int(rng.integers(12, 25))
    left, top, right, bottom = map(int, _font(name, size).getbbox(text))
    while right - left > WIDTH - 2 or bottom - top > HEIGHT - 2:
        size -= 1
        left, top, right, bottom = map(int, _font(name, size).getbbox(text))
    background = rng.integers(256, size=3)
    ink = rng.integers(256, size=3)
    while abs(int(background.sum()) - int(ink.sum())) < 3 * 80:
        ink = rng.integers(256, size=3)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(background.tolist()))
    x = rng.integers(1, WIDTH - (right - left)) - left
    y = rng.integers(1, HEIGHT - (bottom - top)) - top
    ImageDraw.Draw(image).text((int(x), int(y)), text, tuple(ink.tolist()), _font(name, size))
    return image, text


@dataclasses.dataclass
class GlyphsConfig(tfds.core.BuilderConfig):
    """`examples` images in all, a sixteenth of them each for validation and test."""

    seed: int = 0
    examples: int = EXAMPLES


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Digits and words on plain grounds, 32 × 64, with their text."""

    VERSION = tfds.core.Version("1.0.0")

    @property
    def _config(self) -> GlyphsConfig:
        assert isinstance(self.builder_config, GlyphsConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="png"),
                    "text": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        examples = self._config.examples
        held_out = max(1, examples // 16)
        sizes = {"train": max(1, examples - 2 * held_out), "validation": held_out, "test": held_out}
        return {split: self._generate_examples(number, size) for number, (split, size) in enumerate(sizes.items())}

    def _generate_examples(self, split: int, size: int):
        for number in range(size):
            image, text = draw(np.random.default_rng([self._config.seed, split, number]))
            file = io.BytesIO()
            image.save(file, "PNG")
            file.seek(0)
            yield number, {"image": file, "text": text}


def builder(data_dir: Path, seed: int, examples: int | None) -> Glyphs:
    """A builder whose files go under `data_dir`."""
    config = GlyphsConfig(name=f"seed{seed}", seed=seed, examples=examples or EXAMPLES)
    return Glyphs(data_dir=str(data_dir), config=config, file_format="array_record")
