"""What a stem is told of a window, and the patch encoder."""

import dataclasses

import numpy as np
import pytest
from models import PATCHES, SMALL, batch, compiled, image, variables

from pixtok import fold, windows
from pixtok.config import Data, Experiment, Train, validate
from pixtok.errors import InputError
from pixtok.model.stem import describe, inputs


def told(picture: np.ndarray, side: int = 3) -> np.ndarray:
    """(M, inputs)."""
    pixel_MW = windows.split(fold.pack(picture), side, fill=fold.PADDING)
    value_1MW3 = fold.split(pixel_MW[None], 1)[0] * np.float32(2 / 255) - 1
    return np.array(describe(value_1MW3, windows.geometry(*picture.shape[:2], side).shape_M2[None], side))[0]


def test_a_patch_is_its_pixels_at_their_places():
    picture = image(5, 7)
    found = told(picture)
    assert found.shape == (6, inputs(3, 3))
    for number, (y, x) in enumerate((y, x) for y in (0, 3) for x in (0, 3, 6)):
        own = picture[y : y + 3, x : x + 3] / 127.5 - 1
        whole = np.zeros((3, 3, 3))
        contrast = np.sqrt(np.mean((own - own.mean((0, 1))) ** 2) + 0.04**2)
        whole[: own.shape[0], : own.shape[1]] = (own - own.mean((0, 1))) / contrast
        rest = [*own.mean((0, 1)), np.log(contrast) + 1, 1]
        np.testing.assert_allclose(found[number], [*whole.ravel(), *rest], atol=2e-6)


def test_a_patch_that_is_absent_is_finite():
    found = describe(np.ones((1, 2, 9, 3), np.float32), np.zeros((1, 2, 2), np.int32), 3)
    assert np.isfinite(found).all()


def test_level_and_contrast_are_told():
    picture = image(3, 3) // 4
    assert np.abs(told(picture) - told(picture + 100)).max() > 0.5
    assert np.abs(told(picture) - told(picture * 2)).max() > 0.5


def test_faint_differences_within_a_fold_reach_the_words():
    """A patch is not folded: ink that F = 64 cannot tell from its ground is seen."""
    plain = np.full((3, 3, 3), 100, np.uint8)
    faint = plain.copy()
    faint[1] += 8
    nats = [
        np.array(compiled(PATCHES)(variables(PATCHES), batch((one, "7"), config=PATCHES)).slot_BS)
        for one in (plain, faint)
    ]
    assert np.abs(nats[0] - nats[1]).max() > 1e-3


def test_words_alone_are_scored():
    rows = batch((image(4, 5), "12"), config=PATCHES)
    nats = compiled(PATCHES)(variables(PATCHES), rows)
    is_word = (rows.target_BS >= 0) & (rows.target_BS < PATCHES.vocab_size)
    assert ((np.array(nats.slot_BS) > 0) == is_word).all()
    assert nats.pixel_BMWC.shape[-1] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective": "full"}, "model.objective"),
        ({"encoder": dataclasses.replace(PATCHES.encoder, layers=1)}, "model.encoder.layers"),
        ({"stem": 0}, "model.stem"),
        ({"variant": "upw"}, "model.stem"),
        ({"variant": "pixtok", "encoder": SMALL.encoder}, "model.encoder.layers"),
    ],
)
def test_settings_that_a_stem_cannot_have_are_named(change, named):
    made = Experiment("", dataclasses.replace(PATCHES, **change), Data("x"), Train(2, 1, warmup_steps=0))
    with pytest.raises(InputError, match=named):
        validate(made)
