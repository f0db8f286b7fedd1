import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from models import SMALL, STEM, batch, compiled, image, variables

from pixtok import windows
from pixtok.errors import InputError
from pixtok.generate import Draw, Generator, Knobs, draw
from pixtok.model.model import UnifiedModel
from pixtok.words import Bytes

BY_CHANNEL = dataclasses.replace(SMALL, fold_factor=1, halo=1)
FOLDED = dataclasses.replace(SMALL, residual=False, summaries=False)
NO_LAYERS = dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, layers=0), variant="upw")


def generator(config) -> Generator:
    return Generator(config, variables(config, 2.0)["params"], Bytes())


def greedy_by_recomputation(config, known, mask, text):
    """One pixel after the other, each from a whole forward pass over what is known so far."""
    states = compiled(config, "states")
    weights = variables(config, 2.0)
    chain = UnifiedModel(config).bind(weights).chain
    now = known.copy()
    side = config.window
    height, width = mask.shape
    layout = windows.geometry(height, width, side)
    for m, (shape, place) in enumerate(zip(layout.shape_M2, layout.place_M4, strict=True)):
        for i in range(shape.prod()):
            y, x = place[0] * side + i // shape[1], place[1] * side + i % shape[1]
            if not mask[y, x]:
                continue
            rows = batch((text, now) if text else (now,), config=config, slots=16, windows=9)
            state, value = states(weights, rows)[1][:, m, i], []
            for part in range(len(chain.sizes)):
                value.append(jnp.argmax(chain.logits(part, state), axis=-1))
                state = chain.tell(part, state, value[-1])
            value = np.array(value)[:, 0]
            rest = value[3:] if len(value) > 3 else config.fold_factor // 2 * (config.fold_factor > 1)
            now[y, x] = value[:3] * config.fold_factor + rest
    return now


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SMALL, id="residual"),
        pytest.param(BY_CHANNEL, id="by-channel", marks=pytest.mark.slow),
        pytest.param(FOLDED, id="folded"),
        pytest.param(STEM, id="stem"),
        pytest.param(NO_LAYERS, id="no-layers", marks=pytest.mark.slow),
    ],
)
def test_drawing_with_caches_is_drawing_by_recomputation(config):
    known, mask = image(5, 7), np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    got = generator(config).images(known, mask, text="a", how=Draw(temperature=0))
    expected = greedy_by_recomputation(config, known, mask, "a")
    np.testing.assert_array_equal(got[0], expected)
    assert (got[0][mask] != known[mask]).any()
    np.testing.assert_array_equal(got[0][~mask], known[~mask])


def test_samples_have_the_probabilities_of_the_model():
    """2,000 images of two pixels of 8 colours, against −log p of each from the parallel model."""
    config = dataclasses.replace(SMALL, fold_factor=128, residual=False)
    count = 2000
    blank = np.zeros((1, 2, 3), np.uint8)
    drawn = generator(config).images(blank, np.ones((1, 2), bool), count=count, how=Draw(seed=1))
    bits = (drawn >> 7).reshape(count, 6) @ (1 << np.arange(6))
    observed = np.bincount(bits, minlength=64)
    every = ((np.arange(64)[:, None] >> np.arange(6)) & 1).reshape(64, 1, 2, 3).astype(np.uint8) * 128
    rows = [batch((item,), config=config, slots=5, windows=1) for item in every]
    rows = jax.tree.map(lambda *a: np.concatenate(a), *rows)
    nats = compiled(config)(variables(config, 2.0), rows)
    expected = np.exp(-np.float64(nats.pixel_BMWC[:, 0, :2]).sum((-1, -2)))
    assert expected.sum() == pytest.approx(1, abs=1e-6)
    chi2 = (((observed - count * expected) ** 2) / (count * expected)).sum()
    assert chi2 < 63 + 5 * np.sqrt(2 * 63), "five standard deviations"


def test_seeds_and_the_rest_of_a_batch():
    known, mask = image(4, 5), np.ones((4, 5), bool)
    make = generator(SMALL)
    once, again, other = (make.images(known, mask, count=2, how=Draw(seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    assert (once[0] != once[1]).any()


def test_nothing_to_draw_gives_the_image_back():
    known = image(4, 5)
    np.testing.assert_array_equal(generator(SMALL).images(known, np.zeros((4, 5), bool))[0], known)


@pytest.mark.parametrize(
    ("knobs", "seen"),
    [
        (Knobs(1.0, 0, 1.0), {0, 1, 2, 3}),
        (Knobs(1.0, 2, 1.0), {2, 3}),
        (Knobs(1.0, 0, 0.7), {2, 3}),  # 0.64 + 0.24
        (Knobs(1.0, 0, 0.0), {3}),
        (Knobs(0.0, 0, 1.0), {3}),
    ],
)
def test_draws_stay_within_top_k_and_top_p(knobs, seen):
    logits = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0, 3.0]), (2000, 4))
    drawn = draw(jax.random.key(0), logits, knobs)
    assert set(np.unique(drawn).tolist()) == seen


def test_equal_outcomes_count_one_by_one():
    equal = jnp.zeros((2000, 10))
    assert len(np.unique(draw(jax.random.key(0), equal, Knobs(1.0, 2, 1.0)))) == 2
    assert len(np.unique(draw(jax.random.key(0), equal, Knobs(1.0, 0, 0.3)))) == 3
    near = jnp.broadcast_to(jnp.array([1 - 3e-7, 1.0, 0.0]), (2000, 3))
    assert np.unique(draw(jax.random.key(0), near, Knobs(0.0, 0, 1.0))).tolist() == [1]


def test_a_model_of_first_pixels_cannot_draw():
    config = dataclasses.replace(SMALL, objective="reference")
    with pytest.raises(InputError, match=r"train one with --model.objective full"):
        Generator(config, {}, Bytes())
