"""Three calls of `jax.nn.dot_product_attention`, merged by their log-sum-exp."""

from typing import Any, NamedTuple

import jax
from einops import rearrange
from jax import numpy as jnp


class _Keys(NamedTuple):
    """Which keys a call sees, beside its arrays."""

    causal: bool
    scale: float


def _call(keys: _Keys, q: jax.Array, k: jax.Array, v: jax.Array, see: dict[str, Any], residual: bool = False) -> Any:
    call: Any = jax.nn.dot_product_attention  # its overloads know literals alone
    return call(
        q,
        k,
        v,
        is_causal=keys.causal,
        scale=keys.scale,
        implementation="xla",
        return_residual=residual,
        **see,
    )


def _attend_plain(
    keys: _Keys, q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, see: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """→ (attention, log-sum-exp of its scores (B, T, H)).

    The library gives the latter without a gradient.  With weights p and cotangent c of the log-sum-exp,
    d/dq_t = scale Σ_j c_t p_tj k_j is attention with the keys as values, and d/dk_j = scale Σ_t p_tj c_t q_t is what
    attention hands back to values for the cotangent c·q.
    """
    return _call(keys, q_BTHD, k_BSKD, v_BSKD, see, residual=True)


_attend: Any = jax.custom_vjp(_attend_plain, nondiff_argnums=(0,))


def _forward(keys, q, k, v, see):
    return _attend(keys, q, k, v, see), (q, k, v, see)


def _backward(keys, saved, cotangents):
    q, k, v, see = saved
    do, dlse = cotangents
    _, back = jax.vjp(lambda q, k, v: _call(keys, q, k, v, see), q, k, v)
    dq, dk, dv = back(do)
    dlse = keys.scale * dlse[..., None].astype(q.dtype)
    _, to_values = jax.vjp(lambda v: _call(keys, q, k, v, see), k)
    dq += dlse * _call(keys, q, k, k, see)
    dk += to_values(dlse * q)[0]
    return dq, dk, dv, None


_attend.defvjp(_forward, _backward)


def global_conditional_attention(
    q_BMWHD: jax.Array,
    k_BMPWKD: jax.Array,
    v_BMPWKD: jax.Array,
    slot_k_BSKD: jax.Array,
    slot_v_BSKD: jax.Array,
    span_BM2: jax.Array,
    slot_bias_BS: jax.Array | None,
    halo_count_BM: jax.Array | None,
    scale: float,
) -> jax.Array:
    """See `pixtok_kernels.api`.  XLA's calls, in float32.

    cuDNN's are not used: through `jax.nn` their log-sum-exp comes back rounded to the dtype of q, by which parts are
    then weighed wrongly (2⁻⁹ of it in bfloat16), and their gradients want an even number of slots.
    """
    B, M, W, _, D = q_BMWHD.shape
    halo, S = k_BMPWKD.shape[2] - W, slot_k_BSKD.shape[1]
    dtype, wide = q_BMWHD.dtype, jnp.float32
    q, k, v, slot_k, slot_v = (a.astype(wide) for a in (q_BMWHD, k_BMPWKD, v_BMPWKD, slot_k_BSKD, slot_v_BSKD))

    def by_window(array: jax.Array) -> jax.Array:
        return rearrange(array, "B M W H D -> (B M) W H D")

    q_NWHD, k_NPWKD, v_NPWKD = by_window(q), by_window(k), by_window(v)
    keys = _Keys(False, scale)
    parts = [_attend(keys._replace(causal=True), q_NWHD, k_NPWKD[:, halo:], v_NPWKD[:, halo:], {})]
    if halo:
        count_BM = jnp.full((B, M), halo, jnp.int32) if halo_count_BM is None else halo_count_BM
        see = {"mask": (jnp.arange(halo)[None] < count_BM.reshape(-1, 1))[:, None, None]}
        parts.append(_attend(keys, q_NWHD, k_NPWKD[:, :halo], v_NPWKD[:, :halo], see))
    if S:
        slot_S = jnp.arange(S)[None, None]
        visible_BMS = (span_BM2[:, :, :1] <= slot_S) & (slot_S < span_BM2[:, :, 1:])
        visible_B1TS = jnp.broadcast_to(visible_BMS[:, :, None], (B, M, W, S)).reshape(B, 1, M * W, S)
        q_BTHD = rearrange(q, "B M W H D -> B (M W) H D")
        if slot_bias_BS is not None:  # as one more feature of the keys, so that its gradient comes with theirs
            one = jnp.full((*q_BTHD.shape[:-1], 1), 1 / scale, wide)
            q_BTHD = jnp.concatenate([q_BTHD, one], axis=-1)
            bias_BSK1 = jnp.broadcast_to(slot_bias_BS.astype(wide)[:, :, None, None], (*slot_k.shape[:-1], 1))
            slot_k = jnp.concatenate([slot_k, bias_BSK1], axis=-1)
            slot_v = jnp.concatenate([slot_v, jnp.zeros_like(bias_BSK1)], axis=-1)
        o_BTHD, lse_BTH = _attend(keys, q_BTHD, slot_k, slot_v, {"mask": visible_B1TS})
        o_NWHD = rearrange(o_BTHD[..., :D], "B (M W) H D -> (B M) W H D", M=M)
        parts.append((o_NWHD, rearrange(lse_BTH, "B (M W) H -> (B M) W H", M=M)))
    # Where a part sees nothing its log-sum-exp is that of masked scores, hugely negative: weight 0.
    lse_GNWH = jnp.stack([lse.astype(jnp.float32) for _, lse in parts])
    weight_GNWH = jax.nn.softmax(lse_GNWH, axis=0)[..., None]
    merged_NWHD = sum(weight * o.astype(jnp.float32) for weight, (o, _) in zip(weight_GNWH, parts, strict=True))
    return rearrange(jnp.asarray(merged_NWHD), "(B M) W H D -> B M W H D", B=B).astype(dtype)
