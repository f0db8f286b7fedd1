"""TPU kernels without a TPU: numbers from the interpreter of Mosaic, machine code from the compiler."""

import contextlib
import dataclasses
import functools
import importlib.util
import logging

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from jax import numpy as jnp
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec, SingleDeviceSharding

from oracle import GRADIENTS, abstract, close, exact
from pixtok.config import PRESETS
from pixtok_kernels import global_conditional_attention, pallas_tpu, tiles, topology, tuning
from pixtok_kernels.shapes import BENCH, Arguments, Case, draw
from pixtok_kernels.tuning import Blocks

SMALL = Blocks(lanes=128, slots=128, fetch=1)
"""Windows in parts, and one block of slots a fetch: everything that is cut is cut."""


@contextlib.contextmanager
def cores(count: int):
    """Kernels run on the CPU: what is not written is NaN, and nothing may race."""
    found = []

    class Races(interpret_pallas_call.RaceDetectionState):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(self)

    parameters = pltpu.InterpretParams(
        uninitialized_memory="nan", detect_races=True, num_cores_or_threads=count, random_seed=0
    )
    interpret_pallas_call.reset_tpu_interpret_mode_state()
    with pytest.MonkeyPatch.context() as patch, pltpu.force_tpu_interpret_mode(parameters):
        patch.setattr(interpret_pallas_call, "RaceDetectionState", Races)
        yield
    assert found
    assert not any(races.races_found for races in found)


@pytest.fixture
def interpreted():
    with cores(1):
        yield


@pytest.fixture
def plainly(monkeypatch):
    """Kernels run on the CPU as XLA's loops, with no memory of their own."""
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


def cut(monkeypatch, blocks: Blocks | None):
    if blocks is not None:
        monkeypatch.setattr(tuning, "blocks", lambda case, itemsize: blocks)


def holds(a: Arguments, scale: float, seed: int = 1):
    """Both passes are those of the definition, in the dtypes that they promise."""
    dtype = a.q_BMWHD.dtype
    do = jnp.asarray(np.random.default_rng(seed).normal(size=a.q_BMWHD.shape), dtype)

    @jax.jit
    def both(a, do):
        o, lse = pallas_tpu.forward(a, scale)
        return o, lse, pallas_tpu.backward(a, scale, o, lse, do)

    assert pallas_tpu.refusal(a, scale) is None
    with jax.numpy_rank_promotion("raise"):
        o, lse, gradients = both(a, do)
    expected_o, expected_lse, expected = exact(a, scale, do)
    assert o.dtype == dtype
    close(o, expected_o, dtype, "o")
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5, rtol=1e-6)
    for argument, name, got, wanted in zip((*a[:5], a[6]), GRADIENTS, gradients, expected, strict=True):
        if argument is None:
            assert got is None
            continue
        assert got.dtype == argument.dtype
        close(got, wanted, dtype, name)


def packed(a: Arguments) -> Arguments:
    """Spans of documents that lie one after another: each starts at its document, and grows."""
    B, M, _ = a.span_BM2.shape
    S = a.slot_k_BSKD.shape[1]
    document = np.arange(M) * 3 // M
    start = document * S // 3
    end = start + np.arange(M) % max(1, M // 3) * S // max(M, 1)
    return a._replace(span_BM2=jnp.asarray(np.tile(np.stack([start, end], -1), (B, 1, 1)), jnp.int32))


SINGLE = {
    # Two windows a tile and a tile of padding; heads that share a key head; a halo of less than a row of registers.
    "several-windows": (Case(1, 3, 100, 5, 150, 2, 1, 32), jnp.bfloat16, None),
    # Eight windows a tile: halo keys of several windows in one product.
    "small-windows": (Case(1, 11, 16, 17, 20, 2, 1, 32), jnp.float32, Blocks(lanes=256, slots=128)),
    # Three parts, the last one partly padding; three fetches, of which spans see some.
    "parts-and-fetches": (Case(1, 2, 300, 40, 300, 1, 1, 32), jnp.float32, SMALL),
    "parts-and-fetches-16": (Case(2, 2, 140, 0, 280, 2, 1, 80), jnp.bfloat16, SMALL),
    # Several blocks a fetch, several fetches, several key heads a step; nothing runs ahead.
    "blocks-of-a-fetch": (
        Case(1, 5, 64, 3, 900, 2, 2, 32),
        jnp.float32,
        Blocks(lanes=128, slots=128, fetch=2 * 32 * 256, lag=0),
    ),
    "no-slots": (Case(2, 1, 49, 9, 0, 1, 1, 96), jnp.float32, None),
    "widest": (Case(1, 2, 128, 16, 40, 3, 1, 128), jnp.bfloat16, None),
}


SLOW = {"parts-and-fetches-16", "blocks-of-a-fetch", "widest"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SINGLE])
def test_is_the_definition_and_its_gradient(name, interpreted, monkeypatch):
    case, dtype, blocks = SINGLE[name]
    cut(monkeypatch, blocks)
    holds(draw(case, dtype, ragged=True), 1.5 * case.D**-0.5)


@st.composite
def calls(draw_from):
    """Sizes, how they are cut, and what is seen."""
    K, group = draw_from(st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 3), (2, 2)]))
    case = Case(
        B=draw_from(st.integers(1, 2)),
        M=draw_from(st.integers(1, 4)),
        W=draw_from(st.one_of(st.integers(16, 128), st.integers(129, 300))),
        P=draw_from(st.integers(0, 40)),
        S=draw_from(st.integers(0, 300)),
        H=K * group,
        K=K,
        D=draw_from(st.sampled_from(pallas_tpu.WIDTHS)),
    )
    blocks = Blocks(
        lanes=draw_from(st.sampled_from([128, 256, 384])),
        rows=draw_from(st.sampled_from([128, 1024])),
        slots=draw_from(st.sampled_from([128, 256])),
        fetch=draw_from(st.sampled_from([1, 1 << 18])),
        lag=draw_from(st.sampled_from([0, 2, 5])),
    )
    dtype = draw_from(st.sampled_from([jnp.float32, jnp.bfloat16]))
    return case, blocks, dtype, draw_from(st.booleans()), draw_from(st.booleans()), draw_from(st.integers(0, 99))


# Each is traced and compiled anew: few of them, the same every time, and none to make a failure smaller.
@settings(max_examples=3, derandomize=True, database=None, phases=[Phase.generate])
@given(calls())
def any_call(call):
    case, blocks, dtype, biased, documents, seed = call
    a = draw(case, dtype, ragged=True, seed=seed)
    a = packed(a) if documents else a
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, blocks)
        holds(a if biased else a._replace(slot_bias_BS=None), case.D**-0.5, seed)


def test_any_call_is_the_definition_and_its_gradient(interpreted):
    any_call()


def test_the_plain_interpreter_says_the_same(plainly, monkeypatch):
    cut(monkeypatch, SMALL)
    holds(draw(Case(1, 2, 150, 5, 150, 2, 1, 32), jnp.float32, ragged=True), 0.2)


@pytest.mark.slow
def test_cores_that_share_a_grid_do_not_race(monkeypatch):
    """Rows and key heads go to any core in any order."""
    cut(monkeypatch, dataclasses.replace(SMALL, rows=128))
    with cores(2):
        holds(draw(Case(2, 1, 130, 3, 130, 2, 2, 32), jnp.float32, ragged=True), 0.2)


def gca(a: Arguments, implementation=None, **options):
    return global_conditional_attention(*a[:7], halo_count_BM=a[7], implementation=implementation, **options)


def gradients(f, a: Arguments, do):
    """Of everything that is differentiable, through `f`."""
    some = [x for x in (*a[:5], a[6]) if x is not None]

    def loss(*some):
        q, k, v, slot_k, slot_v, *bias = some
        return (f(Arguments(q, k, v, slot_k, slot_v, a[5], bias[0] if bias else None, a[7])) * do).sum()

    return jax.jit(jax.grad(loss, argnums=tuple(range(len(some)))))(*some)


WEE = Case(1, 4, 40, 6, 150, 2, 1, 32)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "checkpoint"])
def test_gradients_through_the_call(wrap, biased, plainly, monkeypatch):
    cut(monkeypatch, SMALL)
    a = draw(WEE, jnp.float32, ragged=True)
    a = a if biased else a._replace(slot_bias_BS=None)
    do = jnp.asarray(np.random.default_rng(2).normal(size=a.q_BMWHD.shape), jnp.float32)
    got = gradients(wrap(lambda a: gca(a, "pallas_tpu")), a, do)
    _, _, expected = exact(a, WEE.D**-0.5, do)
    for name, x, wanted in zip(GRADIENTS, got, expected, strict=False):
        close(x, wanted, jnp.float32, name)
    assert len(got) == 5 + biased


@pytest.mark.parametrize("shared", ["nothing", "all-but-queries"])
def test_a_batch_of_calls_is_each_of_them(shared, plainly):
    calls = [draw(WEE, jnp.float32, ragged=True, seed=seed) for seed in range(2)]
    axes = Arguments(*[0] * 8)
    if shared == "all-but-queries":
        calls = [calls[0], calls[0]._replace(q_BMWHD=calls[1].q_BMWHD)]
        axes = Arguments(0, *[None] * 7)
    batch = [jnp.stack(x) if axis == 0 else x[0] for axis, x in zip(axes, zip(*calls, strict=True), strict=True)]

    def attend(*a):
        return gca(Arguments(*a), "pallas_tpu")

    for x, a in zip(jax.jit(jax.vmap(attend, in_axes=tuple(axes)))(*batch), calls, strict=True):
        close(x, exact(a, WEE.D**-0.5)[0], jnp.float32, "o")


@pytest.mark.parametrize("implementation", ["reference", "library", "pallas_tpu"])
def test_what_is_beyond_halo_and_slots_is_not_seen(implementation, request):
    if implementation == "pallas_tpu":
        request.getfixturevalue("interpreted")
    a = draw(Case(1, 6, 16, 3, 20, 2, 1, 32), jnp.float32, ragged=True)
    a = a._replace(
        span_BM2=jnp.array([[[-7, 90], [15, 300], [40, 60], [-9, -2], [19, 20], [7, 3]]]),
        halo_count_BM=jnp.array([[99, -1, 5, 0, 17, 3]]),
    )
    do = jnp.asarray(np.random.default_rng(3).normal(size=a.q_BMWHD.shape), jnp.float32)
    expected_o, _, expected = exact(a, 32**-0.5, do)
    close(jax.jit(lambda a: gca(a, implementation))(a), expected_o, jnp.float32, "o")
    for name, x, wanted in zip(GRADIENTS, gradients(lambda a: gca(a, implementation), a, do), expected, strict=True):
        close(x, wanted, jnp.float32, name)


@pytest.mark.parametrize("blocks", [None, SMALL], ids=["whole", "cut"])
def test_biases_from_minus_infinity_to_a_hundred(blocks, interpreted, monkeypatch):
    """−∞ hides a slot; a hundred is more than exp can take where nothing is subtracted, as in lanes of padding; what
    is said of slots that nobody sees is not heard.
    """
    cut(monkeypatch, blocks)
    a = draw(Case(1, 3, 40, 2, 200, 1, 1, 32), jnp.float32, ragged=True)
    bias = np.random.default_rng(0).normal(size=(1, 200))
    bias[0, [3, 130]], bias[0, 4:20], bias[0, 190:] = 100, -np.inf, [np.nan, np.inf] * 5
    bias[0, 30], bias[0, 150] = -1e30, -3e38
    a = a._replace(span_BM2=jnp.array([[[0, 140], [4, 20], [120, 190]]]), slot_bias_BS=jnp.asarray(bias, jnp.float32))
    holds(a, 32**-0.5)


def test_huge_scores_stay_finite(interpreted, monkeypatch):
    """Of thousands: nothing overflows, and weights are known as well as float32 knows the scores, to 1e-3 or so."""
    cut(monkeypatch, SMALL)
    a = draw(Case(1, 2, 130, 6, 150, 1, 1, 32), jnp.float32, ragged=True)
    a = a._replace(q_BMWHD=300 * a.q_BMWHD, span_BM2=jnp.array([[[0, 150], [20, 100]]]))
    do = jnp.ones(a.q_BMWHD.shape)

    @jax.jit
    def both(a):
        o, lse = pallas_tpu.forward(a, 1.0)
        return o, lse, pallas_tpu.backward(a, 1.0, o, lse, do)

    o, lse, gradients = both(a)
    expected_o, expected_lse, expected = exact(a, 1.0, do)
    assert np.abs(expected_lse).max() > 4000
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)
    np.testing.assert_allclose(o, expected_o, atol=0.01)
    # Those of scores are nearly zero, one key having all the weight; those of values are not.
    for x, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(x, wanted, atol=0.01 * max(1, np.abs(wanted).max()))


def test_fetches_that_nobody_sees_are_not_fetched(interpreted, monkeypatch):
    """Or NaN × 0 would show."""
    cut(monkeypatch, SMALL)
    a = draw(Case(1, 2, 128, 0, 512, 1, 1, 32), jnp.float32, ragged=True)
    a = a._replace(span_BM2=jnp.array([[[140, 250], [200, 256]]]))
    expected_o, _, _ = exact(a, 0.2)
    unseen = a._replace(
        **{
            name: getattr(a, name).at[:, :128].set(np.nan).at[:, 256:].set(np.nan)
            for name in ("slot_k_BSKD", "slot_v_BSKD")
        }
    )
    o, lse = jax.jit(lambda a: pallas_tpu.forward(a, 0.2))(unseen)
    close(o, expected_o, jnp.float32, "o")
    gradients = jax.jit(lambda a, o, lse: pallas_tpu.backward(a, 0.2, o, lse, o))(unseen, o, lse)
    assert all(np.isfinite(x).all() for x in gradients[:3])


def lowered(f, a, platform):
    return jax.jit(f).trace(a).lower(lowering_platforms=(platform,)).as_text()


def both(implementation=None):
    def f(a):
        o, back = jax.vjp(lambda q, k: gca(a._replace(q_BMWHD=q, slot_k_BSKD=k), implementation), a[0], a[3])
        return o, back(o)

    return f


def test_without_a_name_the_platform_decides():
    a = draw(WEE, jnp.float32, ragged=True)
    assert lowered(both(), a, "tpu").count("tpu_custom_call") >= 2
    assert "tpu_custom_call" not in lowered(both(), a, "cpu")
    jax.tree.map(np.testing.assert_array_equal, jax.jit(both())(a), jax.jit(both("library"))(a))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (WEE._replace(D=24), "the width of a head must be one of 32, 64, 80, 96, 128; got 24"),
        (WEE._replace(W=8), "a window must have from 16 to 4096 pixels; got 8"),
    ],
)
def test_what_the_kernel_cannot_take_goes_to_the_library(case, reason, monkeypatch, caplog):
    a = draw(case, jnp.float32, ragged=True)
    assert "tpu_custom_call" not in lowered(both(), a, "tpu")
    assert not caplog.records
    monkeypatch.setenv("PIXTOK_KERNEL_LOG", "1")
    with caplog.at_level(logging.WARNING, logger="pixtok_kernels"):
        assert "tpu_custom_call" not in lowered(both(), a, "tpu")
    (record,) = (record for record in caplog.records if "on tpu" in record.getMessage())
    assert record.getMessage() == f"{case}: on tpu: library, since for pallas_tpu {reason}"
    with pytest.raises(ValueError, match=f"pallas_tpu cannot take this call: {reason}"):
        gca(a, "pallas_tpu")


def test_what_is_refused():
    def refusal(dtype=jnp.bfloat16, scale=1.0, **sizes):
        return pallas_tpu.refusal(abstract(WEE._replace(**sizes), dtype), scale)

    assert refusal() is None
    assert refusal(S=0, P=0, W=4096) is None
    assert "dtype must be bfloat16 or float32; got float16" in refusal(jnp.float16)
    assert "scale must be positive" in refusal(scale=0.0)
    assert "scale must be positive" in refusal(scale=float("nan"))
    assert "got 131073 and 6" in refusal(S=131073)
    assert "got 4097" in refusal(W=4097)
    assert "no window" in refusal(M=0)
    assert "bytes of vector memory" in refusal(P=4096, W=16)


def shards(implementation):
    """Attention and gradients with windows on four devices, and on one."""
    mesh = jax.make_mesh((4,), ("window",), axis_types=(AxisType.Auto,))
    here, row = PartitionSpec(None, "window"), PartitionSpec()

    def f(a):
        do = jnp.cos(a.q_BMWHD)
        o, back = jax.vjp(lambda *x: gca(Arguments(*x[:5], a[5], x[5], a[7]), implementation), *a[:5], a[6])
        dq, dk, dv, *slots = back(do)
        return o, (dq, dk, dv), tuple(slots)

    def shard(a):
        o, own, slots = f(a)
        return o, own, jax.lax.psum(slots, "window")

    specs = Arguments(here, here, here, row, row, here, row, here)
    # The kernels do not say along which axes their results vary.
    split = jax.shard_map(
        shard, mesh=mesh, in_specs=(specs,), out_specs=(here, (here,) * 3, (row,) * 3), check_vma=False
    )
    return jax.jit(split), jax.jit(f)


@pytest.mark.parametrize("implementation", ["library", "pallas_tpu"])
def test_windows_on_several_devices_are_those_on_one(implementation):
    split, whole = shards(implementation)
    a = draw(Case(1, 8, 20, 5, 30, 2, 1, 32), jnp.float32, ragged=True)
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), split(a), whole(a))


def test_sizes_that_do_not_fit_are_refused():
    for name in ("lanes", "slots"):
        for size in (0, 64, 129, -128):
            with pytest.raises(ValueError, match=f"{name} must be a positive multiple of 128; got {size}"):
                Blocks(**{name: size})
    for wrong in ({"rows": 0}, {"fetch": 0}, {"lag": -1}, {"lag": 9}):
        with pytest.raises(ValueError, match="rows and fetch must be positive, lag from 0 to 8"):
            Blocks(**wrong)


SIZES = st.builds(
    tiles.Tiles,
    st.builds(
        lambda K, group, **sizes: Case(H=K * group, K=K, **sizes),
        B=st.just(1),
        M=st.integers(1, 300),
        W=st.integers(16, 4096),
        P=st.integers(0, 300),
        S=st.integers(0, 5000),
        K=st.integers(1, 12),
        group=st.integers(1, 8),
        D=st.sampled_from(pallas_tpu.WIDTHS),
    ),
    st.builds(
        Blocks,
        lanes=st.integers(1, 8).map(lambda n: 128 * n),
        rows=st.integers(1, 4096),
        slots=st.integers(1, 5).map(lambda n: 128 * n),
        fetch=st.integers(1, 1 << 20),
        vmem=st.integers(1, 16 << 20),
    ),
    st.sampled_from([2, 4]),
)


@settings(max_examples=300, derandomize=True, database=None)
@given(SIZES)
def test_tiles_cover_everything_and_divide_what_they_must(t):
    case, blocks = t.case, t.blocks
    assert t.span >= case.W
    assert t.lanes % 128 == 0
    assert 128 <= t.lanes <= max(128, blocks.lanes)
    assert t.span % 128 == 0 or 128 % t.span == 0
    assert t.lanes % t.span == 0 or t.span % t.lanes == 0
    assert t.windows * t.span == t.lanes * t.parts
    assert t.padded >= case.M > t.padded - t.windows
    assert t.padded % t.windows == 0
    assert t.count * t.lanes == t.padded * t.span
    assert t.count % t.parts == 0
    assert 0 <= t.halo - case.P < 16
    assert t.halo % 16 == 0
    assert t.block % 128 == 0
    assert t.fetch % t.block == 0
    assert t.slots == t.fetch * t.fetches >= max(case.S, 1)
    assert t.slots - t.fetch < max(case.S, 1)
    assert case.K % t.key_heads == 0
    assert t.key_heads == 1 or t.heads * t.lanes <= blocks.rows
    assert t.key_heads == 1 or t.key_heads * t.bytes_a_key_head <= blocks.vmem
    assert t.block <= blocks.slots
    assert t.fetch == t.block or t.fetch * t.key_heads * case.D <= blocks.fetch


@settings(max_examples=3, derandomize=True, database=None)
@given(SIZES)
def test_layouts_lead_back(t):
    t = tiles.Tiles(t.case._replace(M=t.case.M % 5 + 1, W=t.case.W % 300 + 16, K=1, H=2, D=2), t.blocks, 2)
    _, M, W, P, S, H, K, D = t.case
    rng = np.random.default_rng(0)
    for there, back, shape, laid in (
        (t.pixels, t.unpixels, (1, M, W, H, D), (1, H, D, t.count * t.lanes)),
        (t.around, t.unaround, (1, M, P, K, D), (1, K, t.padded * t.halo, D)),
        (t.far, t.unfar, (1, S, K, D), (1, K, D, t.slots)),
    ):
        x = jnp.asarray(rng.normal(size=shape), jnp.float32)
        assert there(x).shape == laid
        np.testing.assert_array_equal(back(there(x)), x)


@settings(max_examples=6, derandomize=True, database=None)
@given(st.data())
def test_sight_is_what_spans_say(data):
    case = Case(2, data.draw(st.integers(1, 9)), data.draw(st.sampled_from([16, 40, 150, 300])), 3, 500, 1, 1, 32)
    t = tiles.Tiles(case, Blocks(lanes=data.draw(st.sampled_from([128, 256])), slots=128, fetch=1), 4)
    ends = st.lists(st.integers(0, case.S), min_size=4 * case.M, max_size=4 * case.M)
    span = np.array(data.draw(ends), np.int32).reshape(2, case.M, 2)
    a = abstract(case, jnp.float32)._replace(
        span_BM2=jnp.asarray(span), halo_count_BM=jnp.asarray(span[..., 0] % (case.P + 1))
    )
    lane, tile, fetch = (np.asarray(x) for x in tiles.sight(t, a))
    slot = np.arange(t.slots)
    sees = np.zeros((2, t.padded * t.span, t.slots), bool)
    for b, m in np.ndindex(2, case.M):
        sees[b, m * t.span : (m + 1) * t.span] = (span[b, m, 0] <= slot) & (slot < span[b, m, 1])
    np.testing.assert_array_equal((lane[:, 0, :, None] <= slot) & (slot < lane[:, 1, :, None]), sees)
    halo = np.repeat(span[..., 0] % (case.P + 1), t.span, 1)
    np.testing.assert_array_equal(lane[:, 2, : case.M * t.span], halo)
    seen = sees.reshape(2, t.count, t.lanes, t.slots).any(2)
    for b, n in np.ndindex(2, t.count):
        hits = np.flatnonzero(seen[b, n])
        assert tuple(tile[b, n]) == ((hits[0], hits[-1] + 1) if hits.size else (0, 0))
    # A fetch between two spans of a tile may count as seen.
    within = (tile[..., :1] <= slot) & (slot < tile[..., 1:])
    for b, n in np.ndindex(2, t.fetches):
        hits = np.flatnonzero(within[b, :, n * t.fetch : (n + 1) * t.fetch].any(-1))
        assert tuple(fetch[b, n]) == ((hits[0], hits[-1]) if hits.size else (0, 0))


@pytest.fixture(scope="module")
def absent():
    """Compiles for a chip that is not here."""
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu, which compiles for TPU, is not installed")

    def compiled(chip, case, dtype):
        a = abstract(case, dtype, SingleDeviceSharding(topology.tpu(chip).devices[0]))
        return jax.jit(both()).lower(a).compile()

    with topology.uncached():
        yield compiled


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("chip", topology.TPUS)
def test_compiles_for_every_chip(chip, dtype, absent):
    case = Case(B=1, M=6, W=256, P=35, S=6, H=2, K=1, D=64)
    assert absent(chip, case, dtype).as_text().count("tpu_custom_call") >= 2


def decoder(name: str) -> Case:
    """A row of images as that preset's pixel decoder attends."""
    model = PRESETS[name]
    stream, pixels = model.decoder, model.window**2
    P = 2 * model.halo * (model.window + model.halo)
    return Case(4, 64, pixels, P, 256, stream.heads, stream.kv_heads, stream.head_width)


def test_the_decoders_of_presets(absent):
    assert decoder("tiny").D == 24
    assert "tpu_custom_call" not in absent("v5e", decoder("tiny"), jnp.bfloat16).as_text()
    assert "tpu_custom_call" in absent("v5e", decoder("tiny")._replace(D=32), jnp.bfloat16).as_text()


@pytest.mark.parametrize(
    ("case", "chip"),
    [
        (next(case for case in BENCH if (case.M, case.P) == (196, 35)), "v5e"),  # 50,176 pixels, as in upw-image
        (Case(B=1, M=4096, W=256, P=35, S=4096, H=2, K=1, D=64), "v6e"),
    ],
    ids=["50176-pixels", "1048576-pixels"],
)
def test_memory_is_that_of_the_arguments(case, chip, absent):
    """No score is ever in the chip's main memory."""
    memory = absent(chip, case, jnp.bfloat16).memory_analysis()
    scores = case.H * case.M * case.W * (case.W + case.S)
    assert memory.temp_size_in_bytes < 4 * memory.argument_size_in_bytes
    assert memory.temp_size_in_bytes < scores * jnp.dtype(jnp.bfloat16).itemsize


def test_every_fetch_of_the_most_slots_fits(absent):
    """The second kernel of the gradient, and about the most vector memory that is not refused."""
    case = Case(B=1, M=2, W=4096, P=2900, S=131072, H=1, K=1, D=128)
    assert pallas_tpu.refusal(abstract(case, jnp.bfloat16), 1.0) is None
    assert absent("v5e", case, jnp.bfloat16).as_text().count("tpu_custom_call") >= 3
