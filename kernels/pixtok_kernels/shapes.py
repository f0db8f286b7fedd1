"""Shapes of the operation: its arguments and their check, and the cases that tests, benchmark and tuner share."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp


class Arguments(NamedTuple):
    """Arguments of one call, checked; an absent halo count has become P everywhere."""

    q_BMWHD: jax.Array
    k_BMPWKD: jax.Array
    v_BMPWKD: jax.Array
    slot_k_BSKD: jax.Array
    slot_v_BSKD: jax.Array
    span_BM2: jax.Array
    slot_bias_BS: jax.Array | None
    halo_count_BM: jax.Array


class Case(NamedTuple):
    """Sizes of one call."""

    B: int
    M: int
    W: int
    P: int
    S: int
    H: int
    K: int
    D: int

    @classmethod
    def of(cls, a: Arguments) -> "Case":
        """Of a call's arguments."""
        B, M, W, H, D = a.q_BMWHD.shape
        near, K = a.k_BMPWKD.shape[2:4]
        return cls(B, M, W, near - W, a.slot_k_BSKD.shape[1], H, K, D)


CASES = {
    "plain": Case(B=2, M=3, W=4, P=0, S=5, H=2, K=2, D=4),
    "halo": Case(B=2, M=3, W=4, P=3, S=5, H=2, K=2, D=8),
    "grouped": Case(B=1, M=4, W=5, P=2, S=7, H=6, K=2, D=4),
    "pixel": Case(B=2, M=6, W=1, P=0, S=6, H=2, K=1, D=4),
    "one-window": Case(B=1, M=1, W=16, P=0, S=2, H=4, K=1, D=8),
}
"""Small ones, which together reach every branch."""

_WINDOWS = (4, 16, 64, 196, 392, 784)
BENCH = [Case(B=1, M=M, W=256, P=P, S=M, H=12, K=6, D=64) for M in _WINDOWS for P in (0, 35)]
"""Images of 1,024 to 200,704 pixels in windows of 16 × 16, one slot for each; a halo of one pixel is 35 keys."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _normal(shapes: tuple[tuple[int, ...], ...], dtype: Any, seed: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


def draw(case: Case, dtype: Any, ragged: bool, seed: int = 0) -> Arguments:
    """Normal arrays.

    Ragged: any spans, a third of them empty, any halo counts, and a bias.  Else as for one image: windows see their
    whole halo and the slots of the windows before, and there is no bias.
    """
    B, M, W, P, S, H, K, D = case
    shapes = [(B, M, W, H, D), (B, M, P + W, K, D), (B, M, P + W, K, D), (B, S, K, D), (B, S, K, D)]
    q, k, v, slot_k, slot_v = _normal(tuple(shapes), dtype, seed)
    if not ragged:
        span_M2 = np.stack([np.zeros(M), np.minimum(np.arange(M), S)], -1).astype(np.int32)
        return Arguments(
            q, k, v, slot_k, slot_v, jnp.asarray(np.tile(span_M2, (B, 1, 1))), None, jnp.full((B, M), P, jnp.int32)
        )
    rng = np.random.default_rng(seed)
    start = rng.integers(0, S + 1, size=(B, M))
    end = np.where(rng.random((B, M)) < 0.3, start, rng.integers(start, S + 1))
    span_BM2, count_BM = np.stack([start, end], -1), rng.integers(0, P + 1, size=(B, M))
    bias_BS = rng.normal(size=(B, S)).astype(np.float32)
    return Arguments(
        q,
        k,
        v,
        slot_k,
        slot_v,
        jnp.asarray(span_BM2, jnp.int32),
        jnp.asarray(bias_BS),
        jnp.asarray(count_BM, jnp.int32),
    )


def check(
    q_BMWHD: Any,
    k_BMPWKD: Any,
    v_BMPWKD: Any,
    slot_k_BSKD: Any,
    slot_v_BSKD: Any,
    span_BM2: Any,
    slot_bias_BS: Any,
    halo_count_BM: Any,
) -> None:
    """Raises ValueError, with what was wanted and what came, when the arguments do not fit each other."""
    if q_BMWHD.ndim != 5 or k_BMPWKD.ndim != 5 or slot_k_BSKD.ndim != 4:
        raise ValueError(
            f"q, k and slot_k must have the axes BMWHD, BMPWKD and BSKD; got shapes {q_BMWHD.shape}, "
            f"{k_BMPWKD.shape} and {slot_k_BSKD.shape}"
        )
    B, M, W, H, D = q_BMWHD.shape
    keys, K = k_BMPWKD.shape[2:4]
    S = slot_k_BSKD.shape[1]
    if keys < W:
        raise ValueError(f"k must hold at least the {W} keys of the window itself; got {keys}")
    if K < 1 or H % K:
        raise ValueError(f"the number of query heads must be a multiple of that of key heads; got {H} and {K}")
    for name, array, wanted in (
        ("k", k_BMPWKD, (B, M, keys, K, D)),
        ("v", v_BMPWKD, (B, M, keys, K, D)),
        ("slot_k", slot_k_BSKD, (B, S, K, D)),
        ("slot_v", slot_v_BSKD, (B, S, K, D)),
        ("span", span_BM2, (B, M, 2)),
        ("slot_bias", slot_bias_BS, (B, S)),
        ("halo_count", halo_count_BM, (B, M)),
    ):
        if array is not None and array.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}; got {array.shape}")
    if not jnp.issubdtype(q_BMWHD.dtype, jnp.floating):
        raise ValueError(f"q must be floating; got {q_BMWHD.dtype}")
    for name, array in (("k", k_BMPWKD), ("v", v_BMPWKD), ("slot_k", slot_k_BSKD), ("slot_v", slot_v_BSKD)):
        if array.dtype != q_BMWHD.dtype:
            raise ValueError(f"{name} must have the dtype of q, {q_BMWHD.dtype}; got {array.dtype}")
