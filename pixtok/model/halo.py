"""Which pixels lie around a window."""

import jax
import numpy as np
from jax import numpy as jnp

from pixtok.model.attention import Halo, axial_angles


def offsets(halo: int, side: int) -> np.ndarray:
    """(rows, columns) of P = 2·halo·(side + halo) pixels, from a window's first pixel, nearest first: (P, 2).

    `halo` rows above, from the corner to as far beyond on the right, and `halo` columns to the left: all of them
    in windows that come earlier in raster order.
    """
    above = [(y, x) for y in range(-halo, 0) for x in range(-halo, side + halo)]
    left = [(y, x) for y in range(side) for x in range(-halo, 0)]
    near = sorted(left + above, key=lambda offset: offset[0] ** 2 + offset[1] ** 2)
    return np.array(near, np.int32).reshape(-1, 2)


def border(halo: int, side: int) -> np.ndarray:
    """(rows, columns) of the Q = halo·(2·side − halo) pixels of a window that others may see: (Q, 2).

    Its last `halo` rows, and then what else its last `halo` columns hold.  A window above another has all its rows,
    and one to the left of another all its columns.
    """
    below = [(y, x) for y in range(side - halo, side) for x in range(side)]
    right = [(y, x) for y in range(side - halo) for x in range(side - halo, side)]
    return np.array(below + right, np.int32).reshape(-1, 2)


def around(shape_BM2: jax.Array, place_BM4: jax.Array, halo: int, side: int, head_width: int) -> Halo:
    """The halo of each window, from the shapes and places of all windows of a row.  Needs halo ≤ side."""
    y_11P, x_11P = offsets(halo, side).T[:, None, None, :]
    M, P = shape_BM2.shape[1], y_11P.size
    row_BM1, column_BM1, _, columns_BM1 = jnp.split(place_BM4, 4, axis=2)
    up_11P, across_11P = y_11P // side, x_11P // side
    window_BMP = jnp.arange(M, dtype=jnp.int32)[None, :, None] + up_11P * columns_BM1 + across_11P
    shape_BMP2 = jax.vmap(lambda shape_M2, window_MP: shape_M2[window_MP])(shape_BM2, jnp.clip(window_BMP, 0, M - 1))
    height_BMP, width_BMP = shape_BMP2[..., 0], shape_BMP2[..., 1]
    visible_BMP = (
        (row_BM1 + up_11P >= 0)
        & (column_BM1 + across_11P >= 0)
        & (column_BM1 + across_11P < columns_BM1)
        & (y_11P % side < height_BMP)
        & (x_11P % side < width_BMP)
    )
    pixel_BMP = y_11P % side * width_BMP + x_11P % side
    order_BMP = jnp.argsort(~visible_BMP, axis=-1, stable=True)

    def ordered(array_BMP: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.where(visible_BMP, array_BMP, 0), order_BMP, axis=-1)

    edge_Q2 = border(halo, side)
    number = {tuple(pixel): n for n, pixel in enumerate(edge_Q2.tolist())}
    number_P = np.array([number[y % side, x % side] for y, x in offsets(halo, side).tolist()], np.int32)
    edge_y_11Q, edge_x_11Q = edge_Q2.T[:, None, None, :]
    angle_PR = axial_angles(jnp.asarray(y_11P[0, 0]), jnp.asarray(x_11P[0, 0]), head_width)
    index_BMP = ordered(window_BMP * side * side + pixel_BMP)
    return Halo(
        index_BMP,
        # Where a window is too narrow to be seen from the right, or too low, this is some pixel that nobody asks for.
        edge_y_11Q * shape_BM2[:, :, 1:] + edge_x_11Q,
        ordered(window_BMP * len(edge_Q2) + number_P[None, None]),
        angle_PR[order_BMP],
        jnp.sum(visible_BMP, axis=-1, dtype=jnp.int32),
        index_BMP[:, :, 0] if P else jnp.zeros(shape_BM2.shape[:2], jnp.int32),
    )
