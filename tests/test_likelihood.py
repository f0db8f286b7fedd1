import numpy as np
import pytest
from jax import numpy as jnp

from pixtok import likelihood
from pixtok.likelihood import Sums


def test_sums_by_definition():
    logits = np.random.default_rng(0).standard_normal((2, 4, 10)).astype(np.float32)
    target = np.array([[3, 9, -1, 0], [7, -1, -1, 6]])
    nats = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    sums = likelihood.reference(jnp.asarray(logits), jnp.asarray(target), vocab_size=7)
    assert (int(sums.words), int(sums.first_pixels)) == (3, 2)
    assert float(sums.nats_word) == pytest.approx(nats[0, 0, 3] + nats[0, 3, 0] + nats[1, 3, 6], rel=1e-5)
    assert float(sums.nats_first_pixel) == pytest.approx(nats[0, 1, 9] + nats[1, 0, 7], rel=1e-5)


def test_figures_divide_by_the_counts_of_each_kind():
    sums = Sums(*map(jnp.float32, (6, 3, 10, 2)))
    assert likelihood.figures(sums) == {"loss": 16 / 5, "nats_word": 2, "nats_first_pixel": 5}
    assert likelihood.figures(Sums(*map(jnp.float32, (6, 3, 0, 0)))) == {"loss": 2, "nats_word": 2}
    assert likelihood.figures(Sums(*map(jnp.float32, (0, 0, 0, 0)))) == {}
