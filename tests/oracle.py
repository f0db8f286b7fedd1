"""Conditional attention in float64, for all tests of kernels: the definition, one window and head at a time."""

import jax
import numpy as np
from jax import numpy as jnp

from pixtok_kernels.shapes import Arguments, Case

GRADIENTS = "dq dk dv dslot_k dslot_v dslot_bias".split()


def exact(a: Arguments, scale: float, do=None):
    """→ (o, lse_BHMW, gradients of q, k, v, slot_k, slot_v and slot_bias): softmax and its Jacobian over every key.

    `do` is zero when not given, and so are the gradients then.  The last gradient is None where there is no bias.
    """
    q, k, v, slot_k, slot_v = (np.asarray(x, np.float64) for x in a[:5])
    B, M, W, H, _ = q.shape
    halo, group, S = k.shape[2] - W, H // k.shape[3], slot_k.shape[1]
    bias = np.zeros((B, S)) if a.slot_bias_BS is None else np.asarray(a.slot_bias_BS, np.float64)
    do = np.zeros(q.shape) if do is None else np.asarray(do, np.float64)
    o, lse = np.zeros(q.shape), np.zeros((B, H, M, W))
    dq, dk, dv, dslot_k, dslot_v, dbias = (np.zeros_like(x) for x in (q, k, v, slot_k, slot_v, bias))
    near, slot = np.arange(halo + W), np.arange(S)
    own = (near >= halo) & (near - halo <= np.arange(W)[:, None])
    for b, m, h in np.ndindex(B, M, H):
        (first, last), count, g = np.asarray(a.span_BM2[b, m]), int(a.halo_count_BM[b, m]), h // group
        far = np.broadcast_to((first <= slot) & (slot < last), (W, S))
        sees = np.concatenate([own | ((near < halo) & (near < count)), far], 1)
        keys = np.concatenate([k[b, m, :, g], slot_k[b, :, g]])
        values = np.concatenate([v[b, m, :, g], slot_v[b, :, g]])
        score = np.where(sees, scale * q[b, m, :, h] @ keys.T + np.r_[np.zeros(halo + W), bias[b]], -np.inf)
        top = score.max(1, keepdims=True)
        weight = np.exp(score - top)
        lse[b, h, m] = np.log(weight.sum(1)) + top[:, 0]
        weight /= weight.sum(1, keepdims=True)
        o[b, m, :, h] = weight @ values
        dweight = do[b, m, :, h] @ values.T
        dscore = weight * (dweight - (weight * dweight).sum(1, keepdims=True))
        dq[b, m, :, h] = scale * dscore @ keys
        dkeys, dvalues = scale * dscore.T @ q[b, m, :, h], weight.T @ do[b, m, :, h]
        dk[b, m, :, g] += dkeys[: halo + W]
        dv[b, m, :, g] += dvalues[: halo + W]
        dslot_k[b, :, g] += dkeys[halo + W :]
        dslot_v[b, :, g] += dvalues[halo + W :]
        dbias[b] += dscore.sum(0)[halo + W :]
    return o, lse, (dq, dk, dv, dslot_k, dslot_v, None if a.slot_bias_BS is None else dbias)


def close(got, expected, dtype, name):
    """Within the roundings of `dtype`, or of 2e-5 where that is float32, of the root mean square.

    In 16 bits, weights and results are rounded, each by at most half a unit in the last place, u: errors of
    independent roundings stay below 2 u of the root mean square, and below 8 u of the largest value at any place.
    """
    unit = 1e-5 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps) / 2
    error = np.asarray(got, np.float64) - expected
    assert got.shape == expected.shape
    assert np.sqrt((error**2).sum()) <= 2 * unit * np.sqrt((expected**2).sum()), name
    assert np.abs(error).max(initial=0) <= 8 * unit * np.abs(expected).max(initial=0), name


def abstract(case: Case, dtype, sharding=None) -> Arguments:
    """The shapes of a call with a bias, to compile for."""
    B, M, W, P, S, H, K, D = case

    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    near, far = array(B, M, P + W, K, D), array(B, S, K, D)
    span, count = array(B, M, 2, dtype=jnp.int32), array(B, M, dtype=jnp.int32)
    return Arguments(array(B, M, W, H, D), near, near, far, far, span, array(B, S, dtype=jnp.float32), count)
