import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from pixtok import sharding
from pixtok.config import Mesh
from pixtok.model import causal


def arguments(slots: int, rows: int = 1, heads: int = 4, kv_heads: int = 2, width: int = 64):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(rows, slots, count, width) for count in (heads, kv_heads, kv_heads, heads)]
    q, k, v, do = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    # Three documents, then padding.
    ends = np.array([slots // 5, slots // 2, slots - 3])
    segment = np.searchsorted(ends, np.arange(slots), side="right") + 1
    segment[slots - 3 :] = 0
    return (q, k, v, jnp.asarray(np.tile(segment.astype(np.int32), (rows, 1)))), do


def both(attend, arguments, do):
    """Attention and its gradients."""

    def run(q, k, v, segment, do):
        out, gradient = jax.vjp(lambda q, k, v: attend(q, k, v, segment), q, k, v)
        return out, gradient(do)

    return jax.jit(run)(*arguments, do)


@pytest.mark.parametrize(
    "mesh", [None, Mesh(data=1, window=4), Mesh(data=1, window=2, tensor=2), Mesh(data=2, window=2)], ids=str
)
def test_the_kernel_for_long_rows_gives_the_same(mesh):
    """Interpreted, for slots that do not divide by anything."""
    given, do = arguments(300, rows=1 if mesh is None else mesh.data)
    expected = both(causal._plain, given, do)
    attend = functools.partial(causal.splash, interpret=True)
    if mesh is None:
        got = both(attend, given, do)
    else:
        with jax.set_mesh(sharding.make_mesh(mesh)):
            got = both(attend, given, do)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), got, expected)


def test_a_long_row_is_many_short_ones(monkeypatch):
    """Recomputing in the backward pass changes nothing."""
    given, do = arguments(40)
    expected = both(causal.causal_attention, given, do)
    monkeypatch.setattr(causal, "_LONG", 32)
    jax.tree.map(np.testing.assert_array_equal, both(causal.causal_attention, given, do), expected)
