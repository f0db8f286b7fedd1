"""Images as windows of pixels, valid pixels first, and back.

Windows do not overlap and come in raster order; pixels come in raster order inside each.  A window at the
right or bottom edge simply holds fewer pixels: they come first and padding comes last, so that causal
masking alone keeps padding unseen and the last pixel of a window is its index count − 1.
"""

from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Int32, Shaped


class Geometry(NamedTuple):
    """Where the windows of one image are.  M windows of at most `side` × `side` pixels."""

    shape_M2: Int32[np.ndarray, "M 2"]
    """Rows and columns of pixels in each window; their product is its count of valid pixels."""
    place_M4: Int32[np.ndarray, "M 4"]
    """Row and column of each window in the grid of windows, then the rows and columns of that grid."""


def grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of the grid of windows that covers an image."""
    return -(-height // side), -(-width // side)


def geometry(height: int, width: int, side: int) -> Geometry:
    """The windows of a `height` × `width` image.  Raises ValueError unless all three are positive."""
    if min(height, width, side) < 1:
        raise ValueError(f"height, width and side must be positive; got {height}, {width}, {side}")
    rows, columns = grid(height, width, side)
    row_M, column_M = (index.ravel() for index in np.mgrid[:rows, :columns])
    shape_M2 = np.stack([np.minimum(side, height - row_M * side), np.minimum(side, width - column_M * side)], 1)
    place_M4 = np.stack([row_M, column_M, np.full_like(row_M, rows), np.full_like(row_M, columns)], 1)
    return Geometry(shape_M2.astype(np.int32), place_M4.astype(np.int32))


def _blocks(height: int, width: int, side: int):
    """The at most four parts of an image in which all windows have one size: (pixel slices, grid slices, size)."""
    rows, columns = height // side, width // side
    for y, r, h in (
        (slice(0, rows * side), slice(0, rows), side),
        (slice(rows * side, None), slice(rows, None), height % side),
    ):
        for x, c, w in (
            (slice(0, columns * side), slice(0, columns), side),
            (slice(columns * side, None), slice(columns, None), width % side),
        ):
            if h and w:
                yield (y, x), (r, c), (h, w)


def split(image: Shaped[np.ndarray, "Y X *C"], side: int, fill: Any = 0) -> Shaped[np.ndarray, "M W *C"]:
    """Image → windows of W = side² pixels, valid pixels first, padded with `fill`.  Keeps the dtype."""
    height, width, *channels = image.shape
    rows, columns = grid(height, width, side)
    out = np.full((rows, columns, side * side, *channels), fill, image.dtype)
    for pixels, cells, (h, w) in _blocks(height, width, side):
        out[cells][:, :, : h * w] = rearrange(image[pixels], "(r h) (c w) ... -> r c (h w) ...", h=h, w=w)
    return out.reshape(-1, side * side, *channels)


def join(windows: Shaped[np.ndarray, "M W *C"], height: int, width: int) -> Shaped[np.ndarray, "Y X *C"]:
    """Windows → image; the exact inverse of `split`.  Raises ValueError when the sizes do not fit."""
    count, size, *channels = windows.shape
    side = int(size**0.5)
    rows, columns = grid(height, width, side)
    if side * side != size or count != rows * columns:
        raise ValueError(f"{count} windows of {size} pixels do not make an image of {height} × {width}")
    cells_RCW = windows.reshape(rows, columns, size, *channels)
    out = np.empty((height, width, *channels), windows.dtype)
    for pixels, cells, (h, w) in _blocks(height, width, side):
        out[pixels] = rearrange(cells_RCW[cells][:, :, : h * w], "r c (h w) ... -> (r h) (c w) ...", h=h, w=w)
    return out
