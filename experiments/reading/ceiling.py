"""What folding leaves of a text: an ideal reader of folded pixels, who knows all but the digits.

Font, height, place and ground are known, and of the text all digits but one: which of ten may that one be, if the
folded image is to be what it is?  Where k look alike, 1 / k is right by chance.  The product over digits is about how
often such a reader is exact; no reader of folded pixels can be expected to be better.
"""

from collections.abc import Sequence

import numpy as np

from pixtok import fold
from source import Scene


def exact(scene: Scene, factors: Sequence[int]) -> np.ndarray:
    """The chance that an ideal reader is exact, for each fold factor."""
    truth, chance_F = fold.pack(scene.image()), np.ones(len(factors))
    for position in range(len(scene.text)):
        changed = [scene.text[:position] + str(digit) + scene.text[position + 1 :] for digit in range(10)]
        packed = [truth if text == scene.text else fold.pack(scene.image(text)) for text in changed]
        for at, factor in enumerate(factors):
            seen = fold.ids(truth, factor)
            chance_F[at] /= sum(np.array_equal(fold.ids(one, factor), seen) for one in packed)
    return chance_F


def psnr(image: np.ndarray, factor: int) -> float:
    """Of an image as folding leaves it, in dB; infinite where it leaves all."""
    error = np.mean((image.astype(float) - fold.folded(image, factor)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
