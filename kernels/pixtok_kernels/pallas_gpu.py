"""Hopper kernels of global conditional attention, in Pallas Mosaic GPU (compute capability 9.0a).

One warpgroup keeps the copies of the tensor memory accelerator under way, and others multiply with wgmma, 64 rows each:
four forward, as many as registers hold for up to 64 features, and two backward.  Weights are recomputed from the
log-sum-exp, so nothing of size W × (P + W + S) is ever stored.

| kernel | a thread block holds | and walks over | products for a pair |
|---|---|---|---|
| `_attend` | query rows of one key head | halo, own keys up to its last row, slots a ≤ s < z | 2 |
| `_attend_back`: dq | the same | the same | 3 |
| `_keys_back`: dk, dv, near or of slots | 64 or 128 keys | the query rows that see one of them | 4 |

There is one thread block for a core; it goes through its share of such items, and has the next one's rows or keys on
their way while it works.  Near keys are one sequence, halo first, tiled from its start: a tile may hold both halo and
own keys, and P may be any number.  Tiles that no row sees are neither fetched nor multiplied; tiles that all rows see
whole are not masked.  The query heads of a key head are rows like any others, so that keys are never repeated.  Slots
are seen from many windows: those that see one of a block of slots are listed beforehand and dealt to `Blocks.splits`
items, whose sums are added up afterwards in a fixed order.  No atomics: equal inputs give equal gradients.

Costs on paper, for N pixels with n = W/2 + P + S̄ visible keys each: 4·N·n·H·D floating-point operations forward, and
14·N·n·H·D backward, where 10 would do with atomics.  For N = 50,176, W = 256, P = 0, S̄ = 98, H = 12, K = 6, D = 64 in
bfloat16 these are 35 and 122 GFLOP, 28 % more in whole tiles, and 0.23 and 1.0 GB of memory traffic.  At 989 TFLOP/s,
16 exponentials a cycle and core, and 3.35 TB/s (NVIDIA's data sheet of the H100 SXM and CUDA programming guide) that is
45 µs of products, 47 µs of exponentials and 70 µs of memory forward; 158, 94 and 290 µs backward.  Measured on an H200:
see `kernels/README.md`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pixtok_kernels import tuning
from pixtok_kernels.shapes import Arguments, Case

ROWS = 64
"""Rows of one warpgroup: the height of wgmma."""
WIDEST = 128
"""Features whose accumulators fit the registers."""
SHARED_BYTES = 227 * 1024
"""Shared memory of a thread block."""
CORES = 132
LOG2E = math.log2(math.e)

TILE = plgpu.Layout.WGMMA
ACC: Any = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
# Any, since jax 0.11 declares them abstract.
TILING: Any = plgpu.TilingTransform
SWIZZLE: Any = plgpu.SwizzleTransform
BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes that change the speed and not the result.

    keys: keys of one step of the kernels that hold queries.
    stages: steps whose copies are under way at once.
    splits: items, for any thread block, among which the windows that see a block of slots are dealt.
    """

    keys: int = 64
    stages: int = 2
    splits: int = 1

    def __post_init__(self):
        if self.keys not in (64, 128):
            raise ValueError(f"keys must be 64 or 128; got {self.keys}")
        if self.stages < 2 or self.splits < 1:
            raise ValueError(f"stages must be at least 2 and splits at least 1; got {self}")

    def shared_bytes(self, D: int) -> int:
        """Shared memory of the hungriest kernel for D features of 16 bits, all but its barriers."""
        D = max(32, pl.cdiv(D, 16) * 16)
        ahead, queries = (2, 4) if D <= 64 else (1, 2)
        ring = self.stages * self.keys * (4 * D + 4)
        attend = queries * ROWS * (3 * 2 * D + 4) + ring
        walk_keys = 2 * ROWS * ((3 + ahead) * 2 * D + 4 * 4) + ring
        walk_rows = 2 * ahead * ROWS * (8 * D + 8) + self.stages * ROWS * (4 * D + 8)
        return max(attend, walk_keys, walk_rows)


def blocks_for(a: Arguments) -> Blocks:
    """What was tuned, or else what was good for windows of 256 on an H200, guessed for other shapes."""
    found = tuning.tuned(Blocks, ("gpu", "cuda"), Case.of(a), a.q_BMWHD.dtype.itemsize)
    if found:
        return found
    B, M, W, _, D = a.q_BMWHD.shape
    S, K = a.slot_k_BSKD.shape[1:3]
    return Blocks(
        # Wide steps waste less on barriers, narrow ones less on the diagonal of short windows.
        keys=128 if W >= 1024 and D <= 64 else 64,
        stages=2 if D > 64 else 3,
        # Two items for each thread block.
        splits=max(1, min(M, 2 * CORES // (B * K * max(1, pl.cdiv(S, 2 * ROWS))))),
    )


def absence() -> str | None:
    """Why the device here cannot run these kernels; None when it can."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return "no GPU is here"
    capability = str(getattr(device, "compute_capability", "unknown"))
    return None if capability == "9.0" else f"compute capability must be 9.0; here it is {capability}"


def refusal(a: Arguments, scale: float) -> str | None:
    """Why these kernels cannot take the call; None when they can."""
    W, _, D = a.q_BMWHD.shape[2:]
    if 0 in a.q_BMWHD.shape[:2]:
        return f"there must be at least one row and one window; got {a.q_BMWHD.shape[:2]}"
    if a.q_BMWHD.dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype must be bfloat16 or float16; got {a.q_BMWHD.dtype}"
    if D > WIDEST:
        return f"heads must have at most {WIDEST} features; got {D}"
    if W < 16:
        return f"windows must have at least 16 pixels, or most rows of a 64-row tile are padding; got {W}"
    if not scale > 0:
        return f"scale must be positive; got {scale}"
    return None


class _Call(NamedTuple):
    """Sizes of a call after padding, and how to run it; all static."""

    B: int
    M: int
    W: int
    P: int
    X: int  # near keys, halo and own ones, in whole tiles
    S: int
    H: int
    K: int
    D: int
    dtype: Any
    scale: float
    biased: bool
    blocks: Blocks
    interpret: Any
    consumers: int = 1

    @property
    def group(self) -> int:
        return self.H // self.K

    @property
    def row_tiles(self) -> int:
        return self.W // ROWS

    def held_by(self, most: int) -> "_Call":
        """With so many consumers that hold queries, at most, as they divide the tiles of a key head."""
        tiles = self.group * self.row_tiles
        return self._replace(consumers=next(n for n in (4, 2, 1) if n <= most and tiles % n == 0))

    @property
    def roomy(self) -> bool:
        """Whether shared memory has room for what only saves waiting."""
        return self.D <= 64

    @property
    def query_items(self) -> int:
        """Pieces of work of the kernels that hold queries: for each consumer one tile of a window and key head."""
        return self.B * self.M * self.K * self.group * self.row_tiles // self.consumers


def _padded(array: jax.Array, sizes: dict[int, int], value: float = 0) -> jax.Array:
    """`array` filled up to the sizes of some axes; itself where they are those already."""
    pads = [(0, sizes.get(axis, size) - size) for axis, size in enumerate(array.shape)]
    return jnp.pad(array, pads, constant_values=value) if any(pad for _, pad in pads) else array


def _prepare(a: Arguments, scale: float, blocks: Blocks | None, interpret: Any) -> tuple[_Call, dict[str, jax.Array]]:
    """Arguments in whole tiles, but for near keys, which copies fill up with zeros where a last tile ends beyond them.

    Nothing is copied where W is a multiple of 64, P + W of 8 and D of 16, but the few slots.
    """
    blocks = blocks or blocks_for(a)
    B, M, W, H, D = a.q_BMWHD.shape
    P, K, S = a.k_BMPWKD.shape[2] - W, a.k_BMPWKD.shape[3], a.slot_k_BSKD.shape[1]

    def whole(size: int, tile: int) -> int:
        return pl.cdiv(size, tile) * tile

    call = _Call(
        B=B,
        M=M,
        W=whole(W, ROWS),
        P=P,
        X=whole(P + W, blocks.keys if P + W <= ROWS else 2 * ROWS),
        S=whole(max(S, 1), blocks.keys),
        H=H,
        K=K,
        D=max(32, whole(D, 16)),
        dtype=a.q_BMWHD.dtype,
        scale=scale,
        biased=a.slot_bias_BS is not None,
        blocks=blocks,
        interpret=interpret,
    )
    near = max(whole(P + W, 8), blocks.keys)
    first_BM, last_BM = jnp.clip(a.span_BM2[..., 0], 0, S), jnp.clip(a.span_BM2[..., 1], 0, S)
    last_BM = jnp.where(first_BM < last_BM, last_BM, 0)
    first_BM = jnp.minimum(first_BM, last_BM)
    arrays = {
        "seen_BM3": jnp.stack([jnp.clip(a.halo_count_BM, 0, P), first_BM, last_BM], -1).astype(jnp.int32),
        "q": _padded(a.q_BMWHD, {2: call.W, 4: call.D}),
        "k": _padded(a.k_BMPWKD, {2: near, 4: call.D}),
        "v": _padded(a.v_BMPWKD, {2: near, 4: call.D}),
        "slot_k": _padded(a.slot_k_BSKD, {1: call.S, 3: call.D}),
        "slot_v": _padded(a.slot_v_BSKD, {1: call.S, 3: call.D}),
    }
    if a.slot_bias_BS is not None:  # of unscaled scores
        arrays["bias"] = _padded(a.slot_bias_BS.astype(jnp.float32) / scale, {1: call.S})
    return call, arrays


def forward(
    a: Arguments, scale: float, *, blocks: Blocks | None = None, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """→ (o_BMWHD in the dtype of q, natural log-sum-exp of its scores lse_BHMW in float32).

    `interpret`: what `plgpu.kernel` takes by that name; products are then those of jnp.
    """
    W, _, D = a.q_BMWHD.shape[2:]
    call, arrays = _prepare(a, scale, blocks, interpret)
    o, lse_BHMW = _attend(call, **arrays)
    return o[:, :, :W, :, :D], lse_BHMW[..., :W]


def backward(
    a: Arguments,
    scale: float,
    o_BMWHD: jax.Array,
    lse_BHMW: jax.Array,
    do_BMWHD: jax.Array,
    *,
    blocks: Blocks | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """→ (dq, dk, dv, dslot_k, dslot_v, dslot_bias or None), each in the dtype of its argument.

    With p = exp(score − lse) and δ_t = do_t·o_t, the gradient of score tj is p_tj (do_t·v_j − δ_t).
    """
    W, _, D = a.q_BMWHD.shape[2:]
    X, S = a.k_BMPWKD.shape[2], a.slot_k_BSKD.shape[1]
    call, arrays = _prepare(a, scale, blocks, interpret)
    delta_BMWH = (o_BMWHD.astype(jnp.float32) * do_BMWHD.astype(jnp.float32)).sum(-1)
    arrays["do"] = _padded(do_BMWHD.astype(call.dtype), {2: call.W, 4: call.D})
    # Rows that pad a window see nothing: exp(score − ∞).
    arrays["lse"] = _padded(LOG2E * lse_BHMW, {3: call.W}, jnp.inf)
    arrays["delta"] = _padded(delta_BMWH.transpose(0, 3, 1, 2), {3: call.W})

    dq = _attend_back(call, **arrays)[:, :, :W, :, :D]
    near = _near_back(call, **arrays)
    far = _far_back(call, **arrays)
    dk, dv = (g[:, :, :X, :, :D] for g in near)
    dslot_k, dslot_v = (g[:, :, :S, :, :D].sum(0).astype(call.dtype) for g in far[:2])
    if a.slot_bias_BS is None:
        return dq, dk, dv, dslot_k, dslot_v, None
    return dq, dk, dv, dslot_k, dslot_v, far[2][..., :S].sum((0, 2)).astype(a.slot_bias_BS.dtype)


# What the kernels share.


def _up(size: jax.Array, tile: int) -> jax.Array:
    return lax.div(size + (tile - 1), tile)


def _shared(dtype: Any, *shape: int) -> Any:
    """A buffer in shared memory; matrices in the order that wgmma reads, which their copies bring them into."""
    if len(shape) < 3:
        return plgpu.SMEM(shape, dtype)
    size = jnp.dtype(dtype).itemsize
    swizzle = next(bytes_ for bytes_ in (128, 64, 32) if shape[-1] * size % bytes_ == 0)
    transforms = (TILING((8, swizzle // size)), SWIZZLE(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _filled(value: float, layout: Any, *shape: int) -> jax.Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def _spread(vector: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    return lax.broadcast_in_dim(vector, like.shape, [axis])


def _product(a_ref: Any, b_ref: Any) -> jax.Array:
    axes = (((1,), (1,)), ((), ()))
    return lax.dot_general(a_ref[...], b_ref[...], axes, preferred_element_type=jnp.float32)


def _products(call: _Call, a_ref: Any, b_ref: Any) -> jax.Array:
    """a·bᵀ of two matrices in shared memory, in float32."""
    if call.interpret:  # the interpreter knows no transposed operands
        return _product(a_ref, b_ref)

    def multiply(sum_ref: Any) -> jax.Array:
        plgpu.wgmma(sum_ref, a_ref, b_ref.transpose((1, 0)))
        return sum_ref[...]

    return pl.run_scoped(multiply, ACC((a_ref.shape[0], b_ref.shape[0]), jnp.float32))


def _weights(
    call: _Call, score_of: tuple[Any, Any], change_of: tuple[Any, Any], ready: Callable[[], None], weigh: Any
) -> tuple[jax.Array, jax.Array]:
    """→ (weigh(a·bᵀ), c·dᵀ), in float32.

    The second product, whose matrices are there after `ready`, goes on while the first is weighed.
    """
    if call.interpret:
        score = _product(*score_of)
        ready()
        return weigh(score), _product(*change_of)

    def multiply(score_ref: Any, change_ref: Any) -> tuple[jax.Array, jax.Array]:
        plgpu.wgmma(score_ref, score_of[0], score_of[1].transpose((1, 0)))
        ready()
        plgpu.wgmma(change_ref, change_of[0], change_of[1].transpose((1, 0)))
        weight = weigh(plgpu.wgmma_accumulator_load(score_ref, wait_n=1))
        return weight, change_ref[...]

    shape = score_of[0].shape[0], score_of[1].shape[0]
    return pl.run_scoped(multiply, ACC(shape, jnp.float32), ACC(shape, jnp.float32))


def _plus_products(call: _Call, *sums: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, ...]:
    """The sums total + a·b of (total, a, b), with a in registers and b in shared memory."""
    if call.interpret:  # the interpreter knows no operands in registers
        return tuple(
            total + jnp.dot(a.astype(call.dtype), b_ref[...], preferred_element_type=jnp.float32)
            for total, a, b_ref in sums
        )

    def multiply(totals: Any) -> None:
        for total, (_, a, b_ref) in zip(totals, sums, strict=True):
            plgpu.wgmma(total, a.astype(call.dtype), b_ref)

    return pl.run_state(multiply)(tuple(ACC.init(total) for total, _, _ in sums))


def _drain(steps: jax.Array, stages: int, *free: Any) -> None:
    """Waits until the last steps are done with, so that no barrier is left with a phase that nobody saw."""

    @pl.loop(jnp.maximum(steps - stages, 0), steps)
    def _(step):
        for barrier in free:
            plgpu.barrier_wait(barrier.at[lax.rem(step, stages)])


def _turns(items: int) -> jax.Array:
    """How many of all items this thread block has: every `_blocks(items)`-th."""
    blocks = _blocks(items)
    return lax.div(items - lax.axis_index("block") + (blocks - 1), blocks)


def _blocks(items: int) -> int:
    """Thread blocks.  Their number is odd, so that each gets items of all sorts where sorts take turns."""
    return min(items, (CORES - 1) | 1)


def _item(items: int, turn: Any) -> jax.Array:
    return lax.axis_index("block") + turn * _blocks(items)


class _Seen(NamedTuple):
    """What a window sees: halo keys, and slots from `first` to before `last`."""

    halo: jax.Array
    first: jax.Array
    last: jax.Array

    @classmethod
    def of(cls, ref: Any, b: jax.Array, m: jax.Array) -> "_Seen":
        return cls(ref[b, m, 0], ref[b, m, 1], ref[b, m, 2])


def _hide(call: _Call, score: jax.Array, near: bool, seen: _Seen, key0: Any, row0: Any, key_axis: int) -> jax.Array:
    """−∞ for the keys from key0 on, along `key_axis`, that the rows from row0 on do not see.

    Near keys are the halo's, of which the first are seen, and own ones, seen up to oneself.
    """
    keys = score.shape[key_axis]
    end = key0 + keys
    if near:
        all_seen = end <= row0 + (call.P + 1)
        if call.P:
            all_seen = (end <= seen.halo) | ((key0 >= call.P) & all_seen)
    else:
        all_seen = (key0 >= seen.first) & (end <= seen.last)

    def hide(score: jax.Array) -> jax.Array:
        key = plgpu.broadcasted_iota(jnp.int32, score.shape, key_axis, layout=TILE)
        if near:
            row = plgpu.broadcasted_iota(jnp.int32, score.shape, 1 - key_axis, layout=TILE)
            see = key <= row + (call.P + row0 - key0)
            if call.P:
                see = (key < seen.halo - key0) | ((key >= call.P - key0) & see)
        else:
            see = (key >= seen.first - key0) & (key < seen.last - key0)
        return jnp.where(see, score, -jnp.inf)

    return lax.cond(all_seen, lambda score: score, hide, score)


def _launch(
    call: _Call,
    consumers: int,
    items: int,
    produce: Callable[..., Any],
    consume: Callable[..., Any],
    inputs: dict[str, jax.Array],
    outputs: dict[str, Any],
    scratch: dict[str, Any],
) -> Any:
    """Runs `produce` on one warpgroup and `consume` on the others; both get every reference by name."""
    names = [*inputs, *outputs, *scratch]
    # Warpgroups start with equal shares of the registers, of which the producer needs few: (its own, the others').
    registers = {4: (32, 112), 2: (40, 232)}.get(consumers)

    def body(*references: Any) -> None:
        refs = dict(zip(names, references, strict=True))
        worker = lax.axis_index("worker")

        @pl.when(worker < consumers)
        def _():
            if registers:
                plgpu.set_max_registers(registers[1], action="increase")
            consume(worker, **refs)

        @pl.when(worker == consumers)
        def _():
            if registers:
                plgpu.set_max_registers(registers[0], action="decrease")
            produce(**refs)

    return plgpu.kernel(
        body,
        out_type=tuple(outputs.values()),
        scratch_types=list(scratch.values()),
        grid=(_blocks(items),),
        grid_names=("block",),
        num_threads=consumers + 1,
        thread_name="worker",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=call.interpret,
    )(*inputs.values())


# Kernels that hold queries and walk over keys.


class _Walk(NamedTuple):
    """Tiles of keys that some rows see: `halo` and own ones, `near` in all, and then `far` ones of slots."""

    halo: jax.Array
    near: jax.Array
    far: jax.Array
    own0: jax.Array
    slot0: jax.Array

    def tile(self, step: jax.Array, near: bool) -> jax.Array:
        return jnp.where(step < self.halo, step, self.own0 + step - self.halo) if near else self.slot0 + step


class _Queries(NamedTuple):
    """The rows of an item: adjacent tiles for the consumers of a block.  Tiles go by row, then by head."""

    call: _Call
    b: jax.Array
    m: jax.Array
    key_head: jax.Array
    first: jax.Array

    @classmethod
    def of(cls, call: _Call, turn: Any) -> "_Queries":
        parts = call.group * call.row_tiles // call.consumers
        item = _item(call.query_items, turn)
        window, job = lax.div(item, call.K * parts), lax.rem(item, call.K * parts)
        first = lax.rem(job, parts) * call.consumers
        return cls(call, lax.div(window, call.M), lax.rem(window, call.M), lax.div(job, parts), first)

    def rows(self, worker: Any) -> tuple[jax.Array, jax.Array]:
        """→ (first row, query head) of a consumer."""
        tile = self.first + worker
        group = self.call.group
        return lax.div(tile, group) * ROWS, self.key_head * group + lax.rem(tile, group)

    def walk(self, seen: _Seen, worker: Any) -> _Walk:
        """As far as the rows of a consumer see."""
        call, keys = self.call, self.call.blocks.keys
        row0, _ = self.rows(worker)
        halo = _up(seen.halo, keys)
        own = jnp.maximum(halo, call.P // keys)
        own_end = jnp.minimum(_up(call.P + ROWS + row0, keys), call.X // keys)
        slot0 = lax.div(seen.first, keys)
        return _Walk(halo, halo + own_end - own, _up(seen.last, keys) - slot0, own, slot0)


def _produce_keys(call: _Call, *, seen_BM3, k, v, slot_k, slot_v, keys, values, **refs) -> None:
    """Copies the tiles of all walks into the ring of stages."""
    stages = call.blocks.stages

    def copy(turn: jax.Array, done: jax.Array) -> jax.Array:
        queries = _Queries.of(call, turn)
        b, m, head = queries.b, queries.m, queries.key_head
        walk = queries.walk(_Seen.of(seen_BM3, b, m), jnp.int32(call.consumers - 1))

        def step(i: jax.Array, done: jax.Array, near: bool) -> None:
            stage = lax.rem(done + i, stages)
            at = pl.ds(walk.tile(i, near) * call.blocks.keys, call.blocks.keys)

            @pl.when(done + i >= stages)
            def _():
                plgpu.barrier_wait(refs["keys_free"].at[stage])
                plgpu.barrier_wait(refs["values_free"].at[stage])

            keys_from, values_from = (k.at[b, m], v.at[b, m]) if near else (slot_k.at[b], slot_v.at[b])
            plgpu.copy_gmem_to_smem(keys_from.at[at, head], keys.at[stage], refs["keys_here"].at[stage])
            if call.biased and not near:
                plgpu.copy_gmem_to_smem(refs["bias"].at[b, at], refs["biases"].at[stage], refs["biases_here"].at[stage])
            plgpu.copy_gmem_to_smem(values_from.at[at, head], values.at[stage], refs["values_here"].at[stage])

        pl.loop(0, walk.near)(lambda i: step(i, done, True))
        pl.loop(0, walk.far)(lambda i: step(i, done + walk.near, False))
        return done + walk.near + walk.far

    steps = lax.fori_loop(0, _turns(call.query_items), copy, jnp.int32(0))
    _drain(steps, stages, refs["keys_free"], refs["values_free"])


class _Held(NamedTuple):
    """What a consumer needs to know of the item at hand; `buffer` is the number of its buffers of rows."""

    queries: _Queries
    seen: _Seen
    row0: jax.Array
    head: jax.Array
    buffer: jax.Array


def _consume_keys(
    call: _Call,
    worker: jax.Array,
    *,
    fetch: Callable[[_Held], None],
    begin: Callable[[_Held], Any],
    step: Callable[[_Held, bool, jax.Array, jax.Array, Any], Any],
    finish: Callable[[_Held, Any], None],
    seen_BM3,
    **refs,
) -> None:
    """For each item fetch(), a turn ahead, begin(), step(near, stage, first key) for each tile seen, and finish()."""
    stages, turns = call.blocks.stages, _turns(call.query_items)

    def held(turn: Any) -> _Held:
        queries = _Queries.of(call, turn)
        seen = _Seen.of(seen_BM3, queries.b, queries.m)
        return _Held(queries, seen, *queries.rows(worker), 2 * worker + lax.rem(turn, 2))

    def attend(turn: jax.Array, carry: tuple[jax.Array, _Seen]) -> tuple[jax.Array, _Seen]:
        done, seen = carry
        now = held(turn)._replace(seen=seen)
        # Asked for now, so that it is there when the next turn begins.
        later = held(jnp.minimum(turn + 1, turns - 1))
        pl.when(turn + 1 < turns)(lambda: fetch(later))
        mine, block = now.queries.walk(seen, worker), now.queries.walk(seen, jnp.int32(call.consumers - 1))

        def walk(near: bool, done: jax.Array, sums: Any) -> Any:
            def one(i: jax.Array, sums: Any) -> Any:
                return step(now, near, lax.rem(done + i, stages), mine.tile(i, near) * call.blocks.keys, sums)

            return lax.fori_loop(0, mine.near if near else mine.far, one, sums)

        sums = walk(True, done, begin(now))

        @pl.loop(mine.near, block.near)  # what rows of other consumers see
        def _(i):
            stage = lax.rem(done + i, stages)
            for name in ("keys", "values"):
                plgpu.barrier_wait(refs[f"{name}_here"].at[stage])
                plgpu.barrier_arrive(refs[f"{name}_free"].at[stage])

        finish(now, walk(False, done + block.near, sums))
        return done + block.near + block.far, later.seen

    first = held(0)
    fetch(first)
    lax.fori_loop(0, turns, attend, (jnp.int32(0), first.seen))
    plgpu.wait_smem_to_gmem(0)


def _shown(
    call: _Call, held: _Held, near: bool, score: jax.Array, key0: jax.Array, stage: jax.Array, **refs: Any
) -> Any:
    """Scores of rows with a tile of keys as they count: with the bias of slots, −∞ for what is not seen."""
    if call.biased and not near:
        plgpu.barrier_wait(refs["biases_here"].at[stage])
        score += _spread(plgpu.layout_cast(refs["biases"][stage], BY_COLUMN), score, 1)
    return _hide(call, score, near, held.seen, key0, held.row0, key_axis=1)


def _walk_scratch(call: _Call) -> dict[str, Any]:
    stages, keys, consumers = call.blocks.stages, call.blocks.keys, call.consumers
    here = plgpu.Barrier(num_barriers=stages)
    free = plgpu.Barrier(num_barriers=stages, num_arrivals=consumers)
    scratch = {
        "keys": _shared(call.dtype, stages, keys, call.D),
        "values": _shared(call.dtype, stages, keys, call.D),
        "keys_here": here,
        "values_here": here,
        "keys_free": free,
        "values_free": free,
    }
    return scratch | ({"biases": _shared(jnp.float32, stages, keys), "biases_here": here} if call.biased else {})


def _attend(call: _Call, **inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """→ (o, lse)."""
    call = call.held_by(4 if call.D <= 64 else 2)  # whose sums the registers hold
    consumers, to_log2 = call.consumers, call.scale * LOG2E

    def consume(worker, *, q, o, lse, rows, rows_here, results, row_sums, **refs) -> None:
        def fetch(held: _Held) -> None:
            at = pl.ds(held.row0, ROWS)
            here = rows_here.at[held.buffer]
            plgpu.copy_gmem_to_smem(q.at[held.queries.b, held.queries.m, at, held.head], rows.at[held.buffer], here)

        def begin(held: _Held) -> Any:
            plgpu.barrier_wait(rows_here.at[held.buffer])
            return _filled(0, TILE, ROWS, call.D), _filled(-jnp.inf, BY_ROW, ROWS), _filled(0, BY_ROW, ROWS)

        def step(held: _Held, near: bool, stage: jax.Array, key0: jax.Array, sums: Any) -> Any:
            out, top, total = sums
            plgpu.barrier_wait(refs["keys_here"].at[stage])
            score = _products(call, rows.at[held.buffer], refs["keys"].at[stage])
            score = _shown(call, held, near, score, key0, stage, **refs)
            plgpu.barrier_arrive(refs["keys_free"].at[stage])
            # The first tile holds a key that every row sees, halo key 0 or own key 0, so `higher` is finite.
            higher = jnp.maximum(top, score.max(axis=1) * to_log2)
            decay = jnp.exp2(top - higher)
            weight = jnp.exp2(score * to_log2 - _spread(higher, score, 0))
            total = total * decay + weight.sum(axis=1)
            plgpu.barrier_wait(refs["values_here"].at[stage])
            (out,) = _plus_products(call, (out * _spread(decay, out, 0), weight, refs["values"].at[stage]))
            plgpu.barrier_arrive(refs["values_free"].at[stage])
            return out, higher, total

        def finish(held: _Held, sums: Any) -> None:
            out, top, total = sums
            b, m, at = held.queries.b, held.queries.m, pl.ds(held.row0, ROWS)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the turn before
            results[worker] = (out * _spread(1 / total, out, 0)).astype(call.dtype)
            row_sums[worker] = top * (1 / LOG2E) + jnp.log(total)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(results.at[worker], o.at[b, m, at, held.head])
            plgpu.copy_smem_to_gmem(row_sums.at[worker], lse.at[b, held.head, m, at])

        _consume_keys(call, worker, fetch=fetch, begin=begin, step=step, finish=finish, **refs)

    return _launch(
        call,
        consumers,
        call.query_items,
        functools.partial(_produce_keys, call),
        consume,
        inputs,
        {
            "o": jax.ShapeDtypeStruct(inputs["q"].shape, call.dtype),
            "lse": jax.ShapeDtypeStruct((call.B, call.H, call.M, call.W), jnp.float32),
        },
        {
            "rows": _shared(call.dtype, 2 * consumers, ROWS, call.D),
            "results": _shared(call.dtype, consumers, ROWS, call.D),
            "row_sums": _shared(jnp.float32, consumers, ROWS),
            "rows_here": plgpu.Barrier(num_barriers=2 * consumers),
            **_walk_scratch(call),
        },
    )


def _attend_back(call: _Call, **inputs: jax.Array) -> jax.Array:
    """→ dq."""
    call = call.held_by(2)
    consumers, to_log2 = call.consumers, call.scale * LOG2E

    def consume(worker, *, q, do, lse, delta, dq, rows, drows, rows_here, row_sums, row_deltas, **refs) -> None:
        def fetch(held: _Held) -> None:
            if not call.roomy:  # the turn before left its results there
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            b, m, at = held.queries.b, held.queries.m, pl.ds(held.row0, ROWS)
            buffer, here = held.buffer, rows_here.at[held.buffer]
            plgpu.copy_gmem_to_smem(q.at[b, m, at, held.head], rows.at[buffer], here)
            plgpu.copy_gmem_to_smem(do.at[b, m, at, held.head], drows.at[buffer], here)
            plgpu.copy_gmem_to_smem(lse.at[b, held.head, m, at], row_sums.at[buffer], here)
            plgpu.copy_gmem_to_smem(delta.at[b, held.head, m, at], row_deltas.at[buffer], here)

        def begin(held: _Held) -> Any:
            plgpu.barrier_wait(rows_here.at[held.buffer])
            return _filled(0, TILE, ROWS, call.D)

        def step(held: _Held, near: bool, stage: jax.Array, key0: jax.Array, out: Any) -> Any:
            keys, values = refs["keys"].at[stage], refs["values"].at[stage]

            def weigh(score: jax.Array) -> jax.Array:
                score = _shown(call, held, near, score, key0, stage, **refs)
                my_lse = plgpu.layout_cast(row_sums[held.buffer], BY_ROW)
                return jnp.exp2(score * to_log2 - _spread(my_lse, score, 0))

            plgpu.barrier_wait(refs["keys_here"].at[stage])
            here = functools.partial(plgpu.barrier_wait, refs["values_here"].at[stage])
            weight, dweight = _weights(call, (rows.at[held.buffer], keys), (drows.at[held.buffer], values), here, weigh)
            plgpu.barrier_arrive(refs["values_free"].at[stage])
            my_delta = plgpu.layout_cast(row_deltas[held.buffer], BY_ROW)
            (out,) = _plus_products(call, (out, weight * (dweight - _spread(my_delta, dweight, 0)), keys))
            plgpu.barrier_arrive(refs["keys_free"].at[stage])
            return out

        def finish(held: _Held, out: Any) -> None:
            results = refs["results"].at[worker] if call.roomy else rows.at[held.buffer]
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the turn before
            results[...] = (call.scale * out).astype(call.dtype)
            plgpu.commit_smem()
            at = held.queries.b, held.queries.m, pl.ds(held.row0, ROWS), held.head
            plgpu.copy_smem_to_gmem(results, dq.at[at])

        _consume_keys(call, worker, fetch=fetch, begin=begin, step=step, finish=finish, **refs)

    (dq,) = _launch(
        call,
        consumers,
        call.query_items,
        functools.partial(_produce_keys, call),
        consume,
        inputs,
        {"dq": jax.ShapeDtypeStruct(inputs["q"].shape, call.dtype)},
        {
            "rows": _shared(call.dtype, 2 * consumers, ROWS, call.D),
            "drows": _shared(call.dtype, 2 * consumers, ROWS, call.D),
            "row_sums": _shared(jnp.float32, 2 * consumers, ROWS),
            "row_deltas": _shared(jnp.float32, 2 * consumers, ROWS),
            "rows_here": plgpu.Barrier(num_barriers=2 * consumers, num_arrivals=4),
            **({"results": _shared(call.dtype, consumers, ROWS, call.D)} if call.roomy else {}),
            **_walk_scratch(call),
        },
    )
    return dq


# The kernel that holds keys and walks over queries.


class _Keys(NamedTuple):
    """The keys of an item, `ROWS` for each consumer; `part` is their window, or a number of `Blocks.splits`."""

    b: jax.Array
    part: jax.Array
    key_head: jax.Array
    tile: jax.Array

    @classmethod
    def of(cls, call: _Call, parts: int, tiles: int, turn: Any) -> "_Keys":
        item = _item(call.B * parts * call.K * tiles, turn)
        place, job = lax.div(item, call.K * tiles), lax.rem(item, call.K * tiles)
        return cls(lax.div(place, parts), lax.rem(place, parts), lax.div(job, tiles), lax.rem(job, tiles))


class _Visits(NamedTuple):
    """The rows that an item visits: in each of `windows`, tiles of rows from `first` on, each for every head."""

    windows: jax.Array
    window: Callable[[jax.Array], jax.Array]
    first: jax.Array

    def steps(self, call: _Call) -> jax.Array:
        """Steps in a window."""
        return (call.row_tiles - self.first) * call.group

    def rows(self, call: _Call, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """→ (first row, head of the group) of a step in a window."""
        return (self.first + lax.div(step, call.group)) * ROWS, lax.rem(step, call.group)


def _near_visits(call: _Call, at: _Keys, keys: int, *, seen_BM3, **_: Any) -> _Visits:
    """One's own window: all rows for halo keys that are seen, rows from the first key on for own keys."""
    key0 = at.tile * keys
    own = jnp.minimum(lax.div(jnp.maximum(key0 - call.P, 0), ROWS), call.row_tiles)
    own = jnp.where(key0 + keys <= call.P, call.row_tiles, own)
    return _Visits(jnp.int32(1), lambda _: at.part, jnp.where(key0 < seen_BM3[at.b, at.part, 0], 0, own))


def _far_visits(call: _Call, at: _Keys, keys: int, *, viewers, viewer_count, **_: Any) -> _Visits:
    """All rows of the windows that see one of the slots, dealt to the parts in turn."""
    splits = call.blocks.splits
    windows = lax.div(jnp.maximum(viewer_count[at.b, at.tile] - at.part + (splits - 1), 0), splits)
    return _Visits(windows, lambda window: viewers[at.b, at.tile, at.part + window * splits], jnp.int32(0))


def _viewers(call: _Call, seen_BM3: jax.Array, keys: int) -> tuple[jax.Array, jax.Array]:
    """→ (windows that see one of each `keys` slots, in order and first, in (B, tiles, M); how many they are)."""
    key0_1T1 = jnp.arange(call.S // keys)[None, :, None] * keys
    a_B1M, z_B1M = seen_BM3[:, None, :, 1], seen_BM3[:, None, :, 2]
    sees_BTM = (a_B1M < key0_1T1 + keys) & (key0_1T1 < z_B1M)
    return jnp.argsort(~sees_BTM, axis=-1, stable=True).astype(jnp.int32), sees_BTM.sum(-1, dtype=jnp.int32)


def _near_back(call: _Call, *, k: jax.Array, v: jax.Array, **arrays: jax.Array) -> list[jax.Array]:
    """→ [dk, dv]."""
    inputs = {"held_k": k, "held_v": v} | {name: arrays[name] for name in ("seen_BM3", "q", "do", "lse", "delta")}
    like = jax.ShapeDtypeStruct((call.B, call.M, call.X, call.K, call.D), call.dtype)

    def at(b, m, keys, head):
        return b, m, keys, head

    return _keys_back(call, call.X, call.M, True, inputs, {"dk": like, "dv": like}, held_at=at, sums_at=at)


def _far_back(call: _Call, *, slot_k: jax.Array, slot_v: jax.Array, **arrays: jax.Array) -> list[jax.Array]:
    """→ [dslot_k, dslot_v, dbias (…, B, K, S) if there is a bias], float32, as `Blocks.splits` parts of its sum."""
    parts = call.blocks.splits
    viewers, viewer_count = _viewers(call, arrays["seen_BM3"], ROWS * _key_consumers(call.S))
    inputs = {"held_k": slot_k, "held_v": slot_v, "viewers": viewers, "viewer_count": viewer_count}
    inputs |= {name: arrays[name] for name in ("seen_BM3", "q", "do", "lse", "delta")}
    like = jax.ShapeDtypeStruct((parts, *slot_k.shape), jnp.float32)
    outputs = {"dk": like, "dv": like}
    if call.biased:
        inputs["bias"] = arrays["bias"]
        outputs["dbias"] = jax.ShapeDtypeStruct((parts, call.B, call.K, call.S), jnp.float32)
    return _keys_back(
        call,
        call.S,
        parts,
        False,
        inputs,
        outputs,
        held_at=lambda b, part, keys, head: (b, keys, head),
        sums_at=lambda b, part, keys, head: (part, b, keys, head),
    )


def _key_consumers(keys: int) -> int:
    """Sums of keys and of values leave registers for two."""
    return 2 if keys // ROWS % 2 == 0 else 1


def _keys_back(
    call: _Call,
    key_count: int,
    parts: int,
    near: bool,
    inputs: dict[str, jax.Array],
    outputs: dict[str, Any],
    *,
    held_at: Callable[..., tuple[Any, ...]],
    sums_at: Callable[..., tuple[Any, ...]],
) -> list[jax.Array]:
    """Sums over rows for keys that stay.  Scores are transposed, so that they multiply from registers."""
    consumers, stages = _key_consumers(key_count), call.blocks.stages
    keys, biased, to_log2 = consumers * ROWS, "dbias" in outputs, call.scale * LOG2E
    tiles = key_count // keys
    items = call.B * parts * call.K * tiles
    ahead = call.roomy  # the next item's keys are fetched early, and each sum has its own place
    visits_of = _near_visits if near else _far_visits

    def produce(*, q, do, lse, delta, rows, drows, row_sums, row_deltas, **refs) -> None:
        def item(turn: jax.Array, done: jax.Array) -> jax.Array:
            place = _Keys.of(call, parts, tiles, turn)
            visits, b = visits_of(call, place, keys, **refs), place.b
            steps = visits.steps(call)

            @pl.loop(0, visits.windows)
            def _(index):
                m = visits.window(index)

                @pl.loop(0, steps)
                def _(step):
                    turn = done + index * steps + step
                    stage = lax.rem(turn, stages)
                    row0, head = visits.rows(call, step)
                    at, head = pl.ds(row0, ROWS), place.key_head * call.group + head

                    @pl.when(turn >= stages)
                    def _():
                        plgpu.barrier_wait(refs["rows_free"].at[stage])
                        plgpu.barrier_wait(refs["drows_free"].at[stage])

                    rows_here, drows_here = refs["rows_here"].at[stage], refs["drows_here"].at[stage]
                    plgpu.copy_gmem_to_smem(q.at[b, m, at, head], rows.at[stage], rows_here)
                    plgpu.copy_gmem_to_smem(lse.at[b, head, m, at], row_sums.at[stage], rows_here)
                    plgpu.copy_gmem_to_smem(do.at[b, m, at, head], drows.at[stage], drows_here)
                    plgpu.copy_gmem_to_smem(delta.at[b, head, m, at], row_deltas.at[stage], drows_here)

            return done + visits.windows * steps

        done = lax.fori_loop(0, _turns(items), item, jnp.int32(0))
        _drain(done, stages, refs["rows_free"], refs["drows_free"])

    def consume(
        worker, *, held_k, held_v, seen_BM3, rows, drows, row_sums, row_deltas, keys_held, values_held, sums, **refs
    ) -> None:
        def own(place: _Keys) -> jax.Array:
            return place.tile * keys + worker * ROWS

        def buffer(turn: Any) -> jax.Array:
            return 2 * worker + lax.rem(turn, 2) if ahead else worker

        def fetch(turn: Any) -> None:
            place, to = _Keys.of(call, parts, tiles, turn), buffer(turn)
            at, here = pl.ds(own(place), ROWS), refs["keys_here"].at[to]
            plgpu.copy_gmem_to_smem(held_k.at[held_at(place.b, place.part, at, place.key_head)], keys_held.at[to], here)
            plgpu.copy_gmem_to_smem(
                held_v.at[held_at(place.b, place.part, at, place.key_head)], values_held.at[to], here
            )
            if biased:
                plgpu.copy_gmem_to_smem(refs["bias"].at[place.b, at], refs["biases"].at[to], here)

        def item(turn: jax.Array, done: jax.Array) -> jax.Array:
            place, mine = _Keys.of(call, parts, tiles, turn), buffer(turn)
            visits = visits_of(call, place, keys, seen_BM3=seen_BM3, **refs)
            steps, b, key0 = visits.steps(call), place.b, own(place)
            if ahead:
                pl.when(turn + 1 < _turns(items))(lambda: fetch(turn + 1))
            plgpu.barrier_wait(refs["keys_here"].at[mine])

            def window(index: jax.Array, carry: Any) -> Any:
                seen = _Seen.of(seen_BM3, b, visits.window(index))

                def step(step: jax.Array, carry: Any) -> Any:
                    dk, dv, dbias = carry
                    stage = lax.rem(done + index * steps + step, stages)
                    row0, _ = visits.rows(call, step)

                    def weigh(score: jax.Array) -> jax.Array:
                        if biased:
                            my_bias = plgpu.layout_cast(refs["biases"][mine], BY_ROW)
                            score += _spread(my_bias, score, 0)
                        score = _hide(call, score, near, seen, key0, row0, key_axis=0)
                        lse = plgpu.layout_cast(row_sums[stage], BY_COLUMN)
                        return jnp.exp2(score * to_log2 - _spread(lse, score, 1))

                    plgpu.barrier_wait(refs["rows_here"].at[stage])
                    here = functools.partial(plgpu.barrier_wait, refs["drows_here"].at[stage])
                    products = (keys_held.at[mine], rows.at[stage]), (values_held.at[mine], drows.at[stage])
                    weight, dweight = _weights(call, *products, here, weigh)
                    delta = plgpu.layout_cast(row_deltas[stage], BY_COLUMN)
                    dscore = weight * (dweight - _spread(delta, dweight, 1))
                    if biased:
                        dbias += dscore.sum(axis=1)
                    dv, dk = _plus_products(call, (dv, weight, drows.at[stage]), (dk, dscore, rows.at[stage]))
                    plgpu.barrier_arrive(refs["drows_free"].at[stage])
                    plgpu.barrier_arrive(refs["rows_free"].at[stage])
                    return dk, dv, dbias

                return lax.fori_loop(0, steps, step, carry)

            nothing = _filled(0, TILE, ROWS, call.D), _filled(0, TILE, ROWS, call.D), _filled(0, BY_ROW, ROWS)
            dk, dv, dbias = lax.fori_loop(0, visits.windows, window, nothing)
            if not ahead:
                pl.when(turn + 1 < _turns(items))(lambda: fetch(turn + 1))
            at = pl.ds(key0, ROWS)
            for number, (gradient, name) in enumerate(((call.scale * dk, "dk"), (dv, "dv"))):
                to = 2 * worker + number if ahead else worker
                if number == 0 or not ahead:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # what was there before
                sums[to] = gradient.astype(refs[name].dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(sums.at[to], refs[name].at[sums_at(b, place.part, at, place.key_head)])
            if biased:
                refs["key_sums"][worker] = dbias
                plgpu.commit_smem()
                to = refs["dbias"].at[place.part, b, place.key_head, at]
                plgpu.copy_smem_to_gmem(refs["key_sums"].at[worker], to)
            return done + visits.windows * steps

        fetch(0)
        lax.fori_loop(0, _turns(items), item, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    buffers = 2 * consumers if ahead else consumers
    scratch = {
        "keys_held": _shared(call.dtype, buffers, ROWS, call.D),
        "values_held": _shared(call.dtype, buffers, ROWS, call.D),
        "sums": _shared(outputs["dk"].dtype, buffers, ROWS, call.D),
        "rows": _shared(call.dtype, stages, ROWS, call.D),
        "drows": _shared(call.dtype, stages, ROWS, call.D),
        "row_sums": _shared(jnp.float32, stages, ROWS),
        "row_deltas": _shared(jnp.float32, stages, ROWS),
        "keys_here": plgpu.Barrier(num_barriers=buffers, num_arrivals=3 if biased else 2),
        "rows_here": plgpu.Barrier(num_barriers=stages, num_arrivals=2),
        "drows_here": plgpu.Barrier(num_barriers=stages, num_arrivals=2),
        "rows_free": plgpu.Barrier(num_barriers=stages, num_arrivals=consumers),
        "drows_free": plgpu.Barrier(num_barriers=stages, num_arrivals=consumers),
    }
    if biased:
        scratch |= {
            "biases": _shared(jnp.float32, buffers, ROWS),
            "key_sums": _shared(jnp.float32, consumers, ROWS),
        }
    return _launch(call, consumers, items, produce, consume, inputs, outputs, scratch)
