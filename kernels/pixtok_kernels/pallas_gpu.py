"""Hopper kernels of global conditional attention, in Pallas Mosaic GPU (compute capability 9.0a).

One warpgroup keeps the copies of the tensor memory accelerator under way, and one or two others multiply with wgmma,
64 rows each.  Weights are recomputed from the log-sum-exp, so nothing of size W × (P + W + S) is ever stored.

| kernel | a thread block holds | and walks over | products for a pair |
|---|---|---|---|
| `_attend` | query rows of one key head | halo, own keys up to its last row, slots a ≤ s < z | 2 |
| `_attend_back`: dq | the same | the same | 3 |
| `_keys_back`: dk, dv, near or of slots | 64 or 128 keys | the query rows that see one of them | 4 |

Near keys are one sequence, halo first, tiled from its start: a tile may hold both halo and own keys, and P may be any
number.  Tiles that no row sees are neither fetched nor multiplied; tiles that all rows see whole are not masked.  The
query heads of a key head are rows like any others, so that keys are never repeated.  Slots are seen from many windows:
those that see one of a block of slots are listed beforehand and dealt to `Blocks.splits` thread blocks, whose sums are
added up afterwards in a fixed order.  No atomics: equal inputs give equal gradients.

Costs on paper, for N pixels with n = W/2 + P + S̄ visible keys each: 4·N·n·H·D floating-point operations forward, and
14·N·n·H·D backward, where 10 would do with atomics.  For N = 50,176, W = 256, P = 0, S̄ = 98, H = 12, K = 6, D = 64 in
bfloat16 these are 35 and 122 GFLOP, 28 % more in whole tiles, and 0.23 and 1.0 GB of memory traffic.  At 989 TFLOP/s,
16 exponentials a cycle and core, and 3.35 TB/s (NVIDIA's data sheet of the H100 SXM and CUDA programming guide) that is
45 µs of products, 47 µs of exponentials and 70 µs of memory forward; 158, 94 and 290 µs backward.  Memory bounds both.
No Hopper card has run this yet.
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
    rounds: tiles of rows that each consumer of a block goes through, with the next one's keys on their way; rounded
        down to a divisor of what there are in a window.
    splits: thread blocks among which the windows that see a block of slots are dealt.
    """

    keys: int = 64
    stages: int = 2
    rounds: int = 1
    splits: int = 1

    def __post_init__(self):
        if self.keys not in (64, 128):
            raise ValueError(f"keys must be 64 or 128; got {self.keys}")
        if self.stages < 2 or self.rounds < 1 or self.splits < 1:
            raise ValueError(f"stages must be at least 2, rounds and splits at least 1; got {self}")

    def shared_bytes(self, D: int) -> int:
        """Shared memory of the hungriest kernel for D features of 16 bits, all but its barriers."""
        held = 2 * 2 * ROWS * (2 * D + 4)
        walk_keys = held + 2 * ROWS * 2 * D + self.stages * self.keys * (4 * D + 4)
        walk_rows = held + 2 * ROWS * 4 * D + self.stages * ROWS * (4 * D + 8)
        return max(walk_keys, walk_rows)


def blocks_for(a: Arguments) -> Blocks:
    """What was tuned, or else a guess from the shapes: no Hopper card has been asked."""
    found = tuning.tuned(Blocks, ("gpu", "cuda"), Case.of(a), a.q_BMWHD.dtype.itemsize)
    if found:
        return found
    B, M, W, H, D = a.q_BMWHD.shape
    S, K = a.slot_k_BSKD.shape[1:3]
    tiles = H // K * pl.cdiv(W, ROWS)
    return Blocks(
        # Wide steps waste less on barriers, narrow ones less on the diagonal of short windows.
        keys=128 if W >= 1024 and D <= 64 else 64,
        stages=2 if D > 64 else 3,
        # Enough blocks for four turns of the cores, so that the last turn is not mostly idle; for the slots, two.
        rounds=max(1, tiles // _consumers(tiles) * B * M * K // (4 * CORES)),
        splits=max(1, min(M, pl.cdiv(2 * CORES, B * K * max(1, pl.cdiv(S, 2 * ROWS))))),
    )


def refusal(a: Arguments, scale: float) -> str | None:
    """Why these kernels cannot take the call; None when they can."""
    W, _, D = a.q_BMWHD.shape[2:]
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
    blocks: Blocks
    interpret: Any

    @property
    def group(self) -> int:
        return self.H // self.K

    @property
    def row_tiles(self) -> int:
        return self.W // ROWS

    @property
    def query_consumers(self) -> int:
        return _consumers(self.group * self.row_tiles)

    @property
    def rounds(self) -> int:
        turns = self.group * self.row_tiles // self.query_consumers
        return next(rounds for rounds in range(min(self.blocks.rounds, turns), 0, -1) if turns % rounds == 0)

    @property
    def query_grid(self) -> dict[str, int]:
        turns = self.group * self.row_tiles // self.query_consumers
        return {"job": self.K * turns // self.rounds, "m": self.M, "b": self.B}


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
        X=whole(P + W, blocks.keys),
        S=whole(max(S, 1), blocks.keys),
        H=H,
        K=K,
        D=max(32, whole(D, 16)),
        dtype=a.q_BMWHD.dtype,
        scale=scale,
        blocks=blocks,
        interpret=interpret,
    )
    near = max(whole(P + W, 8), blocks.keys)
    bias_BS = jnp.zeros((B, S)) if a.slot_bias_BS is None else a.slot_bias_BS
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
        "bias": _padded(LOG2E * bias_BS.astype(jnp.float32), {1: call.S}),
    }
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


def _consumers(tiles: int) -> int:
    return 2 if tiles % 2 == 0 else 1


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


def _products(call: _Call, a_ref: Any, b_ref: Any) -> jax.Array:
    """a·bᵀ of two matrices in shared memory, in float32."""
    if call.interpret:  # the interpreter knows no transposed operands
        axes = (((1,), (1,)), ((), ()))
        return lax.dot_general(a_ref[...], b_ref[...], axes, preferred_element_type=jnp.float32)

    def multiply(sum_ref: Any) -> jax.Array:
        plgpu.wgmma(sum_ref, a_ref, b_ref.transpose((1, 0)))
        return sum_ref[...]

    return pl.run_scoped(multiply, ACC((a_ref.shape[0], b_ref.shape[0]), jnp.float32))


def _plus_product(call: _Call, total: jax.Array, a: jax.Array, b_ref: Any) -> jax.Array:
    """Adds a·b to a total, with a in registers and b in shared memory."""
    a = a.astype(call.dtype)
    if call.interpret:  # the interpreter knows no operands in registers
        return total + jnp.dot(a, b_ref[...], preferred_element_type=jnp.float32)
    state: Any = pl.run_state(lambda sum_ref: plgpu.wgmma(sum_ref, a, b_ref))(ACC.init(total))
    return state


def _drain(steps: jax.Array, stages: int, *free: Any) -> None:
    """Waits until the last steps are done with, so that no barrier is left with a phase that nobody saw."""

    @pl.loop(jnp.maximum(steps - stages, 0), steps)
    def _(step):
        for barrier in free:
            plgpu.barrier_wait(barrier.at[lax.rem(step, stages)])


class _Seen(NamedTuple):
    """Which keys a row sees: key < halo, or low ≤ key < high + rises · row."""

    halo: jax.Array
    low: jax.Array
    high: jax.Array
    rises: jax.Array


def _seen(call: _Call, near: Any, count: jax.Array, first: jax.Array, last: jax.Array) -> _Seen:
    """Near keys: the halo's first, and own ones up to oneself.  Slots: those of the span."""
    return _Seen(
        jnp.where(near, count, 0),
        jnp.where(near, call.P, first),
        jnp.where(near, call.P + 1, last),
        jnp.where(near, 1, 0),
    )


def _hide(score: jax.Array, seen: _Seen, key0: jax.Array, row0: jax.Array, key_axis: int) -> jax.Array:
    """−∞ for the keys from key0 on, along `key_axis`, that the rows from row0 on do not see."""
    end = key0 + score.shape[key_axis]
    all_seen = (end <= seen.halo) | ((key0 >= seen.low) & (end <= seen.high + seen.rises * row0))

    def hide(score: jax.Array) -> jax.Array:
        key = key0 + plgpu.broadcasted_iota(jnp.int32, score.shape, key_axis, layout=TILE)
        row = row0 + plgpu.broadcasted_iota(jnp.int32, score.shape, 1 - key_axis, layout=TILE)
        halo = key < seen.halo
        rest = (key >= seen.low) & (key < seen.high + seen.rises * row)
        return jnp.where(halo | rest, score, -jnp.inf)

    return lax.cond(all_seen, lambda score: score, hide, score)


def _launch(
    call: _Call,
    consumers: int,
    grid: dict[str, int],
    produce: Callable[..., Any],
    consume: Callable[..., Any],
    inputs: dict[str, jax.Array],
    outputs: dict[str, Any],
    scratch: dict[str, Any],
) -> Any:
    """Runs `produce` on one warpgroup and `consume` on the others; both get every reference by name."""
    names = [*inputs, *outputs, *scratch]

    def body(*references: Any) -> None:
        refs = dict(zip(names, references, strict=True))
        worker = lax.axis_index("worker")

        # Three warpgroups start with 168 registers a thread, of which the producer needs few.
        @pl.when(worker < consumers)
        def _():
            if consumers == 2:
                plgpu.set_max_registers(232, action="increase")
            consume(worker, **refs)

        @pl.when(worker == consumers)
        def _():
            if consumers == 2:
                plgpu.set_max_registers(40, action="decrease")
            produce(**refs)

    return plgpu.kernel(
        body,
        out_type=tuple(outputs.values()),
        scratch_types=list(scratch.values()),
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=consumers + 1,
        thread_name="worker",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=call.interpret,
    )(*inputs.values())


# Kernels that hold queries and walk over keys.


class _Walk(NamedTuple):
    """The key tiles that one round of a thread block visits: `near_steps` near ones, then those of slots."""

    steps: jax.Array
    near_steps: jax.Array
    tile: Callable[[jax.Array], jax.Array]


class _Queries(NamedTuple):
    """The rows of a thread block: in each round, adjacent tiles for its consumers.  Tiles go by row, then by head."""

    call: _Call
    b: jax.Array
    m: jax.Array
    key_head: jax.Array
    first: jax.Array
    halo: jax.Array
    a: jax.Array
    z: jax.Array

    @classmethod
    def here(cls, call: _Call, seen_ref: Any) -> "_Queries":
        b, m, job = lax.axis_index("b"), lax.axis_index("m"), lax.axis_index("job")
        tiles = call.rounds * call.query_consumers
        blocks = call.group * call.row_tiles // tiles
        first = lax.rem(job, blocks) * tiles
        return cls(call, b, m, lax.div(job, blocks), first, seen_ref[b, m, 0], seen_ref[b, m, 1], seen_ref[b, m, 2])

    def rows(self, turn: jax.Array, worker: jax.Array) -> tuple[jax.Array, jax.Array]:
        """→ (first row, query head) of a consumer in a round."""
        tile = self.first + turn * self.call.query_consumers + worker
        group = self.call.group
        return lax.div(tile, group) * ROWS, self.key_head * group + lax.rem(tile, group)

    def walk(self, turn: jax.Array) -> _Walk:
        call, keys = self.call, self.call.blocks.keys
        last_row, _ = self.rows(turn, jnp.int32(call.query_consumers - 1))
        halo_end = _up(self.halo, keys)
        own = jnp.maximum(halo_end, call.P // keys)
        own_end = jnp.minimum(_up(call.P + ROWS + last_row, keys), call.X // keys)
        near_steps = halo_end + own_end - own
        slot = lax.div(self.a, keys)

        def tile(step: jax.Array) -> jax.Array:
            near = jnp.where(step < halo_end, step, own + step - halo_end)
            return jnp.where(step < near_steps, near, slot + step - near_steps)

        return _Walk(near_steps + _up(self.z, keys) - slot, near_steps, tile)


def _produce_keys(call: _Call, *, seen_BM3, k, v, slot_k, slot_v, bias, keys, values, biases, **refs) -> None:
    """Copies the tiles of all walks into the ring of stages."""
    queries, stages = _Queries.here(call, seen_BM3), call.blocks.stages
    b, m, head = queries.b, queries.m, queries.key_head

    def copy(turn: jax.Array, done: jax.Array) -> jax.Array:
        walk = queries.walk(turn)

        @pl.loop(0, walk.steps)
        def _(step):
            stage = lax.rem(done + step, stages)
            at = pl.ds(walk.tile(step) * call.blocks.keys, call.blocks.keys)

            @pl.when(done + step >= stages)
            def _():
                plgpu.barrier_wait(refs["keys_free"].at[stage])
                plgpu.barrier_wait(refs["values_free"].at[stage])

            @pl.when(step < walk.near_steps)
            def _():
                plgpu.copy_gmem_to_smem(k.at[b, m, at, head], keys.at[stage], refs["keys_here"].at[stage])
                plgpu.copy_gmem_to_smem(v.at[b, m, at, head], values.at[stage], refs["values_here"].at[stage])

            @pl.when(step >= walk.near_steps)
            def _():
                plgpu.copy_gmem_to_smem(slot_k.at[b, at, head], keys.at[stage], refs["keys_here"].at[stage])
                plgpu.copy_gmem_to_smem(bias.at[b, at], biases.at[stage], refs["biases_here"].at[stage])
                plgpu.copy_gmem_to_smem(slot_v.at[b, at, head], values.at[stage], refs["values_here"].at[stage])

        return done + walk.steps

    steps = lax.fori_loop(0, call.rounds, copy, jnp.int32(0))
    _drain(steps, stages, refs["keys_free"], refs["values_free"])


def _scores(
    queries: _Queries, walk: _Walk, step, stage, row0, mine_ref, *, keys, biases, biases_here, **_: Any
) -> jax.Array:
    """Masked scores of a consumer's rows with the tile of a step, times log₂e."""
    call, near = queries.call, step < walk.near_steps
    score = _products(call, mine_ref, keys.at[stage]) * (call.scale * LOG2E)

    def biased(score: jax.Array) -> jax.Array:
        plgpu.barrier_wait(biases_here.at[stage])
        return score + _spread(plgpu.layout_cast(biases[stage], BY_COLUMN), score, 1)

    score = lax.cond(near, lambda score: score, biased, score)
    seen = _seen(call, near, queries.halo, queries.a, queries.z)
    return _hide(score, seen, walk.tile(step) * call.blocks.keys, row0, key_axis=1)


def _walk_scratch(call: _Call) -> dict[str, Any]:
    stages, keys, consumers = call.blocks.stages, call.blocks.keys, call.query_consumers
    here = plgpu.Barrier(num_barriers=stages)
    free = plgpu.Barrier(num_barriers=stages, num_arrivals=consumers)
    return {
        "keys": _shared(call.dtype, stages, keys, call.D),
        "values": _shared(call.dtype, stages, keys, call.D),
        "biases": _shared(jnp.float32, stages, keys),
        "keys_here": here,
        "values_here": here,
        "biases_here": here,
        "keys_free": free,
        "values_free": free,
    }


def _attend(call: _Call, **inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """→ (o, lse)."""
    consumers = call.query_consumers

    def consume(worker, *, seen_BM3, q, o, lse, rows, results, row_sums, rows_here, **refs) -> None:
        queries = _Queries.here(call, seen_BM3)
        b, m, mine = queries.b, queries.m, rows.at[worker]

        def fetch(turn: Any) -> None:
            row0, head = queries.rows(turn, worker)
            plgpu.copy_gmem_to_smem(q.at[b, m, pl.ds(row0, ROWS), head], mine, rows_here.at[worker])

        def attend(turn: jax.Array, done: jax.Array) -> jax.Array:
            walk, (row0, head) = queries.walk(turn), queries.rows(turn, worker)
            plgpu.barrier_wait(rows_here.at[worker])

            def step(i, carry):
                out, top, total = carry
                stage = lax.rem(done + i, call.blocks.stages)
                plgpu.barrier_wait(refs["keys_here"].at[stage])
                score = _scores(queries, walk, i, stage, row0, mine, **refs)
                plgpu.barrier_arrive(refs["keys_free"].at[stage])
                # The first tile holds a key that every row sees, halo key 0 or own key 0, so `higher` is finite.
                higher = jnp.maximum(top, score.max(axis=1))
                decay = jnp.exp2(top - higher)
                weight = jnp.exp2(score - _spread(higher, score, 0))
                total = total * decay + weight.sum(axis=1)
                plgpu.barrier_wait(refs["values_here"].at[stage])
                out = _plus_product(call, out * _spread(decay, out, 0), weight, refs["values"].at[stage])
                plgpu.barrier_arrive(refs["values_free"].at[stage])
                return out, higher, total

            nothing = _filled(0, TILE, ROWS, call.D), _filled(-jnp.inf, BY_ROW, ROWS), _filled(0, BY_ROW, ROWS)
            out, top, total = lax.fori_loop(0, walk.steps, step, nothing)
            pl.when(turn + 1 < call.rounds)(lambda: fetch(turn + 1))
            plgpu.wait_smem_to_gmem(0)  # the results of the round before
            results[worker] = (out / _spread(total, out, 0)).astype(call.dtype)
            row_sums[worker] = top * (1 / LOG2E) + jnp.log(total)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(results.at[worker], o.at[b, m, pl.ds(row0, ROWS), head])
            plgpu.copy_smem_to_gmem(row_sums.at[worker], lse.at[b, head, m, pl.ds(row0, ROWS)])
            return done + walk.steps

        fetch(0)
        lax.fori_loop(0, call.rounds, attend, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    return _launch(
        call,
        consumers,
        call.query_grid,
        functools.partial(_produce_keys, call),
        consume,
        inputs,
        {
            "o": jax.ShapeDtypeStruct(inputs["q"].shape, call.dtype),
            "lse": jax.ShapeDtypeStruct((call.B, call.H, call.M, call.W), jnp.float32),
        },
        {
            "rows": _shared(call.dtype, consumers, ROWS, call.D),
            "results": _shared(call.dtype, consumers, ROWS, call.D),
            "row_sums": _shared(jnp.float32, consumers, ROWS),
            "rows_here": plgpu.Barrier(num_barriers=consumers),
            **_walk_scratch(call),
        },
    )


def _attend_back(call: _Call, **inputs: jax.Array) -> jax.Array:
    """→ dq."""
    consumers = call.query_consumers

    def consume(
        worker, *, seen_BM3, q, do, lse, delta, dq, rows, drows, results, row_sums, row_deltas, rows_here, **refs
    ) -> None:
        queries = _Queries.here(call, seen_BM3)
        b, m, mine, mine_do = queries.b, queries.m, rows.at[worker], drows.at[worker]

        def fetch(turn: Any) -> None:
            (row0, head), here = queries.rows(turn, worker), rows_here.at[worker]
            at = pl.ds(row0, ROWS)
            plgpu.copy_gmem_to_smem(q.at[b, m, at, head], mine, here)
            plgpu.copy_gmem_to_smem(do.at[b, m, at, head], mine_do, here)
            plgpu.copy_gmem_to_smem(lse.at[b, head, m, at], row_sums.at[worker], here)
            plgpu.copy_gmem_to_smem(delta.at[b, head, m, at], row_deltas.at[worker], here)

        def attend(turn: jax.Array, done: jax.Array) -> jax.Array:
            walk, (row0, head) = queries.walk(turn), queries.rows(turn, worker)
            plgpu.barrier_wait(rows_here.at[worker])
            my_lse = plgpu.layout_cast(row_sums[worker], BY_ROW)
            my_delta = plgpu.layout_cast(row_deltas[worker], BY_ROW)

            def step(i, out):
                stage = lax.rem(done + i, call.blocks.stages)
                plgpu.barrier_wait(refs["keys_here"].at[stage])
                score = _scores(queries, walk, i, stage, row0, mine, **refs)
                weight = jnp.exp2(score - _spread(my_lse, score, 0))
                plgpu.barrier_wait(refs["values_here"].at[stage])
                dweight = _products(call, mine_do, refs["values"].at[stage])
                plgpu.barrier_arrive(refs["values_free"].at[stage])
                dscore = weight * (dweight - _spread(my_delta, score, 0))
                out = _plus_product(call, out, dscore, refs["keys"].at[stage])
                plgpu.barrier_arrive(refs["keys_free"].at[stage])
                return out

            out = lax.fori_loop(0, walk.steps, step, _filled(0, TILE, ROWS, call.D))
            pl.when(turn + 1 < call.rounds)(lambda: fetch(turn + 1))
            plgpu.wait_smem_to_gmem(0)  # the results of the round before
            results[worker] = (call.scale * out).astype(call.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(results.at[worker], dq.at[b, m, pl.ds(row0, ROWS), head])
            return done + walk.steps

        fetch(0)
        lax.fori_loop(0, call.rounds, attend, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    (dq,) = _launch(
        call,
        consumers,
        call.query_grid,
        functools.partial(_produce_keys, call),
        consume,
        inputs,
        {"dq": jax.ShapeDtypeStruct(inputs["q"].shape, call.dtype)},
        {
            "rows": _shared(call.dtype, consumers, ROWS, call.D),
            "drows": _shared(call.dtype, consumers, ROWS, call.D),
            "results": _shared(call.dtype, consumers, ROWS, call.D),
            "row_sums": _shared(jnp.float32, consumers, ROWS),
            "row_deltas": _shared(jnp.float32, consumers, ROWS),
            "rows_here": plgpu.Barrier(num_barriers=consumers, num_arrivals=4),
            **_walk_scratch(call),
        },
    )
    return dq


# The kernel that holds keys and walks over queries.


class _Visits(NamedTuple):
    """The rows that a thread block visits: in each of `windows`, tiles of rows from `first` on, each for every head."""

    windows: jax.Array
    window: Callable[[jax.Array], jax.Array]
    first: jax.Array

    def steps(self, call: _Call) -> jax.Array:
        """Steps in a window."""
        return (call.row_tiles - self.first) * call.group

    def rows(self, call: _Call, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """→ (first row, head of the group) of a step in a window."""
        return (self.first + lax.div(step, call.group)) * ROWS, lax.rem(step, call.group)


def _near_visits(call: _Call, key0: jax.Array, keys: int, *, seen_BM3, **_: Any) -> _Visits:
    """One's own window: all rows for halo keys that are seen, rows from the first key on for own keys."""
    b, m = lax.axis_index("b"), lax.axis_index("part")
    own = jnp.minimum(lax.div(jnp.maximum(key0 - call.P, 0), ROWS), call.row_tiles)
    own = jnp.where(key0 + keys <= call.P, call.row_tiles, own)
    return _Visits(jnp.int32(1), lambda _: m, jnp.where(key0 < seen_BM3[b, m, 0], 0, own))


def _far_visits(call: _Call, key0: jax.Array, keys: int, *, viewers, viewer_count, **_: Any) -> _Visits:
    """All rows of the windows that see one of the slots, dealt to the parts in turn."""
    b, part, tile, splits = lax.axis_index("b"), lax.axis_index("part"), lax.div(key0, keys), call.blocks.splits
    windows = lax.div(jnp.maximum(viewer_count[b, tile] - part + (splits - 1), 0), splits)
    return _Visits(windows, lambda window: viewers[b, tile, part + window * splits], jnp.int32(0))


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
    outputs = {"dk": like, "dv": like}

    def at(b, m, keys, head):
        return b, m, keys, head

    return _keys_back(call, call.X, call.M, _near_visits, inputs, outputs, held_at=at, sums_at=at)


def _far_back(call: _Call, *, slot_k: jax.Array, slot_v: jax.Array, **arrays: jax.Array) -> list[jax.Array]:
    """→ [dslot_k, dslot_v, dbias (…, B, K, S)], each in float32 and as `Blocks.splits` parts of its sum."""
    parts = call.blocks.splits
    viewers, viewer_count = _viewers(call, arrays["seen_BM3"], ROWS * _consumers(call.S // ROWS))
    inputs = {"held_k": slot_k, "held_v": slot_v, "viewers": viewers, "viewer_count": viewer_count}
    inputs |= {name: arrays[name] for name in ("bias", "seen_BM3", "q", "do", "lse", "delta")}
    like = jax.ShapeDtypeStruct((parts, *slot_k.shape), jnp.float32)
    outputs = {"dk": like, "dv": like}
    outputs["dbias"] = jax.ShapeDtypeStruct((parts, call.B, call.K, call.S), jnp.float32)
    return _keys_back(
        call,
        call.S,
        parts,
        _far_visits,
        inputs,
        outputs,
        held_at=lambda b, part, keys, head: (b, keys, head),
        sums_at=lambda b, part, keys, head: (part, b, keys, head),
    )


def _keys_back(
    call: _Call,
    key_count: int,
    parts: int,
    visits_of: Callable[..., _Visits],
    inputs: dict[str, jax.Array],
    outputs: dict[str, Any],
    *,
    held_at: Callable[..., tuple[Any, ...]],
    sums_at: Callable[..., tuple[Any, ...]],
) -> list[jax.Array]:
    """Sums over rows for keys that stay.  Scores are transposed, so that they multiply from registers."""
    consumers, far, stages = _consumers(key_count // ROWS), "dbias" in outputs, call.blocks.stages
    keys = consumers * ROWS
    tiles = key_count // keys

    def place() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """→ (b, part, key head, first key)."""
        job = lax.axis_index("job")
        return lax.axis_index("b"), lax.axis_index("part"), lax.div(job, tiles), lax.rem(job, tiles) * keys

    def produce(*, q, do, lse, delta, rows, drows, row_sums, row_deltas, **refs) -> None:
        b, _part, key_head, key0 = place()
        visits = visits_of(call, key0, keys, **refs)
        steps = visits.steps(call)

        @pl.loop(0, visits.windows)
        def _(index):
            m = visits.window(index)

            @pl.loop(0, steps)
            def _(step):
                turn = index * steps + step
                stage = lax.rem(turn, stages)
                row0, head = visits.rows(call, step)
                at, head = pl.ds(row0, ROWS), key_head * call.group + head

                @pl.when(turn >= stages)
                def _():
                    plgpu.barrier_wait(refs["rows_free"].at[stage])
                    plgpu.barrier_wait(refs["drows_free"].at[stage])

                rows_here, drows_here = refs["rows_here"].at[stage], refs["drows_here"].at[stage]
                plgpu.copy_gmem_to_smem(q.at[b, m, at, head], rows.at[stage], rows_here)
                plgpu.copy_gmem_to_smem(lse.at[b, head, m, at], row_sums.at[stage], rows_here)
                plgpu.copy_gmem_to_smem(do.at[b, m, at, head], drows.at[stage], drows_here)
                plgpu.copy_gmem_to_smem(delta.at[b, head, m, at], row_deltas.at[stage], drows_here)

        _drain(visits.windows * steps, stages, refs["rows_free"], refs["drows_free"])

    def consume(
        worker, *, held_k, held_v, seen_BM3, rows, drows, row_sums, row_deltas, keys_held, values_held, sums, **refs
    ) -> None:
        b, part, key_head, key0 = place()
        visits = visits_of(call, key0, keys, seen_BM3=seen_BM3, **refs)
        steps = visits.steps(call)
        key0 += worker * ROWS
        at = pl.ds(key0, ROWS)
        my_keys, my_values, here = keys_held.at[worker], values_held.at[worker], refs["keys_here"].at[worker]
        plgpu.copy_gmem_to_smem(held_k.at[held_at(b, part, at, key_head)], my_keys, here)
        plgpu.copy_gmem_to_smem(held_v.at[held_at(b, part, at, key_head)], my_values, here)
        if far:
            plgpu.copy_gmem_to_smem(refs["bias"].at[b, at], refs["key_sums"].at[worker], here)
        plgpu.barrier_wait(here)
        my_bias = plgpu.layout_cast(refs["key_sums"][worker], BY_ROW) if far else _filled(0, BY_ROW, ROWS)

        def window(index, carry):
            m = visits.window(index)
            seen = _seen(call, not far, seen_BM3[b, m, 0], seen_BM3[b, m, 1], seen_BM3[b, m, 2])

            def step(step, carry):
                dk, dv, dbias = carry
                stage = lax.rem(index * steps + step, stages)
                row0, _ = visits.rows(call, step)
                plgpu.barrier_wait(refs["rows_here"].at[stage])
                score = _products(call, my_keys, rows.at[stage]) * (call.scale * LOG2E)
                if far:
                    score += _spread(my_bias, score, 0)
                score = _hide(score, seen, key0, row0, key_axis=0)
                lse = plgpu.layout_cast(row_sums[stage], BY_COLUMN)
                weight = jnp.exp2(score - _spread(lse, score, 1))
                plgpu.barrier_wait(refs["drows_here"].at[stage])
                dv = _plus_product(call, dv, weight, drows.at[stage])
                dweight = _products(call, my_values, drows.at[stage])
                delta = plgpu.layout_cast(row_deltas[stage], BY_COLUMN)
                plgpu.barrier_arrive(refs["drows_free"].at[stage])
                dscore = weight * (dweight - _spread(delta, score, 1))
                if far:
                    dbias += dscore.sum(axis=1)
                dk = _plus_product(call, dk, dscore, rows.at[stage])
                plgpu.barrier_arrive(refs["rows_free"].at[stage])
                return dk, dv, dbias

            return lax.fori_loop(0, steps, step, carry)

        nothing = _filled(0, TILE, ROWS, call.D), _filled(0, TILE, ROWS, call.D), _filled(0, BY_ROW, ROWS)
        dk, dv, dbias = lax.fori_loop(0, visits.windows, window, nothing)
        for gradient, ref in ((call.scale * dk, refs["dk"]), (dv, refs["dv"])):
            sums[worker] = gradient.astype(ref.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(sums.at[worker], ref.at[sums_at(b, part, at, key_head)])
            plgpu.wait_smem_to_gmem(0)
        if far:
            refs["key_sums"][worker] = dbias
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(refs["key_sums"].at[worker], refs["dbias"].at[part, b, key_head, at])
            plgpu.wait_smem_to_gmem(0)

    return _launch(
        call,
        consumers,
        {"job": call.K * tiles, "part": parts, "b": call.B},
        produce,
        consume,
        inputs,
        outputs,
        {
            "keys_held": _shared(call.dtype, consumers, ROWS, call.D),
            "values_held": _shared(call.dtype, consumers, ROWS, call.D),
            "sums": _shared(outputs["dk"].dtype, consumers, ROWS, call.D),
            "rows": _shared(call.dtype, stages, ROWS, call.D),
            "drows": _shared(call.dtype, stages, ROWS, call.D),
            "row_sums": _shared(jnp.float32, stages, ROWS),
            "row_deltas": _shared(jnp.float32, stages, ROWS),
            "keys_here": plgpu.Barrier(num_barriers=consumers, num_arrivals=3 if far else 2),
            "rows_here": plgpu.Barrier(num_barriers=stages, num_arrivals=2),
            "drows_here": plgpu.Barrier(num_barriers=stages, num_arrivals=2),
            "rows_free": plgpu.Barrier(num_barriers=stages, num_arrivals=consumers),
            "drows_free": plgpu.Barrier(num_barriers=stages, num_arrivals=consumers),
        }
        | ({"key_sums": _shared(jnp.float32, consumers, ROWS)} if far else {}),
    )
