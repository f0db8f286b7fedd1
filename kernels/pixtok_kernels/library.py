"""XLA's products, a few windows at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from einops import rearrange
from jax import numpy as jnp

from pixtok_kernels.shapes import Arguments

SCORES = 2**19
BLOCK = 128
ROWS = 64


class _Sizes(NamedTuple):
    """What is worked on at once."""

    rows: int
    windows: int
    steps: int


def _product(equation: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _near_scores(q_RKCXD, k_RCNKD, count_RC, first, P, G):
    """Scores of the query rows from `first` (pixel · G) on."""
    X, N = q_RKCXD.shape[3], k_RCNKD.shape[2]
    score_RKCXN = _product("RKCXD, RCNKD -> RKCXN", q_RKCXD, k_RCNKD)
    key_1N, pixel_X1 = jnp.arange(N)[None], first + jnp.arange(X)[:, None] // G
    see_XN = (key_1N >= P) & (key_1N - P <= pixel_X1)
    if P:
        see_XN = see_XN | ((key_1N < P) & (key_1N < count_RC[:, None, :, None, None]))
    return jnp.where(see_XN, score_RKCXN, -jnp.inf)


def _far_scores(q_RKYD, k_RSKD, bias_RS, span_RC2, start, first):
    C = span_RC2.shape[1]
    score = _product("RKYD, RSKD -> RKYS", q_RKYD, k_RSKD)
    if bias_RS is not None:
        score += bias_RS[:, None, None]
    slot_S = start + jnp.arange(k_RSKD.shape[1])
    see_RCS = (jnp.maximum(span_RC2[..., :1], first) <= slot_S) & (slot_S < span_RC2[..., 1:])
    shape = score.shape
    score = score.reshape(*shape[:2], C, -1, shape[-1])
    return jnp.where(see_RCS[:, None, :, None], score, -jnp.inf).reshape(shape)


def _over_blocks(span_RC2, S, step, carry):
    if S == 0:
        return carry
    if S <= BLOCK:
        return step(0, 0, S, carry)
    begin, end = span_RC2[..., 0], span_RC2[..., 1]
    some = begin < end
    low = jnp.min(jnp.where(some, begin, S)) // BLOCK
    high = (jnp.max(jnp.where(some, end, 0)) + BLOCK - 1) // BLOCK

    def body(j, carry):
        return step(jnp.minimum(j * BLOCK, S - BLOCK), j * BLOCK, BLOCK, carry)

    return jax.lax.fori_loop(low, high, body, carry)


def _flat(x_RKCXD):
    return x_RKCXD.reshape(*x_RKCXD.shape[:2], -1, x_RKCXD.shape[-1])


def _blocks_of_rows(a):
    W, N = a.q_BMWHD.shape[2], a.k_BMPWKD.shape[2]
    G = a.q_BMWHD.shape[3] // a.k_BMPWKD.shape[3]
    for begin in range(0, W, ROWS):
        end = min(begin + ROWS, W)
        yield begin, slice(begin * G, end * G), slice(0, N - W + end)


def _forward(a: Arguments, scale: float):
    """Of a few windows: `a` holds their rows' slots too."""
    R, C, W, H, D = a.q_BMWHD.shape
    K = a.k_BMPWKD.shape[3]
    P, G, wide = a.k_BMPWKD.shape[2] - W, H // K, jnp.float32
    q = rearrange(a.q_BMWHD.astype(wide), "R C W (K G) D -> R K C (W G) D", K=K) * scale
    k, v = a.k_BMPWKD.astype(wide), a.v_BMPWKD.astype(wide)
    parts = []
    for begin, rows, keys in _blocks_of_rows(a):
        score = _near_scores(q[:, :, :, rows], k[:, :, keys], a.halo_count_BM, begin, P, G)
        top = score.max(-1, keepdims=True)
        weight = jnp.exp(score - top)
        parts.append((_product("RKCXN, RCNKD -> RKCXD", weight, v[:, :, keys]), top, weight.sum(-1, keepdims=True)))
    o, top, total = (_flat(jnp.concatenate(x, 3)) for x in zip(*parts, strict=True))
    q = _flat(q)

    def step(start, first, size, carry):
        o, top, total = carry
        k, v, bias = (_cut(x, (0, start), (R, size)) for x in (a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS))
        k, v = k.astype(wide), v.astype(wide)
        score = _far_scores(q, k, bias, a.span_BM2, start, first)
        higher = jnp.maximum(top, score.max(-1, keepdims=True))
        weight, keep = jnp.exp(score - higher), jnp.exp(top - higher)
        o = o * keep + _product("RKYS, RSKD -> RKYD", weight, v)
        return o, higher, total * keep + weight.sum(-1, keepdims=True)

    o, top, total = _over_blocks(a.span_BM2, a.slot_k_BSKD.shape[1], step, (o, top, total))
    o = rearrange((o / total).astype(a.q_BMWHD.dtype), "R K (C W G) D -> R C W (K G) D", C=C, W=W)
    lse = rearrange(top + jnp.log(total), "R K (C W G) 1 -> R (K G) C W", C=C, W=W)
    return o, lse


def _backward(a: Arguments, scale: float, o_RCWHD, lse_RHCW, do_RCWHD, dslots):
    R, C, W, H, D = a.q_BMWHD.shape
    K = a.k_BMPWKD.shape[3]
    P, G, wide = a.k_BMPWKD.shape[2] - W, H // K, jnp.float32
    q, o, do = (
        rearrange(x.astype(wide), "R C W (K G) D -> R K C (W G) D", K=K) for x in (a.q_BMWHD, o_RCWHD, do_RCWHD)
    )
    q *= scale
    delta = _product("RKCXD, RKCXD -> RKCX", do, o)[..., None]
    lse = rearrange(lse_RHCW, "R (K G) C W -> R K C (W G) 1", K=K)
    k, v = a.k_BMPWKD.astype(wide), a.v_BMPWKD.astype(wide)
    dk = dv = jnp.zeros(k.shape, wide)
    dqs = []
    for begin, rows, keys in _blocks_of_rows(a):
        score = _near_scores(q[:, :, :, rows], k[:, :, keys], a.halo_count_BM, begin, P, G)
        weight = jnp.exp(score - lse[:, :, :, rows])
        dweight = _product("RKCXD, RCNKD -> RKCXN", do[:, :, :, rows], v[:, :, keys])
        dscore = weight * (dweight - delta[:, :, :, rows])
        dv = dv.at[:, :, keys].add(_product("RKCXN, RKCXD -> RCNKD", weight, do[:, :, :, rows]))
        dk = dk.at[:, :, keys].add(_product("RKCXN, RKCXD -> RCNKD", dscore, q[:, :, :, rows]))
        dqs.append(_product("RKCXN, RCNKD -> RKCXD", dscore, k[:, :, keys]))
    q, do, delta, lse, dq = (_flat(x) for x in (q, do, delta, lse, jnp.concatenate(dqs, 3)))

    def step(start, first, size, carry):
        dq, dslots = carry
        k, v, bias = (_cut(x, (0, start), (R, size)) for x in (a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS))
        k, v = k.astype(wide), v.astype(wide)
        weight = jnp.exp(_far_scores(q, k, bias, a.span_BM2, start, first) - lse)
        dscore = weight * (_product("RKYD, RSKD -> RKYS", do, v) - delta)
        dblock = (
            _product("RKYS, RKYD -> RSKD", dscore, q),
            _product("RKYS, RKYD -> RSKD", weight, do),
            None if bias is None else dscore.sum((1, 2)),
        )

        def add(into, x):
            return _put(into, _cut(into, (0, start), x.shape[:2]) + x, (0, start))

        return dq + _product("RKYS, RSKD -> RKYD", dscore, k), jax.tree.map(add, dslots, dblock)

    dq, dslots = _over_blocks(a.span_BM2, a.slot_k_BSKD.shape[1], step, (dq, dslots))
    dq = rearrange(dq * scale, "R K (C W G) D -> R C W (K G) D", C=C, W=W)
    return tuple(x.astype(a.q_BMWHD.dtype) for x in (dq, dk, dv)), dslots


def _cut(x, at, size):
    """x from the indices `at` of its first axes on."""
    if x is None:
        return None
    more = x.ndim - len(at)
    return jax.lax.dynamic_slice(x, (*at, *(0,) * more), (*size, *x.shape[len(at) :]))


def _put(into, x, at):
    return jax.lax.dynamic_update_slice(into, x, (*at, *(0,) * (into.ndim - len(at))))


def _sizes(a, scores):
    """(rows, windows) of a chunk."""
    B, M, W, H, _ = a.q_BMWHD.shape
    keys = a.k_BMPWKD.shape[2] + min(a.slot_k_BSKD.shape[1], BLOCK)
    windows = max(1, scores // (H * W * keys))
    if windows < M:
        C = next((c for c in range(windows, windows // 2, -1) if M % c == 0), windows)
        return 1, C
    return max(r for r in range(1, B + 1) if B % r == 0 and r * M <= windows), M


def _pad(x, extra):
    return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2)) if extra else x


def _take(a, i, n, R, C):
    """Chunk number i."""
    row, window = i // n * R, i % n * C
    return Arguments(
        *(_cut(x, (row, window), (R, C)) for x in (a.q_BMWHD, a.k_BMPWKD, a.v_BMPWKD)),
        *(_cut(x, (row,), (R,)) for x in (a.slot_k_BSKD, a.slot_v_BSKD)),
        _cut(a.span_BM2, (row, window), (R, C)),
        _cut(a.slot_bias_BS, (row,), (R,)),
        _cut(a.halo_count_BM, (row, window), (R, C)),
    )


def _padded(a, extra):
    return a._replace(
        q_BMWHD=_pad(a.q_BMWHD, extra),
        k_BMPWKD=_pad(a.k_BMPWKD, extra),
        v_BMPWKD=_pad(a.v_BMPWKD, extra),
        span_BM2=_pad(a.span_BM2, extra),
        halo_count_BM=_pad(a.halo_count_BM, extra),
    )


def forward(a: Arguments, scale: float, scores=None):
    B, M, W, H, D = a.q_BMWHD.shape
    R, C = _sizes(a, scores or SCORES)
    if R == B and C == M:
        return _forward(a, scale)
    n = -(-M // C)
    a = _padded(a, n * C - M)
    o, lse = jax.lax.map(lambda i: _forward(_take(a, i, n, R, C), scale), jnp.arange(B // R * n))
    o = o.reshape(B, n * C, W, H, D)[:, :M]
    lse = rearrange(lse, "(B n) R H C W -> (B R) H (n C) W", n=n)[:, :, :M]
    return o, lse


def backward(a: Arguments, scale: float, o, lse, do, scores=None):
    B, M, W, H, D = a.q_BMWHD.shape
    R, C = _sizes(a, scores or SCORES)
    slots = a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), slots)
    if R == B and C == M:
        (dq, dk, dv), dslots = _backward(a, scale, o, lse, do, zeros)
    else:
        n = -(-M // C)
        extra = n * C - M
        a, o, do = _padded(a, extra), _pad(o, extra), _pad(do, extra)
        lse = jnp.pad(lse, ((0, 0), (0, 0), (0, extra), (0, 0)))

        def step(dslots, i):
            row, window = i // n * R, i % n * C
            part = (_cut(x, (row, window), (R, C)) for x in (o, do))
            o_i, do_i = part
            lse_i = _cut(lse, (row, 0, window), (R, H, C))
            here = jax.tree.map(lambda x: _cut(x, (row,), (R,)), dslots)
            d, here = _backward(_take(a, i, n, R, C), scale, o_i, lse_i, do_i, here)
            return jax.tree.map(lambda x, y: _put(x, y, (row,)), dslots, here), d

        dslots, d = jax.lax.scan(step, zeros, jnp.arange(B // R * n))
        dq, dk, dv = (x.reshape(B, n * C, *x.shape[3:])[:, :M] for x in d)
    dslots = jax.tree.map(lambda x, y: x.astype(y.dtype), dslots, slots)
    return dq, dk, dv, *dslots
