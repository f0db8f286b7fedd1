import jax
import numpy as np
import pytest
from jax import numpy as jnp

from oracle import exact
from pixtok_kernels import global_conditional_attention
from pixtok_kernels.shapes import CASES, Arguments, Case

gca = jax.jit(global_conditional_attention, static_argnames=("implementation",))
ALL = pytest.mark.parametrize("implementation", ["reference", "library"])  # kernels refuse what is this small


def arguments(case: Case, dtype=jnp.float32, seed=0):
    """(differentiable arguments, spans with empty ones among them, halo counts)."""
    B, M, W, P, S, H, K, D = case
    rng = np.random.default_rng(seed)
    shapes = [(B, M, W, H, D), (B, M, P + W, K, D), (B, M, P + W, K, D), (B, S, K, D), (B, S, K, D)]
    arrays = [jnp.asarray(2 * rng.normal(size=shape), dtype) for shape in shapes]
    start = rng.integers(0, S + 1, size=(B, M))
    span = np.stack([start, np.where(rng.random((B, M)) < 0.3, start, rng.integers(start, S + 1))], -1)
    count = rng.integers(0, P + 1, size=(B, M))
    return arrays, jnp.asarray(span, jnp.int32), jnp.asarray(count, jnp.int32), jnp.asarray(rng.normal(size=(B, S)))


@ALL
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_the_definition(case, implementation):
    arrays, span, count, bias = arguments(case)
    got = gca(*arrays, span, bias, halo_count_BM=count, implementation=implementation)
    expected, _, _ = exact(Arguments(*arrays, span, bias, count), case.D**-0.5)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_of_library_calls_are_those_of_the_definition(case):
    arrays, span, count, bias = arguments(case)
    target = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

    def gradients(implementation):
        def loss(arrays, bias):
            return (gca(*arrays, span, bias, halo_count_BM=count, implementation=implementation) * target).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(arrays, bias)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradients("library"), gradients("reference"))


@ALL
def test_bfloat16_stays_close(implementation):
    arrays, span, count, bias = arguments(CASES["grouped"], jnp.bfloat16)
    got = gca(*arrays, span, bias, halo_count_BM=count, implementation=implementation)
    assert got.dtype == jnp.bfloat16
    wide = [a.astype(jnp.float32) for a in arrays]
    exact = gca(*wide, span, bias, halo_count_BM=count, implementation="reference")
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.06)


@ALL
def test_windows_of_one_pixel_are_causal_attention(implementation):
    """W = 1: each pixel sees the slots before it, which hold the keys of earlier pixels, and itself."""
    rng = np.random.default_rng(0)
    B, N, H, K, D = 2, 7, 4, 2, 8
    q, k, v = (jnp.asarray(rng.normal(size=(B, N, heads, D)), jnp.float32) for heads in (H, K, K))
    span = jnp.broadcast_to(jnp.stack([jnp.zeros(N, jnp.int32), jnp.arange(N)], -1)[None], (B, N, 2))
    got = gca(q[:, :, None], k[:, :, None], v[:, :, None], k, v, span, implementation=implementation)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(got[:, :, 0], expected, atol=2e-6)


@ALL
def test_mean_summaries_with_log_counts_are_full_attention_over_constant_windows(implementation):
    """Keys constant within each window, values not: b = log(count) makes one key stand for all of them."""
    rng = np.random.default_rng(0)
    B, M, W, H, K, D = 2, 4, 5, 4, 2, 8
    q = jnp.asarray(rng.normal(size=(B, M * W, H, D)), jnp.float32)
    window_k = jnp.asarray(rng.normal(size=(B, M, K, D)), jnp.float32)
    k = jnp.repeat(window_k, W, axis=1)
    v = jnp.asarray(rng.normal(size=(B, M * W, K, D)), jnp.float32)
    slot_v = v.reshape(B, M, W, K, D).mean(2)
    span = jnp.broadcast_to(jnp.stack([jnp.zeros(M, jnp.int32), jnp.arange(M)], -1)[None], (B, M, 2))
    windows = (a.reshape(B, M, W, -1, D) for a in (q, k, v))
    bias = jnp.full((B, M), np.log(W))
    got = gca(*windows, window_k, slot_v, span, bias, implementation=implementation)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=2e-6)


@ALL
def test_without_halo_and_slots_it_is_causal_attention_inside_windows(implementation):
    arrays, _, _, _ = arguments(CASES["plain"])
    q, k, v, *slots = arrays
    empty = jnp.zeros((*q.shape[:2], 2), jnp.int32)
    got = gca(*arrays, empty, implementation=implementation)
    flat = (a.reshape(-1, *a.shape[2:]) for a in (q, k, v))
    expected = jax.nn.dot_product_attention(*flat, is_causal=True).reshape(q.shape)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    none = [a[:, :0] for a in slots]
    np.testing.assert_allclose(gca(q, k, v, *none, empty, implementation=implementation), expected, atol=2e-6)


@ALL
def test_an_uncounted_halo_is_seen_whole(implementation):
    arrays, span, _, _ = arguments(CASES["halo"])
    whole = jnp.full(span.shape[:2], CASES["halo"].P, jnp.int32)
    got = gca(*arrays, span, implementation=implementation)
    np.testing.assert_array_equal(got, gca(*arrays, span, halo_count_BM=whole, implementation=implementation))


def test_arguments_that_do_not_fit_are_refused():
    arrays, span, count, _ = arguments(CASES["halo"])
    q, k, v, slot_k, slot_v = arrays
    with pytest.raises(ValueError, match=r"v must have shape \(2, 3, 7, 2, 8\); got \(2, 3, 6, 2, 8\)"):
        gca(q, k, v[:, :, :-1], slot_k, slot_v, span)
    with pytest.raises(ValueError, match="at least the 4 keys of the window itself; got 3"):
        gca(q, k[:, :, :3], v[:, :, :3], slot_k, slot_v, span)
    with pytest.raises(ValueError, match="multiple of that of key heads; got 1 and 2"):
        gca(q[:, :, :, :1], k, v, slot_k, slot_v, span)
    with pytest.raises(ValueError, match=r"halo_count must have shape \(2, 3\)"):
        gca(*arrays, span, halo_count_BM=count[:1])
    with pytest.raises(ValueError, match="q must be floating; got int32"):
        gca(*(a.astype(jnp.int32) for a in arrays), span)
    with pytest.raises(ValueError, match="slot_v must have the dtype of q, float32; got bfloat16"):
        gca(q, k, v, slot_k, slot_v.astype(jnp.bfloat16), span)
    with pytest.raises(ValueError, match="must have the axes"):
        gca(q[0], k, v, slot_k, slot_v, span)
    with pytest.raises(
        ValueError, match="implementation must be one of reference, library, pallas_tpu, pallas_gpu; got fast"
    ):
        gca(*arrays, span, implementation="fast")
