"""Global conditional attention: exact nearby, one key for each window or word far away, under one softmax."""

import functools
import logging
import os
from types import ModuleType
from typing import Any, Literal

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pixtok_kernels import library, pallas_gpu, pallas_tpu, reference, shapes
from pixtok_kernels.shapes import Arguments

Implementation = Literal["reference", "library", "pallas_tpu", "pallas_gpu"]
BACKENDS: dict[str, ModuleType] = {"library": library, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
"""Each has `refusal`, `forward` and `backward`; the reference has neither, it is differentiated as it stands."""
IMPLEMENTATIONS = ("reference", *BACKENDS)
KEPT = "global_conditional_attention"
"""What a policy of `jax.checkpoint` keeps for the backward pass: the output, and the log-sum-exp of all scores."""
# By the platform that a program is compiled for, which need not be here.
_AUTOMATIC = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}
_log = logging.getLogger("pixtok_kernels")


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

    `halo_count_BM`: None means all P.  What counts and spans say beyond the P halo keys and S slots that there are
    is not heard.  `scale`: None means 1/√D.  Scores and softmax are float32; the result has the dtype of `q`.
    Differentiable, in reverse, in everything but spans and counts; `scale` is a number, not an array.

    `implementation`: None takes `pallas_tpu` where the program is compiled for a TPU, `pallas_gpu` where it is traced
    beside a Hopper GPU, and `library` elsewhere; what the kernel cannot take goes to `library` too, and
    PIXTOK_KERNEL_LOG=1 in the environment says why.

    Raises ValueError when shapes or dtypes do not fit each other, for an unknown name, and when the implementation
    that is named cannot take the call.
    """
    shapes.check(q_BMWHD, k_BMPWKD, v_BMPWKD, slot_k_BSKD, slot_v_BSKD, span_BM2, slot_bias_BS, halo_count_BM)
    P, S = k_BMPWKD.shape[2] - q_BMWHD.shape[2], slot_k_BSKD.shape[1]
    if halo_count_BM is None:
        halo_count_BM = jnp.full(q_BMWHD.shape[:2], P, jnp.int32)
    # Backends find keys by them.
    halo_count_BM = jnp.clip(halo_count_BM.astype(jnp.int32), 0, P)
    span_BM2 = jnp.clip(span_BM2.astype(jnp.int32), 0, S)
    arguments = Arguments(q_BMWHD, k_BMPWKD, v_BMPWKD, slot_k_BSKD, slot_v_BSKD, span_BM2, slot_bias_BS, halo_count_BM)
    factor = q_BMWHD.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "reference":
        return reference.global_conditional_attention(arguments, factor)
    return _attend(arguments, factor, _choose(arguments, factor, implementation))


def _choose(a: Arguments, scale: float, implementation: str | None) -> tuple[tuple[str, str], ...]:
    """(platform, backend) pairs; "default" is any other platform."""
    if implementation is not None:
        if implementation not in BACKENDS:
            raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}; got {implementation}")
        reason = BACKENDS[implementation].refusal(a, scale)
        if reason:
            raise ValueError(f"{implementation} cannot take this call: {reason}")
        return (("default", implementation),)
    chosen = {"default": "library"}
    for platform, backend in _AUTOMATIC.items():
        reason = BACKENDS[backend].refusal(a, scale)
        if backend == "pallas_gpu":  # a platform of many kinds of devices
            reason = pallas_gpu.absence() or reason
        if reason is None:
            chosen[platform] = backend
        if os.environ.get("PIXTOK_KERNEL_LOG") == "1":
            say = (
                f"on {platform}: {backend}"
                if reason is None
                else f"on {platform}: library, since for {backend} {reason}"
            )
            _log.warning("%s: %s", shapes.Case.of(a), say)
    return tuple(chosen.items())


def _by_platform(chosen: tuple[tuple[str, str], ...], pass_: str, *arguments: Any) -> Any:
    """The forward or backward pass of the backend for the platform that the program is being compiled for."""
    choices = {platform: getattr(BACKENDS[name], pass_) for platform, name in chosen}
    if len(choices) == 1:
        return choices["default"](*arguments)
    a, scale, *rest = arguments
    return jax.lax.platform_dependent(
        a, *rest, **{platform: lambda a, *rest, f=f: f(a, scale, *rest) for platform, f in choices.items()}
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attend(a: Arguments, scale: float, chosen: tuple[tuple[str, str], ...]) -> jax.Array:
    return _by_platform(chosen, "forward", a, scale)[0]


def _forward(a: Arguments, scale: float, chosen: tuple[tuple[str, str], ...]) -> tuple[jax.Array, Any]:
    o_BMWHD, lse_BHMW = (checkpoint_name(x, KEPT) for x in _by_platform(chosen, "forward", a, scale))
    return o_BMWHD, (a, o_BMWHD, lse_BHMW)


def _backward(scale: float, chosen: tuple[tuple[str, str], ...], saved: Any, do_BMWHD: jax.Array) -> tuple[Arguments]:
    a, o_BMWHD, lse_BHMW = saved
    dq, dk, dv, dslot_k, dslot_v, dbias = _by_platform(chosen, "backward", a, scale, o_BMWHD, lse_BHMW, do_BMWHD)
    none: Any = None
    return (Arguments(dq, dk, dv, dslot_k, dslot_v, none, dbias, none),)


_attend.defvjp(_forward, _backward)
