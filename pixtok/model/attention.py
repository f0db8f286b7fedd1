"""Rotary positions, causal attention of slots, and the conditional attention of pixels."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from einops import rearrange
from jax import numpy as jnp
from jax.sharding import PartitionSpec

from pixtok.axes import BATCH
from pixtok.config import Stream
from pixtok.model import mesh
from pixtok.model.causal import causal_attention
from pixtok.model.param import linear, matrix, outer, param
from pixtok_kernels import global_conditional_attention

# UPW's, which are Llama 3.1's (arXiv 2407.21783 and its published configuration).
_THETA = 5e5
_SCALE, _LOW, _HIGH, _CONTEXT = 8.0, 1.0, 4.0, 8192.0
# Inside a window coordinates are below some tens, so the slowest wave need not be longer than hundreds.
_AXIAL_THETA = 100.0


def line_frequencies(head_width: int) -> np.ndarray:
    """Angular frequencies (D/2,) of a running index: RoPE (arXiv 2104.09864) with Llama 3.1's scaling.

    f_j = θ^(−2j/D); waves longer than context/low are slowed by `scale`, those shorter than context/high are
    kept, and those between are interpolated.
    """
    f = _THETA ** (-np.arange(0, head_width, 2) / head_width)
    blend = np.clip((_CONTEXT * f / (2 * math.pi) - _LOW) / (_HIGH - _LOW), 0, 1)
    return (f * (blend + (1 - blend) / _SCALE)).astype(np.float32)


def line_angles(position: jax.Array, head_width: int) -> jax.Array:
    """Angles (…, D/2), float32, of integer positions (…)."""
    return outer(position, line_frequencies(head_width))


def axial_angles(row: jax.Array, column: jax.Array, head_width: int) -> jax.Array:
    """Angles (…, D/2), float32: the first half of the pairs turns with the row, the second with the column."""
    f = (_AXIAL_THETA ** (-np.arange(0, head_width, 4) / head_width)).astype(np.float32)
    parts = [outer(index, f) for index in (row, column)]
    return jnp.concatenate(parts, axis=-1)


def pixel_angles(shape_BM2: jax.Array, window: int, head_width: int) -> jax.Array:
    """Angles (B, M, W, D/2) of the row and column of each pixel in its window."""
    columns_BM1 = jnp.maximum(shape_BM2[:, :, 1:], 1)
    index_BMW = jnp.broadcast_to(jnp.arange(window), (*shape_BM2.shape[:2], window))
    return axial_angles(index_BMW // columns_BM1, index_BMW % columns_BM1, head_width)


def rotate(x_SHD: jax.Array, angle_SR: jax.Array) -> jax.Array:
    """Rotate the pairs (j, j + R) of features by the angles, in float32, for any leading axes.  R = D/2."""
    first, second = jnp.split(x_SHD.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle_SR)[..., None, :], jnp.sin(angle_SR)[..., None, :]
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x_SHD.dtype)


class Cache(NamedTuple):
    """Rotated keys and values of C slots, for generation: (B, C, K, D)."""

    k_BCKD: jax.Array
    v_BCKD: jax.Array


class _Projections(nn.Module):
    """Queries, keys and values of grouped-query attention (arXiv 2305.13245), and the way back.  No biases."""

    config: Stream
    dtype: jnp.dtype

    def setup(self) -> None:
        E, H, K, D = self.config.width, self.config.heads, self.config.kv_heads, self.config.head_width
        self.query = param(self, "query", (E, H, D), ("embed", "heads", "head"), matrix(E))
        self.key = param(self, "key", (E, K, D), ("embed", "kv_heads", "head"), matrix(E))
        self.value = param(self, "value", (E, K, D), ("embed", "kv_heads", "head"), matrix(E))
        # Residual branches start small in proportion to their number, so that depth does not inflate the stream.
        init = matrix(H * D, scale=1 / (2 * self.config.layers))
        self.out = param(self, "out", (H, D, E), ("heads", "head", "embed"), init)

    def _merge(self, o_SHD: jax.Array) -> jax.Array:
        H, D, E = self.out.shape
        return linear(o_SHD.reshape(*o_SHD.shape[:-2], H * D), self.out.reshape(H * D, E))


class _Causal(_Projections):
    """Causal attention, some slots at a time."""

    def step(self, x_BTE: jax.Array, cache: Cache, angle_BTR: jax.Array, index: jax.Array) -> tuple[jax.Array, Cache]:
        """T slots, from number `index` on, after those in the cache."""
        q_BTHD = rotate(linear(x_BTE, self.query), angle_BTR)
        k_BTKD = rotate(linear(x_BTE, self.key), angle_BTR)
        cache = Cache(_write(cache.k_BCKD, k_BTKD, index), _write(cache.v_BCKD, linear(x_BTE, self.value), index))
        own_T1 = index + jnp.arange(x_BTE.shape[1])[:, None]
        mask_11TC = (jnp.arange(cache.k_BCKD.shape[1])[None] <= own_T1)[None, None]
        return self._merge(jax.nn.dot_product_attention(q_BTHD, *cache, mask=mask_11TC)), cache


class Attention(_Causal):
    """Causal attention inside each segment of slots: (B, S, E) → (B, S, E)."""

    def __call__(self, x_BSE: jax.Array, angle_BSR: jax.Array, segment_BS: jax.Array) -> jax.Array:
        q_BSHD = rotate(linear(x_BSE, self.query), angle_BSR)
        k_BSKD = rotate(linear(x_BSE, self.key), angle_BSR)
        return self._merge(causal_attention(q_BSHD, k_BSKD, linear(x_BSE, self.value), segment_BS))


class WindowAttention(_Causal):
    """Causal attention inside each window: (B, M, W, E) → the same."""

    def __call__(self, x_BMWE: jax.Array, angle_BMWR: jax.Array) -> jax.Array:
        q_BMWHD = rotate(linear(x_BMWE, self.query), angle_BMWR)
        k_BMWKD, v_BMWKD = rotate(linear(x_BMWE, self.key), angle_BMWR), linear(x_BMWE, self.value)
        (B, M), (K, D) = x_BMWE.shape[:2], self.key.shape[1:]
        none_B0KD, none_BM = jnp.zeros((B, 0, K, D), x_BMWE.dtype), jnp.zeros((B, M), jnp.int32)
        none_BM2 = jnp.zeros((B, M, 2), jnp.int32)
        o_BMWHD = _where_the_windows_are(q_BMWHD, k_BMWKD, v_BMWKD, none_B0KD, none_B0KD, none_BM2, none_BM)
        return self._merge(o_BMWHD)

    def last(self, x_BMWE: jax.Array, angle_BMWR: jax.Array, last_BM: jax.Array) -> jax.Array:
        """What the last pixel of each window alone gets: (B, M, 1, E)."""
        at_BM11 = last_BM[:, :, None, None]
        q_BM1HD = rotate(
            linear(jnp.take_along_axis(x_BMWE, at_BM11, axis=2), self.query),
            jnp.take_along_axis(angle_BMWR, at_BM11, axis=2),
        )
        k_BMWKD, v_BMWKD = rotate(linear(x_BMWE, self.key), angle_BMWR), linear(x_BMWE, self.value)
        seen_BM11W = jnp.arange(x_BMWE.shape[2])[None, None, None, None] <= at_BM11[..., None]
        attend = jax.vmap(lambda q, k, v, mask: jax.nn.dot_product_attention(q, k, v, mask=mask), 1, 1)
        return self._merge(attend(q_BM1HD, k_BMWKD, v_BMWKD, seen_BM11W))


def _write(into_BCKD: jax.Array, x_B1KD: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(into_BCKD, x_B1KD, index, axis=1)


class Halo(NamedTuple):
    """The P pixels around each window, visible ones first, and of those the ones nearest to its first pixel."""

    index_BMP: jax.Array
    """Window · W + pixel, in the windows of a row."""
    border_BMQ: jax.Array
    """The pixels of each window that may lie in a halo."""
    border_index_BMP: jax.Array
    """Window · Q + number in its border: the same pixels as in `index_BMP`."""
    angle_BMPR: jax.Array
    """Of their offsets from the window's first pixel."""
    count_BM: jax.Array
    """Number of visible ones."""
    nearest_BM: jax.Array
    """Index of the first, 0 where none is visible."""


class Context(NamedTuple):
    """What a pixel may see beside its own window."""

    angle_BMWR: jax.Array
    halo: Halo
    slot_BSE: jax.Array
    """The trunk's states, in the decoder's width."""
    span_BM2: jax.Array
    """First slot of a window's document, and the window's own slot."""


class PixelCache(NamedTuple):
    """What one image's pixels leave for later ones; near keys and slot keys are those of one window."""

    pixel: Cache
    """Not rotated: (B, M·W, K, D)."""
    near: Cache
    """Visible halo keys, then the window's own: (B, P + W, K, D)."""
    slot: Cache
    """(B, S, K, D)."""


class ConditionalAttention(_Projections):
    """Global conditional attention of the pixels of windows: (B, M, 1 + W, E) → the same.

    The first of a window stands before all its pixels: it sees the halo, slots and itself, and no pixel sees it.
    Keys of slots have projections of their own and are not rotated: a pixel sees them from where it is in its window.
    Without `summaries` there are none.
    """

    summaries: bool = True

    def setup(self) -> None:
        super().setup()
        if self.summaries:
            E, K, D = self.config.width, self.config.kv_heads, self.config.head_width
            self.slot_key = param(self, "slot_key", (E, K, D), ("embed", "kv_heads", "head"), matrix(E))
            self.slot_value = param(self, "slot_value", (E, K, D), ("embed", "kv_heads", "head"), matrix(E))

    def _slots(self, slot_BSE: jax.Array) -> Cache:
        if not self.summaries:
            none_B0KD = jnp.zeros((slot_BSE.shape[0], 0, *self.key.shape[1:]), slot_BSE.dtype)
            return Cache(none_B0KD, none_B0KD)
        return Cache(linear(slot_BSE, self.slot_key), linear(slot_BSE, self.slot_value))

    def __call__(self, x_BMTE: jax.Array, context: Context) -> jax.Array:
        halo, angle_BMWR = context.halo, context.angle_BMWR
        angle_BMTR = jnp.concatenate([angle_BMWR[:, :, :1], angle_BMWR], axis=2)
        q_BMTHD = rotate(linear(x_BMTE, self.query), angle_BMTR)
        k_BMTKD, v_BMTKD = linear(x_BMTE, self.key), linear(x_BMTE, self.value)
        # Keys and values side by side, so that one gather serves both.
        both_BMQKD = jnp.concatenate([border(a[:, :, 1:], halo) for a in (k_BMTKD, v_BMTKD)], axis=-1)
        k_BMPKD, v_BMPKD = jnp.split(look(both_BMQKD, halo.border_index_BMP, "tensor"), 2, axis=-1)
        k_BMPKD, k_BMTKD = rotate(k_BMPKD, halo.angle_BMPR), rotate(k_BMTKD, angle_BMTR)
        slots = self._slots(context.slot_BSE)

        def attend(own: slice) -> jax.Array:
            return _where_the_windows_are(
                q_BMTHD[:, :, own],
                jnp.concatenate([k_BMPKD, k_BMTKD[:, :, own]], axis=2),
                jnp.concatenate([v_BMPKD, v_BMTKD[:, :, own]], axis=2),
                *slots,
                context.span_BM2,
                halo.count_BM,
            )

        return self._merge(jnp.concatenate([attend(slice(1)), attend(slice(1, None))], axis=2))

    def begin(self, x_B1E: jax.Array, cache: PixelCache, context: Context) -> tuple[jax.Array, PixelCache]:
        """What stands before the pixels of one window (M = 1); the cache is made ready for them."""
        k_BPKD, v_BPKD = (_gather(a, context.halo.index_BMP)[:, 0] for a in cache.pixel)
        k_BPKD = rotate(k_BPKD, context.halo.angle_BMPR[:, 0])
        near = Cache(_write(cache.near.k_BCKD, k_BPKD, jnp.int32(0)), _write(cache.near.v_BCKD, v_BPKD, jnp.int32(0)))
        cache = cache._replace(near=near, slot=self._slots(context.slot_BSE))
        angle_B1R = context.angle_BMWR[:, 0, :1]
        o_B1E, _ = self._one(x_B1E, linear(x_B1E, self.key), cache, context, angle_B1R, context.halo.count_BM)
        return o_B1E, cache

    def step(
        self, x_B1E: jax.Array, cache: PixelCache, context: Context, pixel: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, PixelCache]:
        """One pixel of one window (M = 1): number `pixel` of the window, `index` of the image."""
        angle_B1R = jax.lax.dynamic_slice_in_dim(context.angle_BMWR[:, 0], pixel, 1, axis=1)
        # Earlier pixels of the window stand where its visible halo ends, so that one count covers both.
        count_B1 = context.halo.count_BM + pixel
        k_B1KD = linear(x_B1E, self.key)
        o_B1E, own = self._one(x_B1E, k_B1KD, cache, context, angle_B1R, count_B1)
        cache = cache._replace(
            pixel=Cache(_write(cache.pixel.k_BCKD, k_B1KD, index), _write(cache.pixel.v_BCKD, own.v_BCKD, index)),
            near=Cache(*(_write(into, x, count_B1[0, 0]) for into, x in zip(cache.near, own, strict=True))),
        )
        return o_B1E, cache

    def _one(
        self,
        x_B1E: jax.Array,
        k_B1KD: jax.Array,
        cache: PixelCache,
        context: Context,
        angle_B1R: jax.Array,
        count_B1: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Attention of one query to the first `count_B1` near keys, slots and itself; its own rotated key and value."""
        q_B1HD = rotate(linear(x_B1E, self.query), angle_B1R)
        own = Cache(rotate(k_B1KD, angle_B1R), linear(x_B1E, self.value))
        k_B1PWKD, v_B1PWKD = (jnp.concatenate(pair, axis=1)[:, None] for pair in zip(cache.near, own, strict=True))
        o_B11HD = global_conditional_attention(
            q_B1HD[:, None], k_B1PWKD, v_B1PWKD, *cache.slot, context.span_BM2, halo_count_BM=count_B1
        )
        return self._merge(o_B11HD[:, 0]), own


def _where_the_windows_are(*arrays: jax.Array) -> jax.Array:
    """Conditional attention of each device's own rows, windows and heads: a kernel is nothing that XLA could split."""

    def attend(q, k, v, slot_k, slot_v, span, count):
        return global_conditional_attention(q, k, v, slot_k, slot_v, span, halo_count_BM=count)

    if mesh.current() is None:
        return attend(*arrays)
    window, slot = PartitionSpec(BATCH, "window", None, "tensor"), PartitionSpec(BATCH, None, "tensor")
    seen = PartitionSpec(BATCH, "window")
    return mesh.shard_map(attend, (window, window, window, slot, slot, seen, seen), window, *arrays)


def border(x_BMWE: jax.Array, halo: Halo) -> jax.Array:
    """The pixels of each window that may lie in a halo: (B, M, Q, …)."""
    index_BMQ1 = halo.border_BMQ.reshape(*halo.border_BMQ.shape, *[1] * (x_BMWE.ndim - 3))
    return jnp.take_along_axis(x_BMWE, index_BMQ1, axis=2, mode="clip")


def look(x_BMQKD: jax.Array, index_BMP: jax.Array, heads: str | None) -> jax.Array:
    """Borders of all windows of a row → what `index_BMP` asks for, (B, M, P, K, D).

    `heads` is the mesh axis over which K is split.  Where the windows are split, borders alone go around.
    """

    def ask(x_BMQKD: jax.Array, index_BMP: jax.Array) -> jax.Array:
        return _gather(rearrange(x_BMQKD, "B M Q K D -> B (M Q) K D"), index_BMP)

    def gather(x_BMQKD: jax.Array, index_BMP: jax.Array) -> jax.Array:
        return ask(jax.lax.all_gather(x_BMQKD, "window", axis=1, tiled=True), index_BMP)

    if mesh.current() is None or not index_BMP.size:
        return ask(x_BMQKD, index_BMP)
    window = PartitionSpec(BATCH, "window", None, heads)
    return mesh.shard_map(gather, (window, PartitionSpec(BATCH, "window")), window, x_BMQKD, index_BMP)


def _gather(x_BNKD: jax.Array, index_BMP: jax.Array) -> jax.Array:
    """→ (B, M, P, K, D)."""
    batch, windows, _ = index_BMP.shape
    flat_BN11 = index_BMP.reshape(batch, -1)[:, :, None, None]
    found = jnp.take_along_axis(x_BNKD, flat_BN11, axis=1, mode="clip")
    return rearrange(found, "B (M P) K D -> B M P K D", M=windows)
