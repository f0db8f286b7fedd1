"""Mosaic kernels for TPU: pixels on lanes, so that softmax runs along sublanes and D is never padded to 128.

Scores are kept transposed, keys × queries: S' = K Q'.  Their maximum and sum are then elementwise over registers, the
values' product O' = V' P' streams D rows instead of padding D lanes, and arrays in memory have dense lanes of pixels.
Masks, and the bias of slots, are one array for all heads of a step, added to the scores.

Forward, one step of the grid for each (row, key heads, tile of pixels, fetch of slots):

    m, l, O'  ←  online softmax over own keys, halo and visible slots;   o = O' / l,   lse = scale·m + ln l

Backward, from lse and δ = Σ_D o·do:  P' = exp(scale·S' + b − lse),  dS' = P' ∘ (V dO' − δ).  One kernel gives

    dq' = scale Σ K' dS';   for own keys and halo  dk' = scale Σ Q' dS,  dv' = Σ dO' P

and the last two for slots, as long as all slots fit in one fetch: their sums then stay in place while the tiles of a
row go by.  With more slots a second kernel gives them, a step for each (row, key heads, fetch of slots, tile).  Every
sum has one order.
"""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pixtok_kernels import tuning
from pixtok_kernels.shapes import Arguments, Case
from pixtok_kernels.tiles import LANES, Tiles, sight

WIDTHS = (32, 64, 80, 96, 128)
VMEM = 32 << 20
"""Bytes of a core's vector memory that a kernel may take."""
_SIDE = 4
"""Chains whose items alternate: more need more registers than there are, fewer wait for each other."""
_NEVER = -1e30
"""Added to scores that are not to be seen: far below any, and finite, so that no difference is undefined."""


def refusal(a: Arguments, scale: float) -> str | None:
    """Why this backend cannot take a call, or None."""
    _, M, W, P, S, _, _, D = case = Case.of(a)
    if a.q_BMWHD.dtype not in (jnp.bfloat16, jnp.float32):
        return f"dtype must be bfloat16 or float32; got {a.q_BMWHD.dtype}"
    if D not in WIDTHS:
        return f"the width of a head must be one of {', '.join(map(str, WIDTHS))}; got {D}"
    if not 16 <= W <= 4096:
        return f"a window must have from 16 to 4096 pixels; got {W}"
    if S > 131072 or P > 4096:
        return f"there may be 131072 slots and 4096 halo keys; got {S} and {P}"
    if not scale > 1e-20:  # or _NEVER would be near to other scores
        return f"scale must be positive and not tiny; got {scale}"
    if not M * case.B:
        return "there is no window"
    if (bytes_ := tiled(a).bytes_a_key_head) > VMEM * 3 // 4:
        return f"windows must fit in {VMEM * 3 // 4} bytes of vector memory; these take {bytes_}"
    return None


class _Keys(NamedTuple):
    """At most 128 keys that some lanes look at."""

    k: Callable[[int], jax.Array]
    """Of a key head: (D, C), or (C, D) where `rows`."""
    v: Callable[[int], jax.Array]
    mask: jax.Array | None
    """Added to scores: (C, 128)."""
    rows: bool
    add: Callable[..., None]
    """Takes key head, p, ds, q and do, and adds to the gradients of these keys."""


class _Item(NamedTuple):
    head: int
    lane: int
    keys: _Keys


def tiled(a: Arguments) -> Tiles:
    """How a call is cut."""
    case, size = Case.of(a), a.q_BMWHD.dtype.itemsize
    return Tiles(case, tuning.blocks(case, size), size)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """A product summed over one axis of each, float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _div(x: Any, by: int) -> jax.Array:
    """Of what is not negative: a plain division, which floors nothing."""
    return jax.lax.div(x, jnp.int32(by))


def _pair(pairs: Any, row: Any, index: Any, count: int) -> tuple[Any, Any]:
    """Of an array (rows, count, 2) that lies flat: scalar memory would pad its last axis to 128."""
    at = 2 * (row * count + index)
    return pairs[at], pairs[at + 1]


def _aligned(start: Any) -> Any:
    return start if isinstance(start, int) else pl.multiple_of(start, LANES)


def _skew(items: Sequence[_Item], lag: int, *stages: Callable[..., tuple]) -> None:
    """Stage n of an item next to stage n − 1 of the one `lag` items on, so that their latencies overlap."""
    made: list[tuple] = [()] * len(items)
    for time in range(len(items) + lag * (len(stages) - 1)):
        for number, stage in enumerate(stages):
            index = time - number * lag
            if 0 <= index < len(items):
                made[index] = stage(items[index], *made[index])


class _Step:
    """What one step of the grid looks at; `r` are the kernel's references by name, `part` the part of a window."""

    def __init__(self, t: Tiles, scale: float, r: SimpleNamespace, part: Any):
        self.t, self.r, self.part = t, r, part
        self.scale, self.scale2 = scale, scale * math.log2(math.e)
        # Neighbours in this order depend on nothing of each other.
        self.chains = [(head, lane) for head in range(t.heads) for lane in range(0, t.lanes, LANES)]

    def q(self, name: str, head: int, lane: int) -> jax.Array:
        """Something of the queries: (D or 1, 128)."""
        return getattr(self.r, name)[0, head, :, lane : lane + LANES]

    def items(self, lanes: dict[int, list[_Keys]]) -> list[_Item]:
        """A few chains' first keys, then their second keys, …; then the next chains."""
        return [
            _Item(head, lane, lanes[lane][n])
            for first in range(0, len(self.chains), _SIDE)
            for n in range(max(map(len, lanes.values())))
            for head, lane in self.chains[first : first + _SIDE]
            if n < len(lanes[lane])
        ]

    def near(self) -> dict[int, list[_Keys]]:
        """Of the tile's own pixels and of its halo, for each 128 lanes."""
        t, found = self.t, {}
        key, column = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
        seen = key <= column
        if t.span < LANES:
            seen &= key >= (column & -t.span)
        diagonal = jnp.where(seen, 0.0, _NEVER)
        for lane in range(0, t.lanes, LANES):
            first = lane // t.span * t.span if t.span > LANES else lane
            keys = [self._own(start) for start in range(first, lane, LANES)] + [self._own(lane, diagonal)]
            rows = max(1, LANES // t.span) * t.halo
            keys += [self._halo(lane, start, min(LANES, rows - start)) for start in range(0, rows, LANES)]
            found[lane] = keys
        return found

    def before(self, part: Any) -> dict[int, list[_Keys]]:
        """Of the pixels of an earlier part of the window."""
        keys = [self._own(start, part=part) for start in range(0, self.t.lanes, LANES)]
        return dict.fromkeys(range(0, self.t.lanes, LANES), keys)

    def slots(self, fetch: Any, block: Any) -> dict[int, list[_Keys]]:
        """Of one block of slots of a fetch."""
        t, found = self.t, {}
        starts = range(0, t.block, LANES)
        for lane in range(0, t.lanes, LANES):
            if lane and t.windows == 1:  # all lanes see the same
                found[lane] = found[0]
            else:
                found[lane] = [self._slots(lane, fetch, _aligned(block * t.block + s)) for s in starts]
        return found

    def _own(self, start: int, mask: jax.Array | None = None, part: Any = None) -> _Keys:
        part = self.part if part is None else part
        return self._lanes("k", "v", _aligned(part * self.t.lanes + start), mask)

    def _slots(self, lane: int, fetch: Any, start: Any) -> _Keys:
        index = fetch * self.t.fetch + start + jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0)
        first, end = (self.r.see[0, n : n + 1, lane : lane + LANES] for n in (0, 1))
        bias: Any = 0.0
        if self.r.bias is not None:
            bias = self.r.bias[0, pl.ds(start, LANES), :] * (1 / self.scale)
        mask = jnp.where((index >= first) & (index < end), bias, _NEVER)
        return self._lanes("sk", "sv", start, mask)

    def _lanes(self, k: str, v: str, start: Any, mask: jax.Array | None) -> _Keys:
        """Keys that stand on lanes."""
        where = pl.ds(start, LANES)

        def add(head: int, p: jax.Array, ds: jax.Array, q: jax.Array, do: jax.Array) -> None:
            dk, dv = getattr(r, f"d{k}", None), getattr(r, f"d{v}", None)
            if dk is not None and dv is not None:
                dk[head, :, where] += _dot(q, ds.T, 1, 0)
                dv[head, :, where] += _dot(do, p.T, 1, 0)
                if k == "sk" and r.dbias is not None:
                    r.dbias[0, 0, where] += ds.astype(jnp.float32)

        r = self.r
        return _Keys(lambda h: getattr(r, k)[0, h, :, where], lambda h: getattr(r, v)[0, h, :, where], mask, False, add)

    def _halo(self, lane: int, start: int, size: int) -> _Keys:
        """Keys that stand on sublanes."""
        t, r = self.t, self.r
        index, column = (jax.lax.broadcasted_iota(jnp.int32, (size, LANES), axis) for axis in (0, 1))
        index += start
        if t.span < LANES:
            index -= _div(column, t.span) * t.halo
        seen = (index >= 0) & (index < r.see[0, 2:3, lane : lane + LANES])
        where = pl.ds(lane // t.span * t.halo + start, size)

        def add(head: int, p: jax.Array, ds: jax.Array, q: jax.Array, do: jax.Array) -> None:
            r.dhv[head, where] += _dot(p, do, 1, 1)
            r.dhk[head, where] += _dot(ds, q, 1, 1)

        mask = jnp.where(seen, 0.0, _NEVER)
        return _Keys(lambda h: r.hk[0, h, where], lambda h: r.hv[0, h, where], mask, True, add)

    def scores(self, name: str, of: Callable[[int], jax.Array], item: _Item) -> jax.Array:
        """Keys × queries, of q and k or of do and v."""
        axis = 1 if item.keys.rows else 0
        return _dot(of(item.head // self.t.group), self.q(name, item.head, item.lane), axis, 0)

    def masked(self, item: _Item) -> jax.Array:
        """Scores with what is added to them, without the scale."""
        s = self.scores("q", item.keys.k, item)
        return s if item.keys.mask is None else s + item.keys.mask


class _Softmax(NamedTuple):
    """Of a chain so far: the greatest score (1, 128), sums by sublane (8, 128), and values (D, 128)."""

    m: jax.Array
    l: jax.Array
    acc: jax.Array


def _attend(step: _Step, items: Sequence[_Item], so_far: dict[tuple[int, int], _Softmax]) -> None:
    """Adds the items to their chains."""
    m, l, acc = ({chain: state[n] for chain, state in so_far.items()} for n in range(3))

    def scores(item: _Item) -> tuple:
        return (step.masked(item),)

    def weigh(item: _Item, s: jax.Array) -> tuple:
        chain = item.head, item.lane
        top = s.max(axis=0, keepdims=True)
        before = m.get(chain)
        if before is not None:
            top = jnp.maximum(before, top)
        p = jnp.exp2(step.scale2 * s - step.scale2 * top)
        total = p.reshape(-1, 8, LANES).sum(0)
        shrink = None
        if before is not None:
            shrink = jnp.exp2(step.scale2 * (before - top))
            total += shrink * l[chain]
        m[chain], l[chain] = top, total
        return p.astype(step.r.q.dtype), shrink

    def values(item: _Item, p: jax.Array, shrink: jax.Array | None) -> tuple:
        chain = item.head, item.lane
        v = item.keys.v(item.head // step.t.group)
        o = _dot(v, p, 0 if item.keys.rows else 1, 0)
        acc[chain] = o if shrink is None else shrink * acc[chain] + o
        so_far[chain] = _Softmax(m[chain], l[chain], acc[chain])
        return ()

    _skew(items, step.t.blocks.lag, scores, weigh, values)


def _differentiate(step: _Step, items: Sequence[_Item], dq: dict[tuple[int, int], jax.Array] | None) -> None:
    """Adds the items to the gradients of their keys, and to `dq` of their chains."""
    dtype = step.r.q.dtype

    def scores(item: _Item) -> tuple:
        return step.masked(item), step.scores("do", item.keys.v, item)

    def weigh(item: _Item, s: jax.Array, dp: jax.Array) -> tuple:
        p = jnp.exp2(step.scale2 * s - math.log2(math.e) * step.q("lse", item.head, item.lane))
        ds = p * (dp - step.q("delta", item.head, item.lane))
        return p.astype(dtype), ds.astype(dtype)

    def add(item: _Item, p: jax.Array, ds: jax.Array) -> tuple:
        head, lane, keys = item
        if dq is not None:
            more = _dot(keys.k(head // step.t.group), ds, 0 if keys.rows else 1, 0)
            dq[head, lane] = dq[head, lane] + more if (head, lane) in dq else more
        keys.add(head // step.t.group, p, ds, step.q("q", head, lane), step.q("do", head, lane))
        return ()

    _skew(items, step.t.blocks.lag, scores, weigh, add)


def _visible(t: Tiles, low: Any, high: Any, fetch: Any) -> tuple[Any, Any]:
    """Blocks of a fetch, from the first to past the last, that hold any of the slots from low to past high."""
    base = fetch * t.fetch
    first = _div(jnp.maximum(low - base, 0), t.block)
    end = _div(jnp.clip(high - base, 0, t.fetch) + t.block - 1, t.block)
    return first, end


def _loop(first: Any, end: Any, body: Callable[[Any], None]) -> None:
    jax.lax.fori_loop(first, end, lambda index, _: body(index), None)


def _at(head: int, lane: int) -> tuple[int, slice, slice]:
    return head, slice(None), slice(lane, lane + LANES)


def _turn(t: Tiles) -> Any:
    """The how manyth fetch of a tile this is; a plain 0 where there is one, so that nothing branches."""
    return pl.program_id(3) if t.fetches > 1 else 0


def _walk(r: SimpleNamespace, t: Tiles, scale: float, take: Callable[[_Step, list[_Item], bool], None]) -> None:
    """Hands all keys of a tile to `take(step, items, begin)`: near ones and the first visible slots to begin with."""
    row, tile, turn = pl.program_id(0), pl.program_id(2), _turn(t)
    low, high = _pair(r.tile, row, tile, t.count)
    part = jax.lax.rem(tile, t.parts) if t.parts > 1 else 0
    step, fetch = _Step(t, scale, r, part), _div(low, t.fetch) + turn
    first, end = _visible(t, low, high, fetch)

    @pl.when(turn == 0)
    def _() -> None:
        # In one stretch of code with the near keys, so that they overlap.
        keys = step.near()
        if t.case.S:
            far = step.slots(fetch, first)
            keys = {lane: keys[lane] + far[lane] for lane in keys}
        take(step, step.items(keys), True)
        if t.parts > 1:
            _loop(0, part, lambda earlier: take(step, step.items(step.before(earlier)), False))

    begin = first + 1 if t.fetches == 1 else jnp.where(turn == 0, first + 1, first)
    _loop(begin, end, lambda block: take(step, step.items(step.slots(fetch, block)), False))


def _forward_kernel(r: SimpleNamespace, t: Tiles, scale: float) -> None:
    refs = r.m, r.l, r.acc

    def take(step: _Step, items: list[_Item], begin: bool) -> None:
        so_far = {} if begin else {chain: _Softmax(*(ref[_at(*chain)] for ref in refs)) for chain in step.chains}
        _attend(step, items, so_far)
        for chain, state in so_far.items():
            for ref, value in zip(refs, state, strict=True):
                ref[_at(*chain)] = value

    _walk(r, t, scale, take)

    @pl.when(_turn(t) == t.fetches - 1)
    def _() -> None:
        for head in range(t.heads):
            total = r.l[head].sum(0, keepdims=True)
            r.o[0, head] = (r.acc[head] * (1 / total)).astype(r.o.dtype)
            r.lse[0, head] = scale * r.m[head] + jnp.log(total)


def _clear(*refs: Any) -> None:
    for ref in refs:
        if ref is not None:
            ref[...] = jnp.zeros_like(ref)


def _write(r: SimpleNamespace, scale: float, *names: str) -> None:
    """Sums of gradients to where they go; those of keys and queries lack the scale."""
    for name in names:
        out = getattr(r, f"{name}_out")
        if out is not None:
            out[0] = ((1 if name.endswith("v") else scale) * getattr(r, name)[...]).astype(out.dtype)


def _near_kernel(r: SimpleNamespace, t: Tiles, scale: float) -> None:
    tile, turn = pl.program_id(2), _turn(t)
    part = jax.lax.rem(tile, t.parts) if t.parts > 1 else 0

    @pl.when(turn == 0)
    def _() -> None:
        for head in range(t.heads):
            product = r.o[0, head].astype(jnp.float32) * r.do[0, head].astype(jnp.float32)
            r.delta[0, head] = product.sum(0, keepdims=True)
        pl.when(part == 0)(lambda: _clear(r.dk, r.dv, r.dhk, r.dhv))
        pl.when(tile == 0)(lambda: _clear(r.dsk, r.dsv, r.dbias))

    def take(step: _Step, items: list[_Item], begin: bool) -> None:
        dq: dict[tuple[int, int], jax.Array] = {}
        _differentiate(step, items, dq)
        for chain, value in dq.items():
            r.dq[_at(*chain)] = value if begin else r.dq[_at(*chain)] + value

    _walk(r, t, scale, take)
    pl.when(turn == t.fetches - 1)(lambda: _write(r, scale, "dq", "dk", "dv", "dhk", "dhv"))
    pl.when(tile == t.count - 1)(lambda: _write(r, scale, "dsk", "dsv"))


def _far_kernel(r: SimpleNamespace, t: Tiles, scale: float) -> None:
    row, fetch, tile = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    pl.when(tile == 0)(lambda: _clear(r.dsk, r.dsv, r.dbias))
    step = _Step(t, scale, r, 0)
    first, end = _visible(t, *_pair(r.tile, row, tile, t.count), fetch)
    _loop(first, end, lambda block: _differentiate(step, step.items(step.slots(fetch, block)), None))
    pl.when(tile == t.count - 1)(lambda: _write(r, scale, "dsk", "dsv"))


class _Spec(NamedTuple):
    """An array of a call and the block of it that a step sees."""

    array: Any
    block: pl.BlockSpec


def _call(
    kernel: Callable[[SimpleNamespace, Tiles, float], None],
    t: Tiles,
    scale: float,
    grid: tuple[int, ...],
    prefetch: dict[str, jax.Array],
    inputs: dict[str, _Spec | None],
    outputs: dict[str, _Spec | None],
    scratch: dict[str, tuple[int, ...] | None],
    products: int,
) -> dict[str, jax.Array]:
    """`kernel` with its references by name; those that are None are None there too.  Scratch is float32."""
    ins = {name: spec for name, spec in inputs.items() if spec}
    outs = {name: spec for name, spec in outputs.items() if spec}
    temps = {name: shape for name, shape in scratch.items() if shape}
    names = [*prefetch, *ins, *outs, *temps]
    absent = dict.fromkeys({*inputs, *outputs, *scratch} - {*names})
    case = t.case
    pairs = case.B * case.H * t.padded * t.span * (t.span // 2 + t.halo + (case.S + 1) // 2)
    arrays = [spec.array for group in (ins, outs) for spec in group.values()]
    call = pl.pallas_call(
        lambda *refs: kernel(SimpleNamespace(**absent, **dict(zip(names, refs, strict=True))), t, scale),
        out_shape=[spec.array for spec in outs.values()],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=grid,
            in_specs=[spec.block for spec in ins.values()],
            out_specs=[spec.block for spec in outs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in temps.values()],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        # Slots as if windows saw half of them: what is seen is data.
        cost_estimate=pl.CostEstimate(
            flops=2 * products * pairs * case.D,
            transcendentals=pairs,
            bytes_accessed=sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays),
        ),
        name=f"gca{kernel.__name__.removesuffix('_kernel')}",
    )
    made = call(*prefetch.values(), *(spec.array for spec in ins.values()))
    return dict(zip(outs, made, strict=True))


class _Blocks:
    """Blocks of a step's tile and of its fetch of slots; what the grid's indices mean is in `tile` and `fetch`."""

    def __init__(self, t: Tiles, tile: Callable[..., Any], fetch: Callable[..., Any]):
        self.t, self.tile, self.fetch = t, tile, fetch

    def queries(self, x_BHDN: Any) -> _Spec:
        block = (1, self.t.heads, x_BHDN.shape[2], self.t.lanes)
        return _Spec(x_BHDN, pl.BlockSpec(block, lambda *g: (g[0], g[1], 0, self.tile(*g))))

    def own(self, x_BKDN: Any) -> _Spec:
        t = self.t
        block = (1, t.key_heads, t.case.D, t.lanes * t.parts)
        return _Spec(x_BKDN, pl.BlockSpec(block, lambda *g: (g[0], g[1], 0, _div(self.tile(*g), t.parts))))

    def halo(self, x_BKQD: Any) -> _Spec | None:
        t = self.t
        if not t.halo:
            return None
        block = (1, t.key_heads, t.windows * t.halo, t.case.D)
        return _Spec(x_BKQD, pl.BlockSpec(block, lambda *g: (g[0], g[1], _div(self.tile(*g), t.parts), 0)))

    def slots(self, x_BKDS: Any) -> _Spec:
        block = (1, self.t.key_heads, self.t.case.D, self.t.fetch)
        return _Spec(x_BKDS, pl.BlockSpec(block, lambda *g: (g[0], g[1], 0, self.fetch(*g))))

    def see(self, x_B3N: Any) -> _Spec:
        return _Spec(x_B3N, pl.BlockSpec((1, 3, self.t.lanes), lambda *g: (g[0], 0, self.tile(*g))))

    def bias(self, x_BS: jax.Array | None) -> _Spec | None:
        if x_BS is None:
            return None
        x_BS1 = jnp.pad(x_BS.astype(jnp.float32), ((0, 0), (0, self.t.slots - x_BS.shape[1])))[:, :, None]
        return _Spec(x_BS1, pl.BlockSpec((1, self.t.fetch, 1), lambda *g: (g[0], self.fetch(*g), 0)))

    def keys(self, a: Arguments, lane_B3N: jax.Array) -> dict[str, _Spec | None]:
        """All keys and values, and what sees them."""
        t, P = self.t, self.t.case.P
        return {
            "see": self.see(lane_B3N),
            "k": self.own(t.pixels(a.k_BMPWKD[:, :, P:])),
            "v": self.own(t.pixels(a.v_BMPWKD[:, :, P:])),
            "hk": self.halo(t.around(a.k_BMPWKD[:, :, :P])),
            "hv": self.halo(t.around(a.v_BMPWKD[:, :, :P])),
            "sk": self.slots(t.far(a.slot_k_BSKD)),
            "sv": self.slots(t.far(a.slot_v_BSKD)),
            "bias": self.bias(a.slot_bias_BS),
        }


def _walking(t: Tiles) -> _Blocks:
    """Of a grid over tiles, and over the fetches that a tile sees: nothing is fetched for those that it does not."""

    def fetch(row, _, tile, turn, pairs):
        low, high = _pair(pairs, row, tile, t.count)
        return jnp.minimum(_div(low, t.fetch) + turn, _div(jnp.maximum(high - 1, low), t.fetch))

    return _Blocks(t, lambda _row, _head, tile, *_: tile, fetch)


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _line(t: Tiles) -> jax.ShapeDtypeStruct:
    """One number for each query: (B, H, 1, N)."""
    return jax.ShapeDtypeStruct((t.case.B, t.case.H, 1, t.padded * t.span), jnp.float32)


def forward(a: Arguments, scale: float) -> tuple[jax.Array, jax.Array]:
    """→ attention (B, M, W, H, D) in the dtype of q, and the log-sum-exp of all scores (B, H, M, W), float32."""
    case = Case.of(a)
    t = tiled(a)
    see, blocks = sight(t, a), _walking(t)
    q_BHDN = t.pixels(a.q_BMWHD)
    made = _call(
        _forward_kernel,
        t,
        scale,
        (case.B, case.K // t.key_heads, t.count, t.fetches),
        {"tile": see.tile_BT2.reshape(-1)},
        {"q": blocks.queries(q_BHDN), **blocks.keys(a, see.lane_B3N)},
        {"o": blocks.queries(_shape(q_BHDN)), "lse": blocks.queries(_line(t))},
        {
            "m": (t.heads, 1, t.lanes),
            "l": (t.heads, 8, t.lanes),
            "acc": (t.heads, case.D, t.lanes),
        },
        products=2,
    )
    lse_BHMW = made["lse"].reshape(case.B, case.H, t.padded, t.span)[:, :, : case.M, : case.W]
    return t.unpixels(made["o"]), lse_BHMW


def backward(
    a: Arguments, scale: float, o_BMWHD: jax.Array, lse_BHMW: jax.Array, do_BMWHD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """→ gradients of q, k, v, slot_k, slot_v and slot_bias, in their dtypes; `forward` gave o and lse."""
    case = Case.of(a)
    t = tiled(a)
    see, blocks = sight(t, a), _walking(t)
    q_BHDN, do_BHDN, o_BHDN = (t.pixels(x) for x in (a.q_BMWHD, do_BMWHD.astype(a.q_BMWHD.dtype), o_BMWHD))
    # Lanes of padding weigh nothing, whatever the bias is of the slots that they see.
    padding = (0, 0), (0, 0), (0, t.padded - case.M), (0, t.span - case.W)
    lse_BHMW = jnp.pad(lse_BHMW, padding, constant_values=-_NEVER)
    lse_BH1N = lse_BHMW.reshape(case.B, case.H, 1, -1)
    keys = blocks.keys(a, see.lane_B3N)

    def slot_sums(blocks: _Blocks) -> tuple[dict[str, _Spec | None], dict[str, tuple[int, ...] | None]]:
        slots_BKDS = jax.ShapeDtypeStruct((case.B, case.K, case.D, t.slots), a.q_BMWHD.dtype)
        bias = jax.ShapeDtypeStruct((case.B, case.K // t.key_heads, t.slots, LANES), jnp.float32)
        block = pl.BlockSpec((1, 1, t.fetch, LANES), lambda *g: (g[0], g[1], blocks.fetch(*g), 0))
        sums = (t.key_heads, case.D, t.fetch)
        return {
            "dsk_out": blocks.slots(slots_BKDS),
            "dsv_out": blocks.slots(slots_BKDS),
            "dbias": None if a.slot_bias_BS is None else _Spec(bias, block),
        }, {"dsk": sums, "dsv": sums}

    # Where all slots stay in memory while a row's tiles go by, one kernel does it all.
    once = t.fetches == 1
    slot_outputs, slot_scratch = slot_sums(blocks)
    absent: dict[str, Any] = dict.fromkeys(slot_outputs) | dict.fromkeys(slot_scratch)
    own, halo = (t.key_heads, case.D, t.lanes * t.parts), (t.key_heads, t.windows * t.halo, case.D)
    own_spec, halo_spec = (spec and spec._replace(array=_shape(spec.array)) for spec in (keys["k"], keys["hk"]))
    made = _call(
        _near_kernel,
        t,
        scale,
        (case.B, case.K // t.key_heads, t.count, t.fetches),
        {"tile": see.tile_BT2.reshape(-1)},
        {
            "q": blocks.queries(q_BHDN),
            "o": blocks.queries(o_BHDN),
            "do": blocks.queries(do_BHDN),
            "lse": blocks.queries(lse_BH1N),
            **keys,
        },
        {
            "dq_out": blocks.queries(_shape(q_BHDN)),
            "dk_out": own_spec,
            "dv_out": own_spec,
            "dhk_out": halo_spec,
            "dhv_out": halo_spec,
            "delta": blocks.queries(_line(t)),
            **(slot_outputs if once else absent),
        },
        {
            "dq": (t.heads, case.D, t.lanes),
            "dk": own,
            "dv": own,
            "dhk": halo if halo_spec else None,
            "dhv": halo if halo_spec else None,
            **(slot_scratch if once else {}),
        },
        products=5,
    )
    if not once:

        def tile(row, _, fetch, tile, _tiles, pairs):
            return jnp.clip(tile, *_pair(pairs, row, fetch, t.fetches))

        blocks = _Blocks(t, tile, lambda _row, _head, fetch, *_: fetch)
        made |= _call(
            _far_kernel,
            t,
            scale,
            (case.B, case.K // t.key_heads, t.fetches, t.count),
            {"tile": see.tile_BT2.reshape(-1), "fetch": see.fetch_BF2.reshape(-1)},
            {
                "q": blocks.queries(q_BHDN),
                "do": blocks.queries(do_BHDN),
                "lse": blocks.queries(lse_BH1N),
                "delta": blocks.queries(made["delta"]),
                "see": blocks.see(see.lane_B3N),
                "sk": blocks.slots(t.far(a.slot_k_BSKD)),
                "sv": blocks.slots(t.far(a.slot_v_BSKD)),
                "bias": blocks.bias(a.slot_bias_BS),
            },
            *slot_sums(blocks),
            products=4,
        )
    dk, dv = (t.unpixels(made[f"d{x}_out"]) for x in "kv")
    if halo_spec:
        dhk, dhv = (t.unaround(made[f"dh{x}_out"]) for x in "kv")
        dk, dv = jnp.concatenate([dhk, dk], axis=2), jnp.concatenate([dhv, dv], axis=2)
    dbias = None
    if a.slot_bias_BS is not None:
        dbias = made["dbias"].sum((1, 3))[:, : case.S].astype(a.slot_bias_BS.dtype)
    return t.unpixels(made["dq_out"]), dk, dv, t.unfar(made["dsk_out"]), t.unfar(made["dsv_out"]), dbias
