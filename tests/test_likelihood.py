import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from models import SMALL, batch, compiled, image, stack, variables

from pixtok import document, fold, likelihood
from pixtok.config import Model, Stream
from pixtok.document import NO_TARGET, Rows
from pixtok.likelihood import Sums

NAMES = ("nats_word", "nats_first_pixel", "nats_fold", "nats_residual")


def scored(config: Model, rows: Rows, scale: float = 3.0) -> Sums:
    """Sums for each slot, float64."""
    nats = compiled(config)(variables(config, scale), rows)
    return jax.tree.map(np.float64, jax.device_get(likelihood.by_slot(nats, rows, config)))


def test_probabilities_of_all_documents_sum_to_one():
    """Documents of up to three slots after <s>: any of 6 words or a window of 1 × 2 pixels of 8 colours, at each.

    A second window stands to the right of the first, and so sees it in its halo.
    """
    tiny = Stream(width=8, layers=1, heads=1, kv_heads=1)
    config = Model(tiny, tiny, tiny, vocab_size=6, fold_factor=128, residual=False, window=2, halo=1)
    end, windows = 2, list(itertools.product(range(8), repeat=2))
    outcomes = [*range(6), *windows]
    complete = [(end,)] + [(a, end) for a in outcomes if a != end]
    cut = [(a, b) for a in outcomes if a != end for b in outcomes if b != end]  # goes on in some way after two slots
    rows = stack([as_row(slots, config) for slots in complete + cut])
    sums = scored(config, rows, scale=6.0)
    nats = sum(np.asarray(getattr(sums, name)).sum(1) for name in NAMES)
    probability = np.exp(-nats)
    assert probability.max() > 10 * probability.min(), "predictions that are all alike would show little"
    assert probability.sum() == pytest.approx(1, abs=1e-6)


def as_row(slots, config: Model) -> Rows:
    """<s>, then words (ids) and windows of 1 × 2 (pairs of folded ids), as one row of three slots."""
    row = document.empty_row(4, 2, config.window)
    row.word_BS[0], row.segment_BS[: len(slots) + 1] = 1, 1
    row.position_BS[:] = np.arange(4)
    window = 0
    for slot, item in enumerate(slots, start=1):
        if isinstance(item, int):
            row.word_BS[slot] = row.target_BS[slot - 1] = item
            continue
        row.target_BS[slot - 1] = config.vocab_size + item[0]
        ids = np.array(item)
        level = np.stack([ids & 1, ids >> 1 & 1, ids >> 2 & 1], -1).astype(np.int32)
        row.window_slot_BM[window] = slot
        row.pixel_BMW[window, :2] = fold.join(level, 0, 128)
        row.shape_BM2[window], row.place_BM4[window] = (1, 2), (0, window, 1, 2)
        window += 1
    return Rows(*(array[None] for array in row))


def test_probabilities_of_all_colours_of_a_pixel_sum_to_one():
    """All 2²⁴ of them: the chain of 4 levels and 64 residuals a channel, summed from its last part backwards."""
    config = dataclasses.replace(SMALL, fold_factor=128)
    from pixtok.model.model import UnifiedModel

    bound = UnifiedModel(config).bind(variables(config, 3.0))
    state = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16)), jnp.float32)
    log_p = jnp.zeros(1)
    for part, size in enumerate(bound.chain.sizes[:-1]):
        log_p = (log_p[:, None] + jax.nn.log_softmax(bound.chain.logits(part, state))).reshape(-1)
        value = jnp.tile(jnp.arange(size), len(state))
        state = bound.chain.tell(part, jnp.repeat(state, size, axis=0), value)
    assert log_p.shape == (2**3 * 128**2,)
    last = jax.nn.log_softmax(bound.chain.logits(5, state))
    total = np.exp(np.float64(log_p))[:, None] * np.exp(np.float64(last))
    assert total.size == 2**24
    assert total.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "config",
    [SMALL, dataclasses.replace(SMALL, fold_factor=1, halo=1), dataclasses.replace(SMALL, summaries=False)],
    ids=["residual", "by-channel", "no-summaries"],
)
def test_no_prediction_depends_on_a_later_pixel(config):
    """Every pixel of an image of ragged windows in turn takes another colour: nothing before it moves."""
    height, width = 7, 8
    clean = image(height, width)
    changed = []
    for y, x in np.ndindex(height, width):
        other = clean.copy()
        other[y, x] = 255 - other[y, x]
        changed.append(other)
    rows = stack([batch(("a", item, "b"), config=config, slots=16, windows=9) for item in [clean, *changed]])
    nats = compiled(config)(variables(config), rows)
    shape_M2 = rows.shape_BM2[0]
    order = [(m, i) for m in range(9) for i in range(shape_M2[m].prod())]
    pixel_BNC = np.stack([nats.pixel_BMWC[:, m, i] for m, i in order], axis=1)
    moved_BN = np.abs(pixel_BNC[1:] - pixel_BNC[:1]).max(-1) > 0
    moved_BS = np.abs(nats.slot_BS[1:] - nats.slot_BS[:1]) > 0
    number = {(y, x): n for n, (y, x) in enumerate(raster(height, width, config.window))}
    start = np.cumsum([0, *shape_M2.prod(1)])
    for row, (y, x) in enumerate(np.ndindex(height, width)):
        own = number[y, x]
        window = int(np.searchsorted(start, own, side="right")) - 1
        slot_before = int(rows.window_slot_BM[0, window]) - 1
        assert not moved_BN[row, :own].any(), (y, x)
        assert moved_BN[row, own], "the pixel's own −log p"
        assert not moved_BS[row, : slot_before + 1].any(), (y, x)
        if own + 1 < start[window + 1]:
            assert moved_BN[row, own + 1], "the next pixel of the window"
        assert moved_BS[row, slot_before + 1], "what follows the window"


def raster(height, width, side):
    """(row, column) of all pixels in the order in which they are predicted."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            for y in range(top, min(top + side, height)):
                for x in range(left, min(left + side, width)):
                    yield y, x


def test_the_halo_shows_the_neighbours_of_a_window():
    """Without trunk states, what lies outside a window reaches its pixels through the halo, and through it alone."""
    config = dataclasses.replace(SMALL, summaries=False, decoder=dataclasses.replace(SMALL.decoder, layers=1))
    clean = image(6, 9)
    for (y, x), sees in {(2, 3): True, (2, 1): True, (2, 7): True, (3, 2): True, (0, 3): False, (2, 8): False}.items():
        other = clean.copy()
        other[y, x] ^= 3  # a residual: only the decoder knows it
        rows = stack([batch((item,), config=config, slots=16, windows=6) for item in (clean, other)])
        pixel = compiled(config)(variables(config), rows).pixel_BMWC[:, 4]
        moved_W = np.abs(pixel[0] - pixel[1]).max(-1) > 0
        assert (moved_W == sees).all(), (y, x)  # the first pixel too


def test_the_first_pixel_of_a_window_begins_as_its_neighbour():
    """To the left where there is one, else above, else none.  Without layers nothing else reaches it."""
    config = dataclasses.replace(SMALL, summaries=False, decoder=dataclasses.replace(SMALL.decoder, layers=0))
    clean = image(6, 9)
    changed = []
    for y, x in np.ndindex(6, 9):
        other = clean.copy()
        other[y, x] ^= 3  # a residual: only the decoder knows it
        changed.append(other)
    rows = stack([batch((item,), config=config, slots=16, windows=6) for item in [clean, *changed]])
    first_BM = compiled(config)(variables(config), rows).pixel_BMWC[:, :6, 0].sum(-1)
    moved_BM = first_BM[1:] != first_BM[:1]
    for window, neighbour in enumerate([None, (0, 2), (0, 5), (2, 0), (3, 2), (3, 5)]):
        own = (window // 3 * 3, window % 3 * 3)
        seen = {(int(y), int(x)) for y, x in np.argwhere(moved_BM[:, window].reshape(6, 9))}
        assert seen == {own, neighbour} - {None}


def test_an_image_sees_what_came_before_it_in_its_document_through_the_trunk_alone():
    """A residual is known to the decoder alone, and so moves no other image; a colour moves those after it."""
    clean = image(4, 7), image(5, 5)
    batches = [("a", clean[0], "b", clean[1])]
    for number, flip in itertools.product(range(2), (3, 64)):
        other = [item.copy() for item in clean]
        other[number][0, 0] ^= flip
        batches.append(("a", other[0], "b", other[1]))
    rows = stack([batch(item, slots=24) for item in batches])
    pixel = compiled(SMALL)(variables(SMALL), rows).pixel_BMWC
    valid = np.arange(9) < rows.shape_BM2[0].prod(-1)[:, None]
    moved = [
        [bool((np.abs(pixel[row, m] - pixel[0, m]).max(-1) > 0)[valid[m]].any()) for m in (slice(0, 6), slice(6, 10))]
        for row in range(1, 5)
    ]
    assert moved == [[True, False], [True, True], [False, True], [False, True]]


def test_sums_count_what_was_predicted():
    rows = batch(("ab", image(4, 7), "c"), ("d", image(2, 2)))
    sums = scored(SMALL, rows)
    assert sums.words.sum() == 2 + 2 + 1 + 1 + 1 + 2 + 1  # a b <image> </image> c </s>, d <image> </image> </s>
    assert sums.first_pixels.sum() == 6 + 1
    assert sums.pixels.sum() == 28 + 4
    assert (np.asarray(sums.words + sums.first_pixels) == (rows.target_BS != NO_TARGET)).all()
    assert likelihood.counts(rows, SMALL) == {"words": 10, "first_pixels": 7, "pixels": 32}


@pytest.mark.parametrize("factor", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 64)), 256])
def test_untrained_bits_of_noise_are_about_those_of_a_uniform_guess(factor):
    """A little more: an untrained model expects a pixel to be like the one before."""
    config = dataclasses.replace(SMALL, fold_factor=factor)
    sums = scored(config, batch(("", image(9, 9)), config=config), 1.0)
    figures = likelihood.figures(jax.tree.map(np.sum, sums), config)
    assert 7.9 < figures["bpd_8bit"] < 10
    assert -0.1 < figures["bpd_fold"] - np.log2(256 / factor) < 1.2


def test_an_untrained_model_expects_a_pixel_to_be_like_the_one_before():
    decoder = dataclasses.replace(SMALL.decoder, width=64)
    config = dataclasses.replace(SMALL, fold_factor=1, decoder=decoder)
    ramp = np.cumsum(np.random.default_rng(0).integers(-2, 3, size=(81, 3)), axis=0) + 128
    rows = batch(("", ramp.reshape(9, 9, 3).astype(np.uint8)), config=config)
    figures = likelihood.figures(jax.tree.map(np.sum, scored(config, rows, 1.0)), config)
    assert figures["bpd_8bit"] < 7.6


def test_full_weights_report_the_reference_objective_too():
    rows = batch(("ab", image(4, 7), "c"))
    nats = compiled(SMALL)(variables(SMALL), rows)
    full = likelihood.figures(likelihood.total(likelihood.by_slot(nats, rows, SMALL)), SMALL)
    targets = int((rows.target_BS != NO_TARGET).sum())
    first_colours = nats.pixel_BMWC[0, :6, 0, :3].sum()
    assert float(full["reference"]) == pytest.approx(float(nats.slot_BS.sum() + first_colours) / targets, rel=1e-6)


@pytest.mark.parametrize(("factor", "expected"), [(1, np.log(263) + 3 * np.log(256)), (64, np.log(262 + 4**3))])
def test_upws_objective_is_words_and_first_pixels(factor, expected):
    """Before training all of them are guessed alike: 262 words and a window of any colour, or of each."""
    config = dataclasses.replace(SMALL, objective="reference", fold_factor=factor)
    rows = batch(("ab", image(4, 7), "c"), config=config)
    nats = compiled(config)(variables(config), rows)
    alone = likelihood.figures(likelihood.total(likelihood.by_slot(nats, rows, config)), config)
    assert alone.keys() == {"loss", "nats_word", "nats_first_pixel", "reference"}
    assert float(alone["loss"]) == pytest.approx(float(alone["reference"]))
    assert float(alone["nats_first_pixel"]) == pytest.approx(expected, abs=0.3)


def test_figures_of_nothing_are_absent():
    nothing = Sums(*[0.0] * len(Sums._fields))
    assert likelihood.figures(nothing, SMALL) == {"loss": 0}
    folded = dataclasses.replace(SMALL, residual=False)
    some = nothing._replace(pixels=2.0, nats_fold=np.log(2) * 6)
    assert likelihood.figures(some, folded)["bpd_fold"] == pytest.approx(1)
    assert "bpd_8bit" not in likelihood.figures(some, folded)
