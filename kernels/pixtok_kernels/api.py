"""Global conditional attention: exact nearby, one key for each window or word far away, under one softmax."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from pixtok_kernels import library, reference, shapes


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _library(a: shapes.Arguments, scale: float) -> jax.Array:
    return library.forward(a, scale)[0]


def _library_forward(a: shapes.Arguments, scale: float):
    o_BMWHD, lse_BHMW = library.forward(a, scale)
    return o_BMWHD, (a, o_BMWHD, lse_BHMW)


def _library_backward(scale: float, saved, do_BMWHD: jax.Array) -> Any:
    a, o_BMWHD, lse_BHMW = saved
    dq, dk, dv, dslot_k, dslot_v, dbias = library.backward(a, scale, o_BMWHD, lse_BHMW, do_BMWHD)
    none: Any = None
    return (shapes.Arguments(dq, dk, dv, dslot_k, dslot_v, none, dbias, none),)


_library.defvjp(_library_forward, _library_backward)


def _by_library(q, k, v, slot_k, slot_v, span, bias, count, scale):
    if count is None:
        count = jnp.full(q.shape[:2], k.shape[2] - q.shape[2], jnp.int32)
    return _library(shapes.Arguments(q, k, v, slot_k, slot_v, span, bias, count), scale)


Implementation = Literal["reference", "library"]
IMPLEMENTATIONS: dict[Implementation, Callable[..., Any]] = {
    "reference": reference.global_conditional_attention,
    "library": _by_library,
}


def global_conditional_attention(
    q_BMWHD: Float[Array, "B M W H D"],
    k_BMPWKD: Float[Array, "B M P+W K D"],
    v_BMPWKD: Float[Array, "B M P+W K D"],
    slot_k_BSKD: Float[Array, "B S K D"],
    slot_v_BSKD: Float[Array, "B S K D"],
    span_BM2: Int[Array, "B M 2"],
    slot_bias_BS: Float[Array, "B S"] | None = None,
    *,
    halo_count_BM: Int[Array, "B M"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B M W H D"]:
    """What pixel t of window m sees, under one softmax:

        keys(t) = { halo keys p < halo_count_m } ∪ { own window, pixels ≤ t } ∪ { slots a_m ≤ s < z_m }
        o_t     = Σ_j softmax_j(scale · q_t·k_j + b_j) v_j

    The keys of a window are its P halo keys, visible ones first, and then its own W; P is what `k` has more than
    `q`.  (a_m, z_m) is `span_BM2[m]`; an empty span (z ≤ a) sees no slot.  b is `slot_bias_BS` at slots and 0
    elsewhere.  Query head h uses key/value head h // (H / K) (arXiv 2305.13245).  With mean keys and values of
    windows as slots and b = log(count), it equals full causal attention wherever keys are constant within each
    preceding window; with W = 1 and no halo, it is causal attention over slots and oneself.

    Work for each head: M·W·(W/2 + P + S̄) score pairs, S̄ the mean length of a span, instead of (M·W)²/2.

    `halo_count_BM`: None means all P.  `scale`: None means 1/√D.  Scores and softmax are float32; the result has
    the dtype of `q`.  `implementation`: None picks the fastest known.  Differentiable in everything but
    spans and counts.  Raises ValueError when shapes or dtypes do not fit each other, or for an unknown name.
    """
    shapes.check(q_BMWHD, k_BMPWKD, v_BMPWKD, slot_k_BSKD, slot_v_BSKD, span_BM2, slot_bias_BS, halo_count_BM)
    if implementation is None:
        implementation = "reference"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}; got {implementation}")
    return IMPLEMENTATIONS[implementation](
        q_BMWHD,
        k_BMPWKD,
        v_BMPWKD,
        slot_k_BSKD,
        slot_v_BSKD,
        span_BM2,
        slot_bias_BS,
        halo_count_BM,
        q_BMWHD.shape[-1] ** -0.5 if scale is None else scale,
    )
