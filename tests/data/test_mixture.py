import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixtok.data import mixture
from pixtok.data.mixture import Mixture
from pixtok.errors import InputError

weight = st.one_of(st.integers(1, 40), st.floats(0.01, 5).map(lambda value: round(value, 2)))


def mixtures(least: int = 1):
    return st.lists(weight, min_size=least, max_size=6)


@st.composite
def staged(draw):
    """(stages of one number of sources, batch size)."""
    sources = draw(st.integers(1, 4))
    firsts = draw(st.lists(st.integers(1, 30), max_size=3, unique=True).map(sorted))
    drawn = st.lists(weight, min_size=sources, max_size=sources)
    return [(first, draw(drawn)) for first in (0, *firsts)], draw(st.integers(1, 9))


@settings(max_examples=40)
@given(mixtures(), st.integers(0, 10**12))
def test_every_prefix_holds_the_share_of_each_source_to_within_a_row(weights, far):
    made = Mixture([(0, weights)], len(weights), 4)
    share = np.array(weights) / sum(weights)
    used = np.zeros(len(weights), int)
    for row in range(400):
        source, number = made.locate(row)
        assert number == used[source], "each source gives its rows in order, one after the other"
        used[source] += 1
        assert (abs(used - (row + 1) * share) < 1 + 1e-6 * row).all()
    source, number = made.locate(far)
    assert abs(number - far * share[source]) < 1 + 1e-6 * far * share[source]


@settings(max_examples=40)
@given(staged())
def test_a_change_of_weights_repeats_and_drops_nothing(case):
    stages, batch_size = case
    sources = len(stages[0][1])
    made = Mixture(stages, sources, batch_size)
    rows = [made.locate(row) for row in range(45 * batch_size)]
    for source in range(sources):
        numbers = [number for owner, number in rows if owner == source]
        assert numbers == list(range(len(numbers)))
    for (first, weights), (end, _) in zip(stages, [*stages[1:], (45, None)], strict=True):
        counts = Counter(source for source, _ in rows[first * batch_size : end * batch_size])
        for source, given_weight in enumerate(weights):
            wanted = (end - first) * batch_size * given_weight / sum(weights)
            assert abs(counts[source] - wanted) < 1.001


@settings(max_examples=40)
@given(staged(), st.integers(0, 40), mixtures(), st.integers(0, 30))
def test_a_run_that_goes_on_with_other_weights_keeps_its_past(case, step, other, later):
    stages, batch_size = case
    sources = len(stages[0][1])
    other = (other * sources)[:sources]
    again = json.loads(json.dumps(mixture.resumed(stages, step, other)))
    before, after = Mixture(stages, sources, batch_size), Mixture(again, sources, batch_size)
    assert all(before.locate(row) == after.locate(row) for row in range(step * batch_size))
    assert after.stages[-1][1] == tuple(other)
    # Killed between two checkpoints, or stopped and started again, with these weights: the same stages.
    assert mixture.resumed(again, step + later, other) == after.stages


def test_any_weights_make_a_period():
    for weights in ([1e300, 1e300], [1e-300, 1.0, 7e5], [math.pi, math.e, 1 / 3], [10**9, 1], [1.0] * 30):
        counts = mixture._counts(weights)
        assert sum(counts) <= 2**18
        assert min(counts) >= 1, "none is left out"
    assert mixture._counts([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert mixture._counts([1 / 3, 2 / 3]) == [1, 2]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_interleaved_rows_come_once_and_evenly(rows):
    table = mixture.interleave(rows)
    assert sorted(map(tuple, table.tolist())) == [(s, row) for s, count in enumerate(rows) for row in range(count)]
    if len(rows) == 1:
        assert table[:, 1].tolist() == list(range(rows[0]))
    half = np.bincount(table[: len(table) // 2, 0], minlength=len(rows))
    assert (abs(half - np.array(rows) / 2) <= len(rows)).all()


@pytest.mark.parametrize("weights", [(1,), (1, 2, 3), (1, 0), (1, -1), (1, math.nan), (math.inf, 1)])
def test_other_weights_are_bad_input(weights):
    with pytest.raises(InputError, match=r"data.weights must be a positive and finite number for each data set, 2"):
        Mixture([(0, weights)], 2, 1)


@pytest.mark.parametrize("firsts", [(), (1,), (0, 3, 3), (0, 4, 2)])
def test_stages_begin_at_step_0_and_rise(firsts):
    with pytest.raises(ValueError, match="stages must begin at step 0"):
        Mixture([(first, (1, 1)) for first in firsts], 2, 1)
