"""TPU kernels without a TPU: numbers from the interpreter of Mosaic, machine code from the compiler."""

import logging

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from jax import numpy as jnp
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec, SingleDeviceSharding
from oracle import GRADIENTS, close, exact

from pixtok.config import PRESETS
from pixtok_kernels import api, global_conditional_attention, library, pallas_tpu, tiles, topology, tuning
from pixtok_kernels.shapes import BENCH, CASES, Arguments, Case, draw
from pixtok_kernels.tuning import Blocks

SMALL = Blocks(lanes=128, slots=128, fetch=1)
"""Windows in parts, and one block of slots a fetch: everything that is cut is cut."""


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run on the CPU: what is not written is NaN, two cores share a grid, and no core may race another."""
    found = []

    class Races(interpret_pallas_call.RaceDetectionState):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(self)

    monkeypatch.setattr(interpret_pallas_call, "RaceDetectionState", Races)
    interpret_pallas_call.reset_tpu_interpret_mode_state()
    parameters = pltpu.InterpretParams(
        uninitialized_memory="nan", detect_races=True, num_cores_or_threads=2, random_seed=0
    )
    with pltpu.force_tpu_interpret_mode(parameters):
        yield
    assert not any(races.races_found for races in found)
    assert found


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
    "several-windows": (Case(1, 3, 100, 5, 150, 4, 2, 64), jnp.bfloat16, None),
    # Eight windows a tile: halo keys of several windows in one product.
    "small-windows": (Case(1, 11, 16, 17, 20, 2, 1, 32), jnp.float32, Blocks(lanes=256, slots=128)),
    # Three parts, the last one partly padding; three fetches, of which spans see some.
    "parts-and-fetches": (Case(1, 2, 300, 40, 300, 1, 1, 32), jnp.float32, SMALL),
    "parts-and-fetches-16": (Case(2, 3, 150, 0, 280, 2, 1, 80), jnp.bfloat16, SMALL),
    # Several blocks a fetch, several fetches, several key heads a step; nothing runs ahead.
    "blocks-of-a-fetch": (
        Case(1, 5, 64, 3, 900, 2, 2, 32),
        jnp.float32,
        Blocks(lanes=128, slots=128, fetch=2 * 32 * 256, lag=0),
    ),
    "no-slots": (Case(2, 1, 49, 9, 0, 1, 1, 96), jnp.float32, None),
    "widest": (Case(1, 2, 128, 16, 40, 3, 1, 128), jnp.bfloat16, None),
}


@pytest.mark.parametrize("name", SINGLE)
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
@settings(max_examples=8, derandomize=True, database=None, phases=[Phase.generate])
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


def test_the_plain_interpreter_says_the_same():
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        holds(draw(Case(1, 2, 64, 5, 30, 2, 1, 32), jnp.float32, ragged=True), 0.2)
