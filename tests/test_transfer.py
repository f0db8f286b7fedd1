"""Coordinate checks: what a few steps change in the model is the same at every width and depth."""

import functools

import jax
import numpy as np
import pytest
from models import PATCHES, STEM, batch, image

from pixtok import optim, sharding, transfer
from pixtok.config import FAMILY, Data, Experiment, Mesh, Model, Stream, Train, family
from pixtok.model.model import UnifiedModel
from pixtok.step import Program

STEPS = 4


def model(width: int, layers: int, with_transfer: bool = True) -> Model:
    trunk = Stream(width, layers, width // 32, width // 32)
    pixels = Stream(width // 2, layers, width // 32, width // 32)
    return Model(pixels, trunk, pixels, fold_factor=32, window=4, transfer=with_transfer)


def program(config: Model) -> Program:
    train = Train(STEPS, 1, learning_rate=1e-4, warmup_steps=0, final_rate=1, weight_decay=0, dtype="float32")
    return Program(
        Experiment("test", config, Data("none", slots=40, windows=12), train),
        sharding.make_mesh(Mesh(), jax.devices()[:1]),
    )


@functools.cache
def changes(width: int, layers: int, with_transfer: bool = True) -> np.ndarray:
    """Root mean square of what 4 steps change in the states of trunk and pixel decoder."""
    config = model(width, layers, with_transfer)
    made, rows = program(config), batch(("a word", image(12, 16)), config=config, slots=40, windows=12)
    states = jax.jit(lambda params: UnifiedModel(config).apply({"params": params}, rows, method="states"))
    state = made.init()
    before = jax.device_get(states(state.params))
    for _ in range(STEPS):
        state, _ = made.train_step(state, made.put(rows))
    after = jax.device_get(states(state.params))
    return np.array([np.sqrt(np.mean((b - a)[0] ** 2)) for a, b in zip(before, after, strict=True)])


@pytest.mark.slow
def test_what_steps_change_is_the_same_at_four_times_the_width():
    ratio = changes(256, 2) / changes(64, 2)
    assert np.all((ratio > 0.7) & (ratio < 1.5))
    usual = changes(256, 2, False) / changes(64, 2, False)
    assert np.all(usual > 2.5)


@pytest.mark.slow
def test_what_steps_change_is_the_same_at_four_times_the_depth():
    ratio = changes(64, 8) / changes(64, 2)
    assert np.all((ratio > 0.6) & (ratio < 2))
    usual = changes(64, 8, False) / changes(64, 2, False)
    assert np.all(usual > 1.3 * ratio)


def test_rates_follow_the_shapes_of_matrices():
    config = model(64, 2)
    train = Train(2, 1, word_rate=3.0, pixel_rate=0.5)
    found = transfer.rates(program(config).abstract.params, train)
    block = found["trunk"]["stack"]["blocks"]
    assert block["attention"]["query"] == block["mlp"]["up"] == 128 / 64
    assert block["attention"]["out"] == 128 / 64 * 4 / 2
    assert block["mlp"]["down"] == 128 / (3 * 64) * 4 / 2
    assert block["mlp_norm"]["scale"] == 1
    assert found["head"]["word"] == 2
    assert found["encoder"]["summary"] == 128 / 32
    assert found["chain"]["down_0"] == 128 / (2 * 32)
    assert found["trunk"]["embed"]["table"] == 3
    assert {found["encoder"]["embed"]["table"], found["chain"]["table_0"], found["chain"]["table_known_1"]} == {0.5}


def test_what_takes_patches_moves_as_tables_of_pixels_do():
    train = Train(1, 1, warmup_steps=0, pixel_rate=3)
    found = transfer.rates(program(PATCHES).abstract.params, train)["encoder"]
    assert found["stem"]["up"] == 3
    assert found["stem"]["down"] == pytest.approx(128 / PATCHES.stem)


def test_colours_that_a_stem_reads_move_slower():
    found = transfer.rates(program(STEM).abstract.params, Train(1, 1, warmup_steps=0, pixel_rate=4))
    assert found["encoder"]["embed"]["table"] == 1 / 4
    assert found["chain"]["table_0"] == found["encoder"]["stem"]["up"] == 4


def test_weight_decay_does_not_follow_the_rate_of_a_matrix():
    params = {"trunk": {"blocks": {"query": np.ones((2, 64, 2, 32), np.float32)}}}
    optimizer = optim.optimizer(Train(2, 1, learning_rate=0.5, warmup_steps=0, weight_decay=0.25), True)
    gradient = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["trunk"]["blocks"]["query"], -0.5 * 0.25)


@pytest.mark.parametrize("width", FAMILY)
def test_streams_of_the_family_cost_about_the_same(width):
    from pixtok import flops

    config = family(width)
    made = Experiment("test", config, Data("none", slots=200, windows=196), Train(2, 1))
    groups = flops.ledger(config, flops.full(made))
    encoder, trunk = groups["encoder"].forward, groups["trunk"].forward
    assert encoder < 0.35 * sum(entry.forward for entry in groups.values())
    if width >= 512:  # below, pixels are as narrow as a head may be
        assert 0.5 < encoder / trunk < 2
