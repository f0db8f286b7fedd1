"""How the TPU kernels lay a call out: pixels on lanes, features on sublanes; a tile is windows or a part of one."""

import dataclasses
import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp

from pixtok_kernels.shapes import Arguments, Case
from pixtok_kernels.tuning import Blocks

LANES = 128
_SUBLANES = 16
"""Of a bfloat16 tile."""


def _ceil(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Static sizes: a window of W pixels becomes `span` lanes, and a step of the grid looks at a tile of `lanes`."""

    case: Case
    blocks: Blocks
    itemsize: int
    """Bytes of a number in the arguments."""

    @functools.cached_property
    def span(self) -> int:
        """Lanes of one window, padding last: a divisor or a multiple of 128."""
        W = self.case.W
        return _ceil(W, LANES) if W > LANES else max(_SUBLANES, 1 << (W - 1).bit_length())

    @functools.cached_property
    def lanes(self) -> int:
        """Lanes of one tile: a multiple of 128, and a multiple or divisor of `span`."""
        most = max(LANES, self.blocks.rows // self.group // LANES * LANES)
        lanes = min(self.blocks.lanes, most, _ceil(self.case.M * self.span, LANES))
        while self.span % lanes and lanes % self.span:
            lanes -= LANES
        return lanes

    @property
    def windows(self) -> int:
        """Windows of a tile; 1 where a window has several tiles."""
        return max(1, self.lanes // self.span)

    @property
    def parts(self) -> int:
        """Tiles of a window; 1 where a tile has several windows."""
        return max(1, self.span // self.lanes)

    @property
    def padded(self) -> int:
        """Windows of a row, padding last."""
        return _ceil(self.case.M, self.windows)

    @property
    def count(self) -> int:
        """Tiles of a row."""
        return self.padded * self.span // self.lanes

    @property
    def halo(self) -> int:
        """Halo keys of a window, padding last."""
        return _ceil(self.case.P, _SUBLANES)

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.case.H // self.case.K

    @functools.cached_property
    def key_heads(self) -> int:
        """Key heads of a step."""
        return max(
            n
            for n in range(1, self.case.K + 1)
            if self.case.K % n == 0
            and (n == 1 or n * self.group * self.lanes <= self.blocks.rows)
            and (n == 1 or n * self.bytes_a_key_head <= self.blocks.vmem)
        )

    @property
    def bytes_a_key_head(self) -> int:
        """About what the gradient holds of a key head and its queries; blocks twice, since the next is on its way."""
        block, total = 2 * self.itemsize, 4
        queries = (4 * block + total) * self.group * self.lanes
        own = (4 * block + 2 * total) * self.lanes * self.parts
        return self.case.D * (queries + own) + (4 * block + 2 * total) * LANES * self.windows * self.halo

    @property
    def heads(self) -> int:
        """Query heads of a step."""
        return self.key_heads * self.group

    @functools.cached_property
    def block(self) -> int:
        """Slots looked at together."""
        return min(self.blocks.slots, _ceil(max(self.case.S, 1), LANES))

    @functools.cached_property
    def fetch(self) -> int:
        """Slots fetched at a time: a multiple of `block`."""
        most = max(1, self.blocks.fetch // (self.key_heads * self.case.D * self.block))
        return min(most, -(-max(self.case.S, 1) // self.block)) * self.block

    @property
    def slots(self) -> int:
        """Slots, padding last."""
        return _ceil(max(self.case.S, 1), self.fetch)

    @property
    def fetches(self) -> int:
        """Fetches of all slots."""
        return self.slots // self.fetch

    def pixels(self, x_BMWHD: jax.Array) -> jax.Array:
        """→ (B, H, D, N): lanes are the pixels of a row, window after window."""
        B, M, W, H, D = x_BMWHD.shape
        x_BMWHD = jnp.pad(x_BMWHD, ((0, 0), (0, self.padded - M), (0, self.span - W), (0, 0), (0, 0)))
        return x_BMWHD.reshape(B, self.padded * self.span, H, D).transpose(0, 2, 3, 1)

    def unpixels(self, x_BHDN: jax.Array) -> jax.Array:
        """The way back."""
        B, H, D, _ = x_BHDN.shape
        x_BMWHD = x_BHDN.transpose(0, 3, 1, 2).reshape(B, self.padded, self.span, H, D)
        return x_BMWHD[:, : self.case.M, : self.case.W]

    def around(self, x_BMPKD: jax.Array) -> jax.Array:
        """Halo → (B, K, M·P, D): few keys a window, so they stand on sublanes, which need less padding."""
        B, M, P, K, D = x_BMPKD.shape
        x_BMPKD = jnp.pad(x_BMPKD, ((0, 0), (0, self.padded - M), (0, self.halo - P), (0, 0), (0, 0)))
        return x_BMPKD.reshape(B, self.padded * self.halo, K, D).transpose(0, 2, 1, 3)

    def unaround(self, x_BKQD: jax.Array) -> jax.Array:
        """The way back."""
        B, K, _, D = x_BKQD.shape
        x_BMPKD = x_BKQD.transpose(0, 2, 1, 3).reshape(B, self.padded, self.halo, K, D)
        return x_BMPKD[:, : self.case.M, : self.case.P]

    def far(self, x_BSKD: jax.Array) -> jax.Array:
        """Slots → (B, K, D, S)."""
        return jnp.pad(x_BSKD, ((0, 0), (0, self.slots - x_BSKD.shape[1]), (0, 0), (0, 0))).transpose(0, 2, 3, 1)

    def unfar(self, x_BKDS: jax.Array) -> jax.Array:
        """The way back."""
        return x_BKDS.transpose(0, 3, 1, 2)[:, : self.case.S]


class Sight(NamedTuple):
    """Who sees which slots, int32.  An empty span is (0, 0)."""

    lane_B3N: jax.Array
    """Of each lane: its first slot, past its last slot, its halo keys."""
    tile_BT2: jax.Array
    """Of each tile: first slot, and past the last, that any of its windows sees."""
    fetch_BF2: jax.Array
    """Of each fetch of slots: first tile, and the last, that sees any of it; (0, 0) where none does."""


def sight(t: Tiles, a: Arguments) -> Sight:
    """Of a call whose spans and counts end where slots and halo end."""
    B, M, _ = a.span_BM2.shape
    span_BM2 = jnp.where(a.span_BM2[..., :1] < a.span_BM2[..., 1:], a.span_BM2, 0)
    see_BM3 = jnp.concatenate([span_BM2, a.halo_count_BM[..., None]], axis=-1).astype(jnp.int32)
    see_BM3 = jnp.pad(see_BM3, ((0, 0), (0, t.padded - M), (0, 0)))
    lane_B3N = jnp.repeat(see_BM3.transpose(0, 2, 1), t.span, axis=2)
    see_BTG3 = see_BM3.reshape(B, -1, t.windows, 3)
    high_BT = see_BTG3[..., 1].max(-1)
    low_BT = jnp.where(see_BTG3[..., 1] == 0, t.slots, see_BTG3[..., 0]).min(-1)
    low_BT = jnp.where(high_BT > 0, low_BT, 0)
    tile_BT2 = jnp.repeat(jnp.stack([low_BT, high_BT], axis=-1), t.parts, axis=1)
    begin_1F1 = jnp.arange(t.fetches)[None, :, None] * t.fetch
    sees_BFT = (tile_BT2[:, None, :, 0] < begin_1F1 + t.fetch) & (tile_BT2[:, None, :, 1] > begin_1F1)
    first_BF = jnp.argmax(sees_BFT, axis=-1)
    last_BF = jnp.where(sees_BFT.any(-1), t.count - 1 - jnp.argmax(sees_BFT[..., ::-1], axis=-1), 0)
    return Sight(lane_B3N, tile_BT2, jnp.stack([first_BF, last_BF], axis=-1).astype(jnp.int32))
