import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from pixtok.config import Stream
from pixtok.model import attention


def test_line_frequencies_are_llama_3_1s():
    """The published piecewise rule, one frequency at a time."""
    for number, got in enumerate(attention.line_frequencies(64)):
        f = 5e5 ** (-2 * number / 64)
        wave = 2 * math.pi / f
        if wave < 8192 / 4:
            expected = f
        elif wave > 8192 / 1:
            expected = f / 8
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            expected = (1 - smooth) * f / 8 + smooth * f
        assert got == pytest.approx(expected, rel=1e-6)


def scores(angles: jax.Array) -> np.ndarray:
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 16)) for i in range(2))
    shape = (1, angles.shape[1], 1, 16)
    turned = [attention.rotate(jnp.broadcast_to(x, shape), angles) for x in (q, k)]
    return np.asarray(jnp.einsum("bqhd,bkhd->qk", *turned))


def test_scores_depend_on_the_distance_alone():
    position = jnp.arange(12)[None]
    near, far = (scores(attention.line_angles(position + shift, 16)) for shift in (0, 1000))
    np.testing.assert_allclose(near, far, atol=2e-3)
    np.testing.assert_allclose(near[:-1, :-1], near[1:, 1:], atol=1e-5)
    assert np.abs(near[0] - near[0, 0]).max() > 0.1


def test_axial_scores_depend_on_both_distances_alone():
    row, column = (index.ravel()[None] for index in jnp.mgrid[:4, :4])
    score = scores(attention.axial_angles(row, column, 16)).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(score[0, 0, 1, 2], score[2, 1, 3, 3], atol=1e-5)
    assert abs(score[0, 0, 0, 1] - score[0, 0, 1, 0]) > 1e-2


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_by_definition(heads, kv_heads):
    """Grouped queries, causal, segments apart: against float64 loops."""
    config = Stream(width=16, layers=1, heads=heads, kv_heads=kv_heads)
    module = attention.Attention(config, jnp.dtype("float32"))
    x = jax.random.normal(jax.random.key(0), (1, 7, 16))
    segment = jnp.array([[1, 1, 1, 2, 2, 2, 2]])
    angles = attention.line_angles(jnp.arange(7)[None], config.head_width)
    params = module.init(jax.random.key(1), x, angles, segment)
    got = module.apply(params, x, angles, segment)[0]

    w = {name: np.asarray(leaf, np.float64) for name, leaf in nn.unbox(params)["params"].items()}
    x64 = np.asarray(x[0], np.float64)

    def turn(v, angle):
        half = len(v) // 2
        a, b = v[:half], v[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)])

    expected = np.zeros((7, 16))
    for t in range(7):
        for h in range(heads):
            kv = h // (heads // kv_heads)
            seen = [s for s in range(t + 1) if segment[0, s] == segment[0, t]]
            q = turn(x64[t] @ w["query"][:, h], np.asarray(angles[0, t], np.float64))
            k = [turn(x64[s] @ w["key"][:, kv], np.asarray(angles[0, s], np.float64)) for s in seen]
            weight = np.exp(np.array(k) @ q / math.sqrt(config.head_width))
            value = (weight / weight.sum()) @ np.array([x64[s] @ w["value"][:, kv] for s in seen])
            expected[t] += value @ w["out"][h]
    np.testing.assert_allclose(got, expected, atol=1e-5)
