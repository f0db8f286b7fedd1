"""Colour folding: an 8-bit RGB pixel as one small id and an exact residual.

With fold factor F and L = 256 / F levels a channel, c' = ⌊c / F⌋ and id = r' + L·g' + L²·b'.
The residual c mod F is what the id leaves out; both together are the pixel again, bit for bit.
"""

import numpy as np
from jaxtyping import Int32, UInt8

FACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def levels(factor: int) -> int:
    """Levels per channel, L = 256 / F.  Raises ValueError unless F is a power of two up to 256."""
    if factor not in FACTORS:
        raise ValueError(f"the fold factor must be one of {', '.join(map(str, FACTORS))}; got {factor}")
    return 256 // factor


def colours(factor: int) -> int:
    """Number of folded colours, L³."""
    return levels(factor) ** 3


def fold(
    rgb: UInt8[np.ndarray, "*shape 3"], factor: int
) -> tuple[Int32[np.ndarray, "*shape"], UInt8[np.ndarray, "*shape 3"]]:
    """8-bit colours → (ids in 0 … L³ − 1, residuals in 0 … F − 1).  Raises ValueError on a bad factor."""
    bits = levels(factor).bit_length() - 1  # L = 2^bits, so the whole map is shifts
    if rgb.dtype != np.uint8 or rgb.shape[-1:] != (3,):
        raise ValueError(f"fold takes uint8 colours of shape (…, 3); got {rgb.dtype} {rgb.shape}")
    folded = (rgb >> np.uint8(8 - bits)).astype(np.int32) if bits else np.zeros(rgb.shape, np.int32)
    ids = folded[..., 0] | folded[..., 1] << bits | folded[..., 2] << 2 * bits
    return ids, rgb & np.uint8(factor - 1)


def unfold(
    ids: Int32[np.ndarray, "*shape"], factor: int, residual: UInt8[np.ndarray, "*shape 3"] | None = None
) -> UInt8[np.ndarray, "*shape 3"]:
    """Ids → 8-bit colours: exact with the residuals of `fold`, else the middle of each bin, c'·F + ⌊F / 2⌋.

    Raises ValueError on a bad factor or an id outside 0 … L³ − 1.
    """
    level = levels(factor)
    if ids.size and not (ids.min() >= 0 and ids.max() < level**3):
        raise ValueError(f"ids must lie in 0 … {level**3 - 1}; got {ids.min()} … {ids.max()}")
    channels = np.stack([ids % level, ids // level % level, ids // level**2], axis=-1)
    rest = np.uint8(factor // 2) if residual is None else residual
    return (channels * factor).astype(np.uint8) + rest
