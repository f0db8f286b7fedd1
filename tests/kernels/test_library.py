"""Library attention in chunks and in parts, against the definition in float64."""

import functools

import jax
import numpy as np
import pytest
from einops import rearrange
from jax import numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from oracle import exact
from pixtok_kernels import library
from pixtok_kernels.shapes import CASES, Arguments, Case, draw

CASES = CASES | {
    "seven-windows": Case(B=2, M=7, W=5, P=3, S=9, H=4, K=2, D=8),
    "many-rows": Case(B=6, M=2, W=3, P=1, S=4, H=2, K=1, D=4),
    "no-slots": Case(B=1, M=3, W=4, P=2, S=0, H=2, K=1, D=4),
}
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SOME = pytest.mark.parametrize("case", ["halo", "pixel", "seven-windows", "many-rows", "no-slots"])


def holds(a, forward, backward, tolerance=2e-5):
    """Both passes are those of the definition."""
    scale = 0.4
    do = jax.random.normal(jax.random.key(1), a.q_BMWHD.shape, a.q_BMWHD.dtype)
    close = functools.partial(np.testing.assert_allclose, atol=tolerance, rtol=tolerance)
    o, lse, gradients = exact(a, scale, do)
    with jax.numpy_rank_promotion("raise"):
        got_o, got_lse = jax.jit(lambda a: forward(a, scale))(a)
        got = jax.jit(lambda *saved: backward(a, scale, *saved))(got_o, got_lse, do)
    close(np.asarray(got_o, np.float32), o)
    close(got_lse, lse)
    jax.tree.map(lambda x, y: close(np.asarray(x, np.float32), y), tuple(got), gradients)
    assert [x.dtype for x in got[:5]] == [x.dtype for x in a[:5]]


@ALL
def test_it_is_the_definition(case):
    holds(draw(case, jnp.float32, ragged=True), library.forward, library.backward)


@SOME
@pytest.mark.parametrize("windows", [1, 5])
def test_chunks_and_blocks_of_any_size_change_nothing(case, windows, monkeypatch):
    """Chunks that do not divide the windows, blocks that do not divide slots and pixels, several rows at once."""
    monkeypatch.setattr(library, "SLOT_BLOCK", 4)
    monkeypatch.setattr(library, "PIXEL_BLOCK", 3)
    case = CASES[case]
    scores = case.W * case.H * (case.P + case.W + min(case.S, 4))
    monkeypatch.setattr(library, "SCORES", {"default": windows * scores})
    assert library._ways(draw(case, jnp.float32, ragged=True))["default"].windows == windows
    holds(draw(case, jnp.float32, ragged=True), library.forward, library.backward)


def test_no_window_sees_a_slot(monkeypatch):
    monkeypatch.setattr(library, "SLOT_BLOCK", 4)
    a = draw(CASES["seven-windows"], jnp.float32, ragged=True)
    holds(a._replace(span_BM2=jnp.full_like(a.span_BM2, 5)), library.forward, library.backward)
    holds(a._replace(span_BM2=a.span_BM2[..., ::-1]), library.forward, library.backward)


def attend(q, k, v, count_N, scale):
    """In place of cuDNN's: the same contract, and nothing promised of keys that are not seen."""
    weight, lse = _weights(q, k, count_N, scale)
    return jnp.einsum("nhtj, njhd -> nthd", weight, jnp.repeat(v, q.shape[2] // v.shape[2], 2)), lse


def _weights(q, k, count_N, scale, lse=None):
    score = scale * jnp.einsum("nthd, njhd -> nhtj", q, jnp.repeat(k, q.shape[2] // k.shape[2], 2))
    see = jnp.tril(jnp.ones((1, 1, *score.shape[-2:]), bool)) if count_N is None else _seen(k, count_N)[:, None, None]
    score = jnp.where(see, score, -jnp.inf)
    lse = jax.nn.logsumexp(score, -1) if lse is None else lse
    return jnp.exp(score - lse[..., None]), lse


def _seen(k, count_N):
    return jnp.arange(k.shape[1])[None] < jnp.maximum(count_N, 1)[:, None]


def attend_back(q, k, v, count_N, scale, lse, o, do):
    weight, _ = _weights(q, k, count_N, scale, lse)
    G = q.shape[2] // k.shape[2]
    dweight = jnp.einsum("nthd, njhd -> nhtj", do, jnp.repeat(v, G, 2))
    dscore = scale * weight * (dweight - (o * do).sum(-1).swapaxes(1, 2)[..., None])
    dq = jnp.einsum("nhtj, njhd -> nthd", dscore, jnp.repeat(k, G, 2))
    dk = jnp.einsum("nhtj, nthd -> njhd", dscore, q)
    dv = jnp.einsum("nhtj, nthd -> njhd", weight, do)
    dk, dv = (rearrange(x, "n j (k g) d -> n j k g d", g=G).sum(3) for x in (dk, dv))
    if count_N is not None:
        seen = _seen(k, count_N)[..., None, None]
        dk, dv = jnp.where(seen, dk, jnp.nan), jnp.where(seen, dv, jnp.nan)
    return dq, dk, dv


@SOME
@pytest.mark.parametrize("windows", [2, 100])
def test_parts_merge_into_the_definition(case, windows, monkeypatch):
    """What runs on CUDA, with another attention in place of cuDNN's."""
    monkeypatch.setattr(library, "attend", attend)
    monkeypatch.setattr(library, "attend_back", attend_back)
    way = library._Way(windows, library._cudnn, library._cudnn_back)
    a = draw(CASES[case], jnp.float32, ragged=True)._replace(slot_bias_BS=None)
    back = lambda a, scale, *saved: library._backward(way, scale, a, *saved)  # noqa: E731
    holds(a, lambda a, scale: library._forward(way, scale, a), back)


@pytest.mark.parametrize("halo", [0, 35])
def test_cuda_gets_cudnn_and_no_array_of_masks(halo):
    a = jax.eval_shape(lambda: draw(Case(B=2, M=96, W=64, P=halo, S=96, H=4, K=2, D=64), jnp.bfloat16, ragged=False))

    def both(a, do):
        o, lse = library.forward(a, 0.125)
        return library.backward(a, 0.125, o, lse, do)

    traced = jax.jit(both).trace(a, a.q_BMWHD)
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert cuda.count("__cudnn$fmhaSoftmax") == 4
    assert cuda.count("__cudnn$fmhaSoftmaxBackward") == 2
    assert "\\22mask_type\\22: \\22PADDING\\22" in cuda
    assert f"{96 * 64}x96x" not in cuda
    assert "cudnn" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    for other in (a._replace(slot_bias_BS=jax.ShapeDtypeStruct((2, 96), jnp.float32)), _widened(a)):
        traced = jax.jit(both).trace(other, other.q_BMWHD)
        assert "cudnn" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def _widened(a):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype), a)


def test_memory_grows_with_the_pixels_alone():
    """Four times the windows, and so four times the slots: 16 times the scores."""

    def temporary(M):
        a = jax.eval_shape(lambda: draw(Case(B=1, M=M, W=64, P=9, S=M, H=2, K=1, D=16), jnp.float32, ragged=False))

        def both(a, do):
            o, lse = library.forward(a, 0.25)
            return library.backward(a, 0.25, o, lse, do)

        return jax.jit(both).lower(a, a.q_BMWHD).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(256), temporary(1024)
    assert many < 4.2 * few


def test_windows_on_several_devices_are_those_on_one(monkeypatch):
    """In chunks on each: rows over one axis of the mesh, windows over the other, slots wherever their row is."""
    case = Case(B=2, M=8, W=5, P=3, S=9, H=4, K=2, D=8)
    monkeypatch.setattr(library, "SLOT_BLOCK", 4)
    monkeypatch.setattr(library, "SCORES", {"default": 2 * case.W * case.H * (case.P + case.W + 4)})
    mesh = jax.make_mesh((2, 2), ("data", "window"), axis_types=(AxisType.Auto,) * 2)
    here, row = PartitionSpec("data", "window"), PartitionSpec("data")
    specs = Arguments(here, here, here, row, row, here, row, here)

    def both(a):
        o, lse = library.forward(a, 0.4)
        gradients = library.backward(a, 0.4, o, lse, jnp.sin(o))
        return o, gradients[:3], gradients[3:]

    def shard(a):
        o, own, slots = both(a)
        return o, own, jax.lax.psum(slots, "window")

    sharded = jax.shard_map(shard, mesh=mesh, in_specs=(specs,), out_specs=(here, (here,) * 3, (row,) * 3))
    a = draw(case, jnp.float32, ragged=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), jax.jit(sharded)(a), jax.jit(both)(a))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sixteen_bits_stay_close(dtype):
    a = draw(CASES["seven-windows"], dtype, ragged=True)
    holds(a, library.forward, library.backward, tolerance=0.06)
