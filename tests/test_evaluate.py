import numpy as np
import pytest
from models import SMALL

from pixtok.evaluate import _intervals


def test_intervals_cover_the_mean_as_often_as_they_say():
    """200 samples of 60 documents whose mean is known: about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        words = rng.integers(1, 20, size=60).astype(float)
        table = np.zeros((60, 7))
        table[:, 0], table[:, 1] = words * rng.normal(2.0, 0.5, size=60), words
        low, high = _intervals(table, SMALL)["nats_word"]
        held += low < 2.0 < high
    assert 0.88 < held / 200 < 0.99


def test_a_rare_modality_does_not_pull_intervals_to_zero():
    table = np.zeros((4, 7))
    table[:, 0], table[:, 1] = 6, 3
    assert "nats_first_pixel" not in _intervals(table, SMALL)
    table[0, 2:] = 12, 4, 8, 8, 4
    assert set(_intervals(table, SMALL)) == {"loss", "nats_word", "reference"}, "one document with pixels tells nothing"
    table[1, 2:] = 12, 4, 8, 8, 4
    got = _intervals(table, SMALL)
    assert got["nats_first_pixel"] == pytest.approx([3, 3])
    many = np.concatenate([table] + [table[2:]] * 2000)
    assert _intervals(many, SMALL)["nats_first_pixel"] == pytest.approx([3, 3])
    assert _intervals(table[:1], SMALL) == {}
