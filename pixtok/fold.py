"""Colour folding: an 8-bit RGB pixel as one small id and an exact residual.

With fold factor F and L = 256 / F levels a channel, c' = ⌊c / F⌋ and id = r' + L·g' + L²·b'.
The residual c mod F is what the id leaves out; both together are the pixel again, bit for bit.
What works on packed colours takes arrays of numpy and of jax alike.
"""

from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

FACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PADDING = 1 << 24
"""The packed colour of a pixel that is none."""
MAX_COLOURS = 32_768
"""Up to this many folded colours have a row each in tables and heads; more are taken channel by channel."""


def levels(factor: int) -> int:
    """Levels per channel, L = 256 / F.  Raises ValueError unless F is a power of two up to 256."""
    if factor not in FACTORS:
        raise ValueError(f"the fold factor must be one of {', '.join(map(str, FACTORS))}; got {factor}")
    return 256 // factor


def colours(factor: int) -> int:
    """Number of folded colours, L³."""
    return levels(factor) ** 3


def by_channel(factor: int) -> bool:
    """Whether there are so many folded colours that they are taken channel by channel."""
    return colours(factor) > MAX_COLOURS


def pack(rgb: UInt8[np.ndarray, "*shape 3"]) -> Int32[np.ndarray, "*shape"]:
    """8-bit colours as one integer each, r + 2⁸·g + 2¹⁶·b.  Raises ValueError on anything else."""
    if rgb.dtype != np.uint8 or rgb.shape[-1:] != (3,):
        raise ValueError(f"colours must be uint8 of shape (…, 3); got {rgb.dtype} {rgb.shape}")
    wide = rgb.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


def split(colour: Any, factor: int) -> tuple[Any, Any]:
    """Packed colours → (levels c', residuals c mod F), int32 of shape (…, 3).  Raises ValueError on a bad factor."""
    bits = levels(factor).bit_length() - 1  # L = 2^bits, so the whole map is shifts
    shift = np.array([0, 8, 16], np.int32).reshape((1,) * colour.ndim + (3,))
    channel = (colour[..., None] >> shift) & 255
    return channel >> (8 - bits), channel & (factor - 1)


def ids(colour: Any, factor: int) -> Any:
    """Packed colours → folded ids 0 … L³ − 1, L³ for padding.  Raises ValueError on a bad factor."""
    level = levels(factor)
    folded, _ = split(colour, factor)
    own = folded[..., 0] + level * folded[..., 1] + level**2 * folded[..., 2]
    padding = (colour >> 24) & 1
    return own + level**3 * padding


def join(level: Any, residual: Any, factor: int) -> Any:
    """The inverse of `split`: levels and residuals of shape (…, 3) → packed colours."""
    channel = level * factor + residual
    return channel[..., 0] | channel[..., 1] << 8 | channel[..., 2] << 16


def unpack(colour: Int32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """The inverse of `pack`."""
    return split(colour, 1)[0].astype(np.uint8)


def folded(rgb: UInt8[np.ndarray, "*shape 3"], factor: int) -> UInt8[np.ndarray, "*shape 3"]:
    """8-bit colours as folding leaves them: each channel at the middle of its bin, c'·F + ⌊F / 2⌋."""
    return unpack(join(split(pack(rgb), factor)[0], factor // 2, factor))
