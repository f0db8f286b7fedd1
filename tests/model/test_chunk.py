import jax
import numpy as np
import pytest
from jax import numpy as jnp

from pixtok.model.chunk import chunked


def double_sum(a, b):
    return jnp.sin(a).sum(-1) + b


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 5, 99])
def test_pieces_give_the_whole_and_its_gradient(chunks, axis):
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(4, 5, 3)), jnp.float32), jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    np.testing.assert_allclose(chunked(double_sum, chunks, axis, a, b), double_sum(a, b), rtol=1e-6)
    got = jax.grad(lambda a: (chunked(double_sum, chunks, axis, a, b) ** 2).sum())(a)
    np.testing.assert_allclose(got, jax.grad(lambda a: (double_sum(a, b) ** 2).sum())(a), rtol=1e-5)


def test_no_array_of_the_whole_is_made_in_between():
    """The intermediate (8, 1000) of the whole must not appear in the program of four pieces."""

    def wide(a):
        return jnp.sin(a[:, None] * jnp.arange(1000.0)).sum(-1)

    def program(chunks):
        return str(jax.make_jaxpr(jax.grad(lambda a: chunked(wide, chunks, 0, a).sum()))(jnp.ones(8)))

    assert "f32[8,1000]" in program(1)
    assert "f32[8,1000]" not in program(4)
    assert "f32[4,2,1000]" not in program(4)
