"""Shapes of the operation: the check of its arguments, and the cases that tests and benchmarks share."""

from typing import Any, NamedTuple

import jax


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


CASES = {
    "plain": Case(B=2, M=3, W=4, P=0, S=5, H=2, K=2, D=4),
    "halo": Case(B=2, M=3, W=4, P=3, S=5, H=2, K=2, D=8),
    "grouped": Case(B=1, M=4, W=5, P=2, S=7, H=6, K=2, D=4),
    "pixel": Case(B=2, M=6, W=1, P=0, S=6, H=2, K=1, D=4),
    "one-window": Case(B=1, M=1, W=16, P=0, S=2, H=4, K=1, D=8),
}
"""Small ones, which together reach every branch."""


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
    for name, array in (("k", k_BMPWKD), ("v", v_BMPWKD), ("slot_k", slot_k_BSKD), ("slot_v", slot_v_BSKD)):
        if array.dtype != q_BMWHD.dtype:
            raise ValueError(f"{name} must have the dtype of q, {q_BMWHD.dtype}; got {array.dtype}")
