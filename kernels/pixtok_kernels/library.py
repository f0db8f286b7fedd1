"""XLA's products, a few windows at a time."""

import functools
from typing import Any, NamedTuple

import jax
from einops import rearrange
from jax import numpy as jnp

from pixtok_kernels.shapes import Arguments

SCORES = 2**19
BLOCK = 128


class _Windows(NamedTuple):
    q_RCWHD: jax.Array
    k_RCNKD: jax.Array
    v_RCNKD: jax.Array
    span_RC2: jax.Array
    count_RC: jax.Array


class _Slots(NamedTuple):
    k_RSKD: jax.Array
    v_RSKD: jax.Array
    bias_RS: jax.Array | None


def _by_key_head(x_RCWHD, K):
    return rearrange(x_RCWHD.astype(jnp.float32), "R C W (K G) D -> R K C (G W) D", K=K)


def _near_scores(q_RKCXD, windows):
    W, N = windows.q_RCWHD.shape[2], windows.k_RCNKD.shape[2]
    P = N - W
    score = jnp.einsum("RKCXD, RCNKD -> RKCXN", q_RKCXD, windows.k_RCNKD.astype(jnp.float32))
    pixel_W1, key_1N = jnp.arange(W)[:, None], jnp.arange(N)[None]
    see_WN = (key_1N >= P) & (key_1N - P <= pixel_W1)
    see = see_WN
    if P:
        see = see_WN | ((key_1N < P) & (key_1N < windows.count_RC[:, :, None, None]))
        see = see[:, None, :, None]
    shape = score.shape
    score = score.reshape(*shape[:3], -1, W, N)
    return jnp.where(see, score, -jnp.inf).reshape(shape)


def _far_scores(q_RKYD, windows, slots, start, first):
    """Scores of slots start … start + BLOCK, those before `first` hidden."""
    k, v, bias = slots
    C = windows.span_RC2.shape[1]
    score = jnp.einsum("RKYD, RSKD -> RKYS", q_RKYD, k)
    if bias is not None:
        score += bias[:, None, None]
    slot_S = start + jnp.arange(k.shape[1])
    see_RCS = (jnp.maximum(windows.span_RC2[..., :1], first) <= slot_S) & (slot_S < windows.span_RC2[..., 1:])
    shape = score.shape
    score = score.reshape(*shape[:2], C, -1, shape[-1])
    return jnp.where(see_RCS[:, None, :, None], score, -jnp.inf).reshape(shape)


def _block(slots, start, size):
    def cut(x):
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1).astype(jnp.float32)

    return _Slots(cut(slots.k_RSKD), cut(slots.v_RSKD), None if slots.bias_RS is None else cut(slots.bias_RS))


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


def _forward(scale, windows, slots):
    K = windows.k_RCNKD.shape[3]
    R, C, W, H, D = windows.q_RCWHD.shape
    q = _by_key_head(windows.q_RCWHD, K) * scale
    score = _near_scores(q, windows)
    top = score.max(-1, keepdims=True)
    weight = jnp.exp(score - top)
    total = weight.sum(-1, keepdims=True)
    o = jnp.einsum("RKCXN, RCNKD -> RKCXD", weight, windows.v_RCNKD.astype(jnp.float32))
    flat = lambda x: x.reshape(*x.shape[:2], -1, x.shape[-1])
    q, top, total, o = (flat(x) for x in (q, top, total, o))

    def step(start, first, size, carry):
        o, top, total = carry
        block = _block(slots, start, size)
        score = _far_scores(q, windows, block, start, first)
        higher = jnp.maximum(top, score.max(-1, keepdims=True))
        weight, keep = jnp.exp(score - higher), jnp.exp(top - higher)
        o = o * keep + jnp.einsum("RKYS, RSKD -> RKYD", weight, block.v_RSKD)
        return o, higher, total * keep + weight.sum(-1, keepdims=True)

    o, top, total = _over_blocks(windows.span_RC2, slots.k_RSKD.shape[1], step, (o, top, total))
    o = rearrange((o / total).astype(windows.q_RCWHD.dtype), "R K (C G W) D -> R C W (K G) D", C=C, W=W)
    lse = rearrange(top + jnp.log(total), "R K (C G W) 1 -> R (K G) C W", C=C, W=W)
    return o, lse


def _backward(scale, windows, o_RCWHD, lse_RHCW, do_RCWHD, slots, dslots):
    K = windows.k_RCNKD.shape[3]
    R, C, W, H, D = windows.q_RCWHD.shape
    f = jnp.float32
    q = _by_key_head(windows.q_RCWHD, K) * scale
    do = _by_key_head(do_RCWHD, K)
    delta = (do * _by_key_head(o_RCWHD, K)).sum(-1, keepdims=True)
    lse = rearrange(lse_RHCW, "R (K G) C W -> R K C (G W) 1", K=K)
    k, v = windows.k_RCNKD.astype(f), windows.v_RCNKD.astype(f)
    weight = jnp.exp(_near_scores(q, windows) - lse)
    dscore = weight * (jnp.einsum("RKCXD, RCNKD -> RKCXN", do, v) - delta)
    dv = jnp.einsum("RKCXN, RKCXD -> RCNKD", weight, do)
    dk = jnp.einsum("RKCXN, RKCXD -> RCNKD", dscore, q)
    dq = jnp.einsum("RKCXN, RCNKD -> RKCXD", dscore, k)
    flat = lambda x: x.reshape(*x.shape[:2], -1, x.shape[-1])
    q, do, delta, lse, dq = (flat(x) for x in (q, do, delta, lse, dq))

    def step(start, first, size, carry):
        dq, dslots = carry
        block = _block(slots, start, size)
        weight = jnp.exp(_far_scores(q, windows, block, start, first) - lse)
        dscore = weight * (jnp.einsum("RKYD, RSKD -> RKYS", do, block.v_RSKD) - delta)
        dblock = _Slots(
            jnp.einsum("RKYS, RKYD -> RSKD", dscore, q),
            jnp.einsum("RKYS, RKYD -> RSKD", weight, do),
            None if slots.bias_RS is None else dscore.sum((1, 2)),
        )

        def add(into, x):
            old = jax.lax.dynamic_slice_in_dim(into, start, size, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(into, old + x, start, axis=1)

        return dq + jnp.einsum("RKYS, RSKD -> RKYD", dscore, block.k_RSKD), jax.tree.map(add, dslots, dblock)

    dq, dslots = _over_blocks(windows.span_RC2, slots.k_RSKD.shape[1], step, (dq, dslots))
    dq = rearrange(dq * scale, "R K (C G W) D -> R C W (K G) D", C=C, W=W)
    dtype = windows.q_RCWHD.dtype
    return (dq.astype(dtype), dk.astype(dtype), dv.astype(dtype)), dslots


def _sizes(a, scores):
    """(rows, windows) of a chunk."""
    B, M, W, H, _ = a.q_BMWHD.shape
    keys = a.k_BMPWKD.shape[2] + min(a.slot_k_BSKD.shape[1], BLOCK)
    windows = max(1, scores // (H * W * keys))
    if windows < M:
        C = next((c for c in range(windows, windows // 2, -1) if M % c == 0), windows)
        return 1, C
    return max(r for r in range(1, B + 1) if B % r == 0 and r * M <= windows), M


def _split(a, R, C, extra=()):
    B, M = a.span_BM2.shape[:2]
    n = -(-M // C)

    def cut(x):
        if n * C > M:
            x = jnp.pad(x, ((0, 0), (0, n * C - M)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(-1, R, C, *x.shape[2:])

    return [cut(x) for x in (a.q_BMWHD, a.k_BMPWKD, a.v_BMPWKD, a.span_BM2, a.halo_count_BM, *extra)], n


def forward(a: Arguments, scale: float, scores=None):
    B, M, W, H, D = a.q_BMWHD.shape
    R, C = _sizes(a, scores or SCORES)
    parts, n = _split(a, R, C)
    slots = _Slots(a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS)
    if R == B and C == M:
        o, lse = _forward(scale, _Windows(*(x[0] for x in parts)), slots)
        return o, lse
    slots = jax.tree.map(lambda x: x.reshape(-1, R, *x.shape[1:]), slots)

    def step(i_parts):
        i, parts = i_parts
        return _forward(scale, _Windows(*parts), jax.tree.map(lambda x: x[i // n], slots))

    o, lse = jax.lax.map(step, (jnp.arange(parts[0].shape[0]), parts))
    o = o.reshape(B, n * C, W, H, D)[:, :M]
    lse = rearrange(lse, "(B n) R H C W -> (B R) H (n C) W", n=n)[:, :, :M]
    return o, lse


def backward(a: Arguments, scale: float, o, lse, do, scores=None):
    B, M, W, H, D = a.q_BMWHD.shape
    R, C = _sizes(a, scores or SCORES)
    parts, n = _split(a, R, C, (o, do))
    slots = _Slots(a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), slots)
    if R == B and C == M:
        *w, o, do = (x[0] for x in parts)
        (dq, dk, dv), dslots = _backward(scale, _Windows(*w), o, lse, do, slots, zeros)
    else:
        lse = jnp.pad(lse, ((0, 0), (0, 0), (0, n * C - M), (0, 0)))
        lse = rearrange(lse, "(B R) H (n C) W -> (B n) R H C W", n=n, R=R)
        slots = jax.tree.map(lambda x: x.reshape(-1, R, *x.shape[1:]), slots)
        zeros = jax.tree.map(lambda x: x.reshape(-1, R, *x.shape[1:]), zeros)

        def step(dslots, part):
            i, parts, lse = part
            *w, o, do = parts
            at = lambda x: x[i // n]
            d, new = _backward(scale, _Windows(*w), o, lse, do, jax.tree.map(at, slots), jax.tree.map(at, dslots))
            return jax.tree.map(lambda x, y: x.at[i // n].set(y), dslots, new), d

        dslots, d = jax.lax.scan(step, zeros, (jnp.arange(parts[0].shape[0]), parts, lse))
        dq, dk, dv = (x.reshape(B, n * C, *x.shape[3:])[:, :M] for x in d)
        dslots = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), dslots)
    dslots = jax.tree.map(lambda x, y: x.astype(y.dtype), dslots, _Slots(a.slot_k_BSKD, a.slot_v_BSKD, a.slot_bias_BS))
    return dq, dk, dv, *dslots
