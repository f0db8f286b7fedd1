"""What libraries give: XLA's products and, on CUDA, cuDNN's attention, a few windows at a time.

The gradient is that of FlashAttention (arXiv 2205.14135, algorithm 4): with weights w = exp(score − lse) and
δ = Σ_d do·o, dv = wᵀ do and dscore = w ∘ (do vᵀ − δ).  Given the log-sum-exp over *all* keys and the whole o, it is
exact for any part of the keys alone, so parts need no gradient of their log-sum-exp.

R and C are the rows and windows at once, N = R·C, X = W·G and Y = C·X query rows on one key head, J gathered keys.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
from einops import rearrange
from jax import numpy as jnp

from pixtok_kernels.shapes import Arguments

SLOT_BLOCK = 128
"""Slots at once; blocks that no window at hand sees are skipped."""
PIXEL_BLOCK = 64
"""Pixels of a window at once; keys behind the last of them are skipped."""
SCORES = {"cpu": 2**20, "default": 2**24}
"""Scores at once: on 2 cores what fits their caches, elsewhere what keeps the device busy."""


def refusal(a: Arguments, scale: float) -> None:
    """Nothing is refused."""


def forward(a: Arguments, scale: float) -> tuple[jax.Array, jax.Array]:
    """→ (o_BMWHD, lse_BHMW): see `pixtok_kernels.api`; lse is the log-sum-exp of all scores, float32."""
    return jax.lax.platform_dependent(a, **{name: partial(_forward, way, scale) for name, way in _ways(a).items()})


def backward(
    a: Arguments, scale: float, o_BMWHD: jax.Array, lse_BHMW: jax.Array, do_BMWHD: jax.Array
) -> tuple[Any, ...]:
    """→ (dq, dk, dv, dslot_k, dslot_v, dslot_bias or None), in the dtypes of the arguments."""
    ways = {name: partial(_backward, way, scale) for name, way in _ways(a).items()}
    return jax.lax.platform_dependent(a, o_BMWHD, lse_BHMW, do_BMWHD, **ways)


# ---------------------------------------------------------------------------------------------- a few windows at a time


class _Way(NamedTuple):
    """How a few windows are done, and how many at once."""

    windows: int
    forward: Callable[..., Any]
    """(a, scale) → (o_RCWHD, lse_RHCW)."""
    backward: Callable[..., Any]
    """(a, scale, o_RCWHD, lse_RHCW, do_RCWHD) → (dq, dk, dv), float32 gradients of all slots of the rows."""


def _ways(a: Arguments) -> dict[str, _Way]:
    W, H, D = a.q_BMWHD.shape[2:]
    keys, S = a.k_BMPWKD.shape[2], a.slot_k_BSKD.shape[1]
    ways = {
        name: _Way(scores // (W * H * (keys + min(S, SLOT_BLOCK))), _products, _products_back)
        for name, scores in SCORES.items()
    }
    # cuDNN wants 16 bits and whole groups of 8 features; a bias of slots would be an array of all scores for it, and a
    # few pixels leave most of its 128 × 128 tiles empty.
    if a.q_BMWHD.dtype.itemsize == 2 and D % 8 == 0 and D <= 128 and a.slot_bias_BS is None and W >= 64:
        # It cannot walk along spans, so keys are gathered: as many at once as there are pixels in all.
        pixels = a.span_BM2.shape[0] * a.span_BM2.shape[1] * W
        ways["cuda"] = _Way(min(pixels // max(1, _gathered(a)), 2**15), _cudnn, _cudnn_back)
    return ways


def _chunk(a: Arguments, most: int) -> tuple[int, int, int]:
    """(rows, windows, chunks of a row): a part of one row, or whole rows."""
    B, M = a.span_BM2.shape[:2]
    most = max(1, most)
    if most >= M:
        return max(r for r in range(1, B + 1) if B % r == 0 and r * M <= most), M, 1
    # A divisor of M needs no padding.
    windows = next((c for c in range(most, most // 2, -1) if M % c == 0), most)
    return 1, windows, -(-M // windows)


def _cut(x: jax.Array, start: tuple[Any, ...], size: tuple[int, ...]) -> jax.Array:
    """Of the first axes; the others whole."""
    rest = x.shape[len(start) :]
    return jax.lax.dynamic_slice(x, (*start, *(0 for _ in rest)), (*size, *rest))


def _add(into: jax.Array, x: jax.Array, start: tuple[Any, ...]) -> jax.Array:
    """Adds x to what lies from `start` on."""
    sum_ = _cut(into, start, x.shape[: len(start)]) + x
    return jax.lax.dynamic_update_slice(into, sum_, (*start, *(0 for _ in range(x.ndim - len(start)))))


def _no_gradient(a: Arguments) -> tuple[Any, ...]:
    """Float32 zeros for all slots, which vary over the axes of a mesh as q does (inside `jax.shard_map`)."""
    zero = jnp.where(a.q_BMWHD[0, 0, 0, 0, 0] > 0, jnp.float32(0), jnp.float32(0))
    slots = (a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS)
    return jax.tree.map(lambda x: jnp.broadcast_to(zero, x.shape), slots)


def _map_windows(f: Callable[[jax.Array], jax.Array], a: Arguments) -> Arguments:
    return a._replace(
        q_BMWHD=f(a.q_BMWHD),
        k_BMPWKD=f(a.k_BMPWKD),
        v_BMPWKD=f(a.v_BMPWKD),
        span_BM2=f(a.span_BM2),
        halo_count_BM=f(a.halo_count_BM),
    )


def _pad(x: jax.Array, extra: int, axis: int = 1) -> jax.Array:
    """Windows of zeros see no slot, and their gradient is 0."""
    return jnp.pad(x, [(0, extra if at == axis else 0) for at in range(x.ndim)]) if extra else x


def _at(a: Arguments, row: Any, window: Any, rows: int, windows: int) -> Arguments:
    a = _map_windows(lambda x: _cut(x, (row, window), (rows, windows)), a)
    slots = (a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS)
    k, v, bias = jax.tree.map(lambda x: _cut(x, (row,), (rows,)), slots)
    return a._replace(slot_k_BSKD=k, slot_v_BSKD=v, slot_bias_BS=bias)


def _forward(way: _Way, scale: float, a: Arguments) -> tuple[jax.Array, jax.Array]:
    B, M, *rest = a.q_BMWHD.shape
    rows, windows, chunks = _chunk(a, way.windows)
    if (rows, windows) == (B, M):
        return way.forward(a, scale)
    a = _map_windows(lambda x: _pad(x, chunks * windows - M), a)

    def step(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        return way.forward(_at(a, i // chunks * rows, i % chunks * windows, rows, windows), scale)

    o, lse = jax.lax.map(step, jnp.arange(B // rows * chunks))
    lse_BHMW = rearrange(lse, "(B chunks) R H C W -> (B R) H (chunks C) W", chunks=chunks)
    return o.reshape(B, -1, *rest)[:, :M], lse_BHMW[:, :, :M]


def _backward(
    way: _Way, scale: float, a: Arguments, o_BMWHD: jax.Array, lse_BHMW: jax.Array, do_BMWHD: jax.Array
) -> tuple[Any, ...]:
    B, M, _, H, _ = a.q_BMWHD.shape
    rows, windows, chunks = _chunk(a, way.windows)
    slots = (a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS)
    if (rows, windows) == (B, M):
        own, dslots = way.backward(a, scale, o_BMWHD, lse_BHMW, do_BMWHD)
    else:
        extra = chunks * windows - M
        a, o, do = _map_windows(lambda x: _pad(x, extra), a), _pad(o_BMWHD, extra), _pad(do_BMWHD, extra)
        lse = _pad(lse_BHMW, extra, axis=2)

        def step(dslots: Any, i: jax.Array) -> tuple[Any, Any]:
            row, window = i // chunks * rows, i % chunks * windows
            few = _at(a, row, window, rows, windows)
            few_o, few_do = (_cut(x, (row, window), (rows, windows)) for x in (o, do))
            own, more = way.backward(few, scale, few_o, _cut(lse, (row, 0, window), (rows, H, windows)), few_do)
            return jax.tree.map(partial(_add, start=(row,)), dslots, more), own

        dslots, own = jax.lax.scan(step, _no_gradient(a), jnp.arange(B // rows * chunks))
        own = (x.reshape(B, -1, *x.shape[3:])[:, :M] for x in own)
    return *own, *jax.tree.map(lambda x, like: x.astype(like.dtype), dslots, slots)


# ------------------------------------------------------------------------------------------------------- XLA's products


def _product(equation: str, *arrays: jax.Array, dtype: Any) -> jax.Array:
    """Of arrays in `dtype`, summed in float32."""
    return jnp.einsum(equation, *(x.astype(dtype) for x in arrays), preferred_element_type=jnp.float32)


def _by_key_head(x_RCWHD: jax.Array, K: int) -> jax.Array:
    """Key heads outermost, so that products are of few large matrices."""
    return rearrange(x_RCWHD, "R C W (K G) D -> R K C (W G) D", K=K)


def _merge_windows(x_RKCXD: jax.Array) -> jax.Array:
    return x_RKCXD.reshape(*x_RKCXD.shape[:2], -1, x_RKCXD.shape[-1])


def _pixel_blocks(a: Arguments) -> list[tuple[int, slice, slice]]:
    """(first pixel, its query rows and those of its block, near keys that they may see)."""
    W, H = a.q_BMWHD.shape[2:4]
    P, G = a.k_BMPWKD.shape[2] - W, H // a.k_BMPWKD.shape[3]
    ends = [(begin, min(begin + PIXEL_BLOCK, W)) for begin in range(0, W, PIXEL_BLOCK)]
    return [(begin, slice(begin * G, end * G), slice(0, P + end)) for begin, end in ends]


def _near_scores(a: Arguments, scale: float, q_RKCXD: jax.Array, k_RCPWKD: jax.Array, first: int) -> jax.Array:
    """Of a block of pixels, the first of which is number `first` of its window."""
    W, H = a.q_BMWHD.shape[2:4]
    P, G = a.k_BMPWKD.shape[2] - W, H // a.k_BMPWKD.shape[3]
    score = scale * _product("RKCXD, RCNKD -> RKCXN", q_RKCXD, k_RCPWKD, dtype=q_RKCXD.dtype)
    X, N = score.shape[3:]
    key_N, pixel_X = jnp.arange(N).reshape(1, 1, 1, 1, N) - P, first + jnp.arange(X).reshape(1, 1, 1, X, 1) // G
    see = (key_N >= 0) & (key_N <= pixel_X)
    if P:
        see |= (key_N < 0) & (key_N + P < a.halo_count_BM[:, None, :, None, None])
    return jnp.where(see, score, -jnp.inf)


def _far_scores(
    a: Arguments, scale: float, q_RKYD: jax.Array, k_RSKD: jax.Array, bias_RS: jax.Array | None, start: Any, first: Any
) -> jax.Array:
    """Of the slots from `start` on; those before `first` belong to the block before."""
    score = scale * _product("RKYD, RSKD -> RKYS", q_RKYD, k_RSKD, dtype=q_RKYD.dtype)
    if bias_RS is not None:
        score += bias_RS.astype(jnp.float32)[:, None, None]
    slot_S = start + jnp.arange(k_RSKD.shape[1])[None, None]
    begin_RC1, end_RC1 = a.span_BM2[..., :1], a.span_BM2[..., 1:]
    see_RCS = (jnp.maximum(begin_RC1, first) <= slot_S) & (slot_S < end_RC1)
    by_window = score.reshape(*score.shape[:2], see_RCS.shape[1], -1, score.shape[-1])
    return jnp.where(see_RCS[:, None, :, None], by_window, -jnp.inf).reshape(score.shape)


def _over_slots(a: Arguments, step: Callable[..., Any], carry: Any) -> Any:
    """step(carry, start, first, (k, v, bias)) for each block of slots that a window sees."""
    slots = (a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS)
    R, S = a.slot_k_BSKD.shape[:2]
    if S == 0:
        return carry
    if S <= SLOT_BLOCK:
        return step(carry, 0, 0, slots)
    begin, end = a.span_BM2[..., 0], a.span_BM2[..., 1]
    low = jnp.where(begin < end, begin, S).min() // SLOT_BLOCK
    high = -(-jnp.where(begin < end, end, 0).max() // SLOT_BLOCK)

    def body(block: jax.Array, carry: Any) -> Any:
        first = block * SLOT_BLOCK
        start = jnp.minimum(first, S - SLOT_BLOCK)
        return step(carry, start, first, jax.tree.map(lambda x: _cut(x, (0, start), (R, SLOT_BLOCK)), slots))

    return jax.lax.fori_loop(low, high, body, carry)


def _products(a: Arguments, scale: float) -> tuple[jax.Array, jax.Array]:
    C, W = a.q_BMWHD.shape[1:3]
    dtype, k, v = a.q_BMWHD.dtype, a.k_BMPWKD, a.v_BMPWKD
    q_RKCXD = _by_key_head(a.q_BMWHD, k.shape[3])
    parts = []
    for first, rows, keys in _pixel_blocks(a):
        score = _near_scores(a, scale, q_RKCXD[:, :, :, rows], k[:, :, keys], first)
        top = score.max(-1, keepdims=True)
        weight = jnp.exp(score - top)
        o = _product("RKCXN, RCNKD -> RKCXD", weight, v[:, :, keys], dtype=dtype)
        parts.append((o, top, weight.sum(-1, keepdims=True)))
    near = tuple(_merge_windows(jnp.concatenate(part, axis=3)) for part in zip(*parts, strict=True))
    q_RKYD = _merge_windows(q_RKCXD)

    def step(carry: Any, start: Any, first: Any, slots: Any) -> Any:
        (o, top, total), (k, v, bias) = carry, slots
        score = _far_scores(a, scale, q_RKYD, k, bias, start, first)
        higher = jnp.maximum(top, score.max(-1, keepdims=True))
        weight, keep = jnp.exp(score - higher), jnp.exp(top - higher)
        o = keep * o + _product("RKYS, RSKD -> RKYD", weight, v, dtype=dtype)
        return o, higher, keep * total + weight.sum(-1, keepdims=True)

    o, top, total = _over_slots(a, step, near)
    o_RCWHD = rearrange((o / total).astype(dtype), "R K (C W G) D -> R C W (K G) D", C=C, W=W)
    return o_RCWHD, rearrange(top + jnp.log(total), "R K (C W G) 1 -> R (K G) C W", C=C, W=W)


def _products_back(
    a: Arguments, scale: float, o_RCWHD: jax.Array, lse_RHCW: jax.Array, do_RCWHD: jax.Array
) -> tuple[Any, Any]:
    C, W = a.q_BMWHD.shape[1:3]
    dtype, k, v = a.q_BMWHD.dtype, a.k_BMPWKD, a.v_BMPWKD
    K = k.shape[3]
    q, o, do = (_by_key_head(x, K) for x in (a.q_BMWHD, o_RCWHD, do_RCWHD))
    # As a product: XLA's sum over the last axis of what it multiplies takes ten times as long on the CPU.
    delta = _product("RKCXD, RKCXD -> RKCX", do, o, dtype=jnp.float32)[..., None]
    lse = rearrange(lse_RHCW, "R (K G) C W -> R K C (W G) 1", K=K)
    near = []
    for first, rows, keys in _pixel_blocks(a):
        q_, do_, delta_, lse_ = (x[:, :, :, rows] for x in (q, do, delta, lse))
        weight = jnp.exp(_near_scores(a, scale, q_, k[:, :, keys], first) - lse_)
        dweight = _product("RKCXD, RCNKD -> RKCXN", do_, v[:, :, keys], dtype=dtype)
        dscore = scale * weight * (dweight - delta_)
        dv = _product("RKCXN, RKCXD -> RCNKD", weight, do_, dtype=dtype)
        dk = _product("RKCXN, RKCXD -> RCNKD", dscore, q_, dtype=dtype)
        dk, dv = (_pad(x, k.shape[2] - keys.stop, axis=2) for x in (dk, dv))
        near.append((_product("RKCXN, RCNKD -> RKCXD", dscore, k[:, :, keys], dtype=dtype), dk, dv))
    dqs, dks, dvs = zip(*near, strict=True)
    dk, dv = (reduce(jnp.add, parts) for parts in (dks, dvs))
    q, do, delta, lse, dq = (_merge_windows(x) for x in (q, do, delta, lse, jnp.concatenate(dqs, axis=3)))

    def step(carry: Any, start: Any, first: Any, slots: Any) -> Any:
        (dq, dslots), (k, v, bias) = carry, slots
        weight = jnp.exp(_far_scores(a, scale, q, k, bias, start, first) - lse)
        dscore = weight * (_product("RKYD, RSKD -> RKYS", do, v, dtype=dtype) - delta)
        dbias = None if bias is None else dscore.sum((1, 2))
        dscore *= scale
        dk = _product("RKYS, RKYD -> RSKD", dscore, q, dtype=dtype)
        dv = _product("RKYS, RKYD -> RSKD", weight, do, dtype=dtype)
        dq += _product("RKYS, RSKD -> RKYD", dscore, k, dtype=dtype)
        return dq, jax.tree.map(partial(_add, start=(0, start)), dslots, (dk, dv, dbias))

    dq, dslots = _over_slots(a, step, (dq, _no_gradient(a)))
    dq_RCWHD = rearrange(dq, "R K (C W G) D -> R C W (K G) D", C=C, W=W)
    return tuple(x.astype(dtype) for x in (dq_RCWHD, dk, dv)), dslots


# ---------------------------------------------------------------------------------------------------- cuDNN's attention


def _gathered(a: Arguments) -> int:
    """Keys beside its own that are gathered for a window, J: halo and slots, in whole tiles."""
    return -(-(a.k_BMPWKD.shape[2] - a.q_BMWHD.shape[2] + a.slot_k_BSKD.shape[1]) // 128) * 128


def _gather(a: Arguments, near_RCPWKD: jax.Array, slot_RSKD: jax.Array) -> jax.Array:
    """→ (N, J, K, D): the visible halo keys of each window, then its slots, then whatever."""
    P, S = near_RCPWKD.shape[2] - a.q_BMWHD.shape[2], slot_RSKD.shape[1]
    key_J, count_RC1 = jnp.arange(_gathered(a))[None, None], a.halo_count_BM[..., None]
    keys = jnp.zeros((), near_RCPWKD.dtype)
    if S:
        index_RCJ = jnp.clip(a.span_BM2[..., :1] + key_J - count_RC1, 0, S - 1)
        keys = jax.vmap(lambda slot_SKD, index_CJ: slot_SKD[index_CJ])(slot_RSKD, index_RCJ)
    if P:
        halo_RCJKD = jnp.pad(near_RCPWKD[:, :, :P], [(0, 0), (0, 0), (0, key_J.size - P), (0, 0), (0, 0)])
        keys = jnp.where((key_J < count_RC1)[..., None, None], halo_RCJKD, keys)
    return keys.reshape(-1, *keys.shape[2:])


def _ungather(a: Arguments, d_NJKD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `_gather` hands back, as sums and without scattering: (d_RCPKD, d_RSKD)."""
    R, C, W = a.q_BMWHD.shape[:3]
    P, S = a.k_BMPWKD.shape[2] - W, a.slot_k_BSKD.shape[1]
    d_RCJKD = d_NJKD.reshape(R, C, *d_NJKD.shape[1:]).astype(jnp.float32)
    halo_RCP = jnp.arange(P)[None, None] < a.halo_count_BM[..., None]
    begin_RC1, end_RC1, slot_S = a.span_BM2[..., :1], a.span_BM2[..., 1:], jnp.arange(S)[None, None]
    see_RCS = (begin_RC1 <= slot_S) & (slot_S < end_RC1)
    index_RCS = jnp.where(see_RCS, slot_S - begin_RC1 + a.halo_count_BM[..., None], 0)
    found_RCSKD = jnp.take_along_axis(d_RCJKD, index_RCS[..., None, None], axis=2)
    # Where nothing was seen cuDNN may have left anything.
    return (
        jnp.where(halo_RCP[..., None, None], d_RCJKD[:, :, :P], 0),
        jnp.where(see_RCS[..., None, None], found_RCSKD, 0).sum(1),
    )


def _count(a: Arguments) -> jax.Array:
    """Keys that a window sees beside its own (N, 1, 1)."""
    return (a.halo_count_BM + jnp.maximum(a.span_BM2[..., 1] - a.span_BM2[..., 0], 0)).reshape(-1, 1, 1)


def _own(x_RCPWKD: jax.Array, W: int) -> jax.Array:
    x_RCWKD = x_RCPWKD[:, :, x_RCPWKD.shape[2] - W :]
    return x_RCWKD.reshape(-1, *x_RCWKD.shape[2:])


def _cudnn(a: Arguments, scale: float) -> tuple[jax.Array, jax.Array]:
    R, _, W = a.q_BMWHD.shape[:3]
    q_NWHD = _own(a.q_BMWHD, W)
    o_NWHD, lse_NHW = attend(q_NWHD, _own(a.k_BMPWKD, W), _own(a.v_BMPWKD, W), None, scale)
    if _gathered(a):
        count_N11 = _count(a)
        k, v = _gather(a, a.k_BMPWKD, a.slot_k_BSKD), _gather(a, a.v_BMPWKD, a.slot_v_BSKD)
        other_NWHD, other_NHW = attend(q_NWHD, k, v, count_N11[:, 0, 0], scale)
        other_NHW = jnp.where(count_N11 > 0, other_NHW, -jnp.inf)
        all_NHW = jnp.logaddexp(lse_NHW, other_NHW)
        parts = ((o_NWHD, lse_NHW), (other_NWHD, other_NHW))
        weighed = [jnp.exp(lse - all_NHW).swapaxes(1, 2)[..., None] * o.astype(jnp.float32) for o, lse in parts]
        o_NWHD, lse_NHW = (weighed[0] + weighed[1]).astype(o_NWHD.dtype), all_NHW
    return o_NWHD.reshape(a.q_BMWHD.shape), rearrange(lse_NHW, "(R C) H W -> R H C W", R=R)


def _cudnn_back(
    a: Arguments, scale: float, o_RCWHD: jax.Array, lse_RHCW: jax.Array, do_RCWHD: jax.Array
) -> tuple[Any, Any]:
    W, wide = a.q_BMWHD.shape[2], jnp.float32
    q, o, do = (_own(x, W) for x in (a.q_BMWHD, o_RCWHD, do_RCWHD))
    lse = rearrange(lse_RHCW, "R H C W -> (R C) H W")
    dq, dk, dv = attend_back(q, _own(a.k_BMPWKD, W), _own(a.v_BMPWKD, W), None, scale, lse, o, do)
    dk, dv = dk.reshape(a.k_BMPWKD.shape[:2] + dk.shape[1:]), dv.reshape(a.k_BMPWKD.shape[:2] + dv.shape[1:])
    dslots = _no_gradient(a)
    if _gathered(a):
        count = _count(a)
        k, v = _gather(a, a.k_BMPWKD, a.slot_k_BSKD), _gather(a, a.v_BMPWKD, a.slot_v_BSKD)
        # A window that sees nothing here is given one key, whose weight this makes 0.
        lse = jnp.where(count > 0, lse, 1e30)
        more, dk_NJKD, dv_NJKD = attend_back(q, k, v, count[:, 0, 0], scale, lse, o, do)
        (halo_dk, slot_dk), (halo_dv, slot_dv) = _ungather(a, dk_NJKD), _ungather(a, dv_NJKD)
        dq = (dq.astype(wide) + more.astype(wide)).astype(dq.dtype)
        dk, dv = (jnp.concatenate([h.astype(x.dtype), x], axis=2) for h, x in ((halo_dk, dk), (halo_dv, dv)))
        dslots = (slot_dk, slot_dv, None)
    return (dq.reshape(a.q_BMWHD.shape), dk, dv), dslots


def _call(
    q_NTHD: jax.Array, count_N: jax.Array | None, scale: float
) -> tuple[Any, tuple[jax.Array, ...], dict[str, Any]]:
    """(cuDNN in jax, its arguments after the bias, its parameters): causal, or the first `count` keys, at least 1."""
    # Private, since the public call rounds the log-sum-exp to the dtype of q and takes none for the gradient.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    none = jnp.zeros(0, q_NTHD.dtype)
    lengths = (none, none)
    if count_N is not None:
        lengths = (jnp.full(count_N.shape, q_NTHD.shape[1], jnp.int32), jnp.maximum(count_N, 1).astype(jnp.int32))
    parameters = {
        "scale": scale,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": cudnn.MaskType.CAUSAL if count_N is None else cudnn.MaskType.PADDING,
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
    return cudnn, (none, *lengths, none, none, none, none), parameters


def attend(q: jax.Array, k: jax.Array, v: jax.Array, count_N: jax.Array | None, scale: float) -> tuple[Any, Any]:
    """(N, T, H, D), (N, J, K, D) twice → (o_NTHD, lse_NHT): causal, or over the first `count` keys."""
    cudnn, more, parameters = _call(q, count_N, scale)
    o, lse = cudnn._dot_product_attention_fwd_p_wrapper.bind(q, k, v, *more, is_training=True, **parameters)
    return o, lse


def attend_back(
    q: jax.Array, k: jax.Array, v: jax.Array, count_N: jax.Array | None, scale: float, lse: Any, o: Any, do: Any
) -> tuple[Any, Any, Any]:
    """→ (dq, dk, dv), for the log-sum-exp and the attention of all parts."""
    cudnn, more, parameters = _call(q, count_N, scale)
    dq, dk, dv = cudnn._dot_product_attention_bwd_p_wrapper.bind(q, k, v, *more, lse, o, do, **parameters)
    return dq, dk, dv
