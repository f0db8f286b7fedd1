"""Causal attention of the slots of rows, each inside its own segment."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import NamedSharding, PartitionSpec

from pixtok.axes import BATCH
from pixtok.model import mesh

_LONG = 2048
"""From so many slots on a TPU, which would hold all scores in memory, uses jax's splash attention."""
_LANES = 128


def causal_attention(q_BSHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, segment_BS: jax.Array) -> jax.Array:
    """→ (B, S, H, D); query head h uses key/value head h // (H / K)."""
    attend = _long if q_BSHD.shape[1] >= _LONG else _plain
    return attend(q_BSHD, k_BSKD, v_BSKD, segment_BS)


def _plain(q_BSHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, segment_BS: jax.Array) -> jax.Array:
    mask_B1SS = (segment_BS[:, :, None] == segment_BS[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q_BSHD, k_BSKD, v_BSKD, mask=mask_B1SS, is_causal=True)


def splash(
    q_BSHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, segment_BS: jax.Array, interpret: bool = False
) -> jax.Array:
    """The kernel, of each device's own rows and heads, and of its own share of the queries."""
    _, S, H, D = q_BSHD.shape
    around = mesh.current()
    shares, heads = (1, 1) if around is None else (around.shape["window"], around.shape["tensor"])
    pad = -S % (shares * _LANES)
    padded = S + pad

    def slots(x_BSHD: jax.Array) -> jax.Array:
        return jnp.pad(x_BSHD, ((0, 0), (0, pad), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    def block(length: int) -> int:
        return max(size for size in (128, 256, 512, 1024) if length % size == 0)

    q, k = block(padded // shares), block(padded)
    kernel = make_splash_mha(
        MultiHeadMask([CausalMask((padded, padded), shard_count=shares)] * H),
        block_sizes=BlockSizes(q, k, k, q, k, k, q, k),
        head_shards=heads,
        q_seq_shards=shares,
        interpret=interpret,
    )
    # Padding is a segment of its own rows' padding, and comes last: nothing real sees it.
    segment_BS = jnp.pad(segment_BS, ((0, 0), (0, pad)))

    def attend(kernel: Any, q_BHSD: Any, k_BKSD: Any, v_BKSD: Any, own_BS: Any, all_BS: Any) -> jax.Array:
        return jax.vmap(kernel)(q_BHSD, k_BKSD, v_BKSD, SegmentIds(own_BS, all_BS))

    if around is not None:
        queries, keys = PartitionSpec(BATCH, "tensor", "window"), PartitionSpec(BATCH, "tensor")
        masks = kernel.manual_sharding_spec(NamedSharding(around, PartitionSpec("tensor", "window")))
        specs = masks, queries, keys, keys, PartitionSpec(BATCH, "window"), PartitionSpec(BATCH)
        attend = jax.shard_map(attend, in_specs=specs, out_specs=queries, check_vma=False)
    q_BHSD = slots(q_BSHD * jnp.asarray(D**-0.5, q_BSHD.dtype))
    o_BHSD = attend(kernel, q_BHSD, slots(k_BSKD), slots(v_BSKD), segment_BS, segment_BS)
    return o_BHSD.transpose(0, 2, 1, 3)[:, :S]


def _back(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Attention again, and its gradient: what different platforms would keep for it cannot stand side by side."""

    def back(q_BSHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, segment_BS: jax.Array, do_BSHD: jax.Array) -> Any:
        _, gradient = jax.vjp(functools.partial(attend, segment_BS=segment_BS), q_BSHD, k_BSKD, v_BSKD)
        return gradient(do_BSHD)

    return back


@jax.custom_vjp
def _long(q_BSHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, segment_BS: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(q_BSHD, k_BSKD, v_BSKD, segment_BS, tpu=splash, default=_plain)


def _forward(*arguments: jax.Array) -> tuple[jax.Array, Any]:
    return _long(*arguments), arguments


def _backward(arguments: Any, do_BSHD: jax.Array) -> Any:
    return *jax.lax.platform_dependent(*arguments, do_BSHD, tpu=_back(splash), default=_back(_plain)), None


_long.defvjp(_forward, _backward)
