"""Hopper kernels without a Hopper card: numbers from the interpreter of Mosaic GPU, machine code from the compiler."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu import core as mosaic_gpu
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.interpreters import mlir
from jax.sharding import SingleDeviceSharding

from oracle import GRADIENTS, abstract, close, exact
from pixtok_kernels import global_conditional_attention, pallas_gpu, topology
from pixtok_kernels.pallas_gpu import Blocks
from pixtok_kernels.shapes import Arguments, Case, draw


@pytest.fixture
def interpreted(monkeypatch):
    """What makes the kernels run on the CPU; private parts of jax, which 0.10 lacks or compiles for every block."""
    mlir.register_lowering(mosaic_gpu.layout_cast_p, lambda context, x, **_: [x], platform="cpu")

    @functools.lru_cache
    def compiled(jaxpr, worker):  # one for each, since runs of one executable would wait for each other
        return jax.jit(functools.partial(jax.core.eval_jaxpr, jaxpr))

    def run(jaxpr, consts, worker, *args):
        jax.block_until_ready(compiled(jaxpr, int(worker))(consts, worker, *args))

    if not hasattr(thread_map, "_run"):
        monkeypatch.setattr(thread_map, "_run_jaxpr", run)
    return InterpretGPUParams()  # unwritten memory is NaN, and copies from out of bounds raise


ZEROS = {"out_of_bounds_reads": "uninitialized", "uninitialized_memory": "zero"}
"""As the card's copies fill up what is out of bounds."""


def arguments(case: Case, dtype, spans, counts, seed=0) -> Arguments:
    B, M, W, P, S, H, K, D = case
    rng = np.random.default_rng(seed)
    shapes = [(B, M, W, H, D), (B, M, P + W, K, D), (B, M, P + W, K, D), (B, S, K, D), (B, S, K, D)]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    span = jnp.asarray(np.reshape(spans, (B, M, 2)), jnp.int32)
    count = jnp.asarray(np.reshape(counts, (B, M)), jnp.int32)
    return Arguments(*arrays, span, jnp.asarray(rng.normal(size=(B, S)), jnp.float32), count)


CASES = {
    # Two heads side by side; halo and own keys in one tile; a tile that ends out of bounds; slots seen from several
    # windows, in spans of packed documents.
    "grouped": (
        Case(1, 4, 64, 24, 20, 2, 1, 64),
        jnp.bfloat16,
        [[0, 20], [5, 20], [0, 0], [3, 9]],
        [24, 3, 0, 1],
        Blocks(stages=3, splits=2),
    ),
    # Rows and keys of several tiles, by one consumer; steps that wrap around the stages.
    "long": (Case(1, 1, 150, 170, 140, 1, 1, 20), jnp.float16, [[66, 139]], [65], Blocks()),
    # Rows of one block in several turns; wide steps; a span that ends before it starts.
    "wide": (Case(2, 1, 100, 28, 130, 3, 1, 128), jnp.bfloat16, [[0, 130], [129, 7]], [28, 1], Blocks(128)),
    "no-slots": (Case(1, 2, 16, 5, 0, 2, 2, 48), jnp.float16, [[0, 0], [0, 0]], [0, 5], None),
}


SLOW = {"wide", "grouped", "long"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_is_the_definition_and_its_gradient(name, interpreted, monkeypatch):
    if name in ("grouped", "wide"):  # one thread block goes through all
        monkeypatch.setattr(pallas_gpu, "CORES", 1)
    case, dtype, spans, counts, blocks = CASES[name]
    a, scale = arguments(case, dtype, spans, counts), 1.5 * case.D**-0.5
    if name in ("grouped", "long"):  # whose last tiles end beyond their keys
        interpreted = dataclasses.replace(interpreted, **ZEROS)
    do = jnp.asarray(np.random.default_rng(1).normal(size=a.q_BMWHD.shape), dtype)
    expected_o, expected_lse, expected = exact(a, scale, do)

    @jax.jit
    def both(a, do):
        o, lse = pallas_gpu.forward(a, scale, blocks=blocks, interpret=interpreted)
        return o, lse, pallas_gpu.backward(a, scale, o, lse, do, blocks=blocks, interpret=interpreted)

    o, lse, gradients = both(a, do)
    assert o.dtype == dtype
    close(o, expected_o, dtype, "o")
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)
    for argument, name, got, wanted in zip((*a[:5], a[6]), GRADIENTS, gradients, expected, strict=True):
        assert got.dtype == argument.dtype
        close(got, wanted, dtype, name)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the interpreter of jax 0.10 knows no transposed operands")
def test_products_on_wgmma():
    """What the interpreter is spared elsewhere, for the sake of jax 0.10."""
    on_card = pallas_gpu._Call(*[1] * 9, jnp.float16, 1.0, False, Blocks(), interpret=False)

    def body(a_ref, b_ref, ab_ref, a, b, ab, here):
        plgpu.copy_gmem_to_smem(a_ref, a.at[0], here)
        plgpu.copy_gmem_to_smem(b_ref, b.at[0], here)
        plgpu.barrier_wait(here)
        ab[0] = pallas_gpu._products(on_card, a.at[0], b.at[0])
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(ab.at[0], ab_ref)
        plgpu.wait_smem_to_gmem(0)

    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(rows, 32)), jnp.float16) for rows in (64, 128))
    ab = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((64, 128), jnp.float32),
        scratch_types=[
            pallas_gpu._shared(jnp.float16, 1, 64, 32),
            pallas_gpu._shared(jnp.float16, 1, 128, 32),
            pallas_gpu._shared(jnp.float32, 1, 64, 128),
            plgpu.Barrier(num_arrivals=2),
        ],
        interpret=InterpretGPUParams(),
    )(a, b)
    np.testing.assert_allclose(ab, np.float32(a) @ np.float32(b).T, atol=1e-5)


def test_tiles_that_nobody_sees_are_not_fetched(interpreted):
    """Or NaN × 0 would show."""
    case = Case(1, 1, 64, 128, 192, 2, 1, 32)
    a = arguments(case, jnp.float16, [[70, 100]], [10])._replace(slot_bias_BS=None)
    expected_o, _, _ = exact(a, 1.0)
    unseen = a._replace(
        k_BMPWKD=a.k_BMPWKD.at[:, :, 64:128].set(np.nan),
        v_BMPWKD=a.v_BMPWKD.at[:, :, 64:128].set(np.nan),
        slot_k_BSKD=a.slot_k_BSKD.at[:, :64].set(np.nan).at[:, 128:].set(np.nan),
        slot_v_BSKD=a.slot_v_BSKD.at[:, :64].set(np.nan).at[:, 128:].set(np.nan),
    )
    o, _ = jax.jit(lambda a: pallas_gpu.forward(a, 1.0, blocks=Blocks(), interpret=interpreted))(unseen)
    close(o, expected_o, jnp.float16, "o")


def test_what_is_refused():
    case = Case(1, 2, 64, 0, 2, 2, 1, 64)
    assert pallas_gpu.refusal(abstract(case, jnp.bfloat16), 1.0) is None
    assert "float32" in pallas_gpu.refusal(abstract(case, jnp.float32), 1.0)
    assert "at most 128 features" in pallas_gpu.refusal(abstract(case._replace(D=160), jnp.bfloat16), 1.0)
    assert "at least 16 pixels" in pallas_gpu.refusal(abstract(case._replace(W=8), jnp.bfloat16), 1.0)
    assert "at least one row" in pallas_gpu.refusal(abstract(case._replace(M=0), jnp.bfloat16), 1.0)
    assert "positive" in pallas_gpu.refusal(abstract(case, jnp.float16), 0.0)
    with pytest.raises(ValueError, match="keys must be 64 or 128"):
        Blocks(keys=96)
    with pytest.raises(ValueError, match="stages must be at least 2"):
        Blocks(stages=1)


def test_is_taken_on_hopper_and_nowhere_else(monkeypatch):
    a = draw(Case(1, 2, 64, 0, 2, 2, 1, 64), jnp.bfloat16, ragged=False)

    def lowered(platform: str) -> str:
        call = jax.jit(lambda a: global_conditional_attention(*a[:6], halo_count_BM=a.halo_count_BM))
        return call.trace(a).lower(lowering_platforms=(platform,)).as_text()

    assert "mosaic_gpu" not in lowered("cuda")  # which kind of GPU it is for cannot be known here
    hopper, older = (SimpleNamespace(platform="gpu", compute_capability=version) for version in ("9.0", "8.0"))
    monkeypatch.setattr(jax, "devices", lambda: [older])
    assert "mosaic_gpu" not in lowered("cuda")
    monkeypatch.setattr(jax, "devices", lambda: [hopper])
    assert "mosaic_gpu" in lowered("cuda")
    assert "mosaic_gpu" not in lowered("cpu")


@pytest.mark.parametrize("D", range(1, 129, 9))
@pytest.mark.parametrize("W", [16, 256, 4096])
def test_guessed_blocks_fit_shared_memory(D, W):
    blocks = pallas_gpu.blocks_for(abstract(Case(1, 9, W, 64, 900, 4, 2, D), jnp.bfloat16))
    assert blocks.shared_bytes(D) <= pallas_gpu.SHARED_BYTES


@pytest.fixture(scope="module")
def hopper():
    try:
        sharding = SingleDeviceSharding(topology.h100().devices[0])
    except RuntimeError as missing:
        pytest.skip(str(missing))
    kept = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 1e9
    )  # programs of absent devices cannot be read back
    yield sharding
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case(1, 196, 256, 0, 196, 12, 6, 64), jnp.bfloat16),  # 50,176 pixels
        (Case(2, 3, 100, 33, 10, 3, 3, 80), jnp.float16),
        (Case(1, 4, 1024, 256, 64, 8, 2, 128), jnp.bfloat16),
    ],
    ids=["50176-pixels", "odd", "widest"],
)
def test_compiles_for_the_h100(case, dtype, hopper):
    a, scale = abstract(case, dtype, hopper), case.D**-0.5
    lse = jax.ShapeDtypeStruct((case.B, case.H, case.M, case.W), jnp.float32, sharding=hopper)

    def both(a, lse, do):
        o, _ = pallas_gpu.forward(a, scale)
        return o, pallas_gpu.backward(a, scale, o, lse, do)

    compiled = jax.jit(both).lower(a, lse, a.q_BMWHD).compile(topology.H100_OPTIONS)
    assert compiled.as_text().count("mosaic_gpu") >= 4
    if case.M == 196:
        scores = case.H * case.M * case.W * (case.W + case.S)
        assert compiled.memory_analysis().temp_size_in_bytes < scores / 4
