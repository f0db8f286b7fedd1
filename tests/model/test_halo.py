import numpy as np
import pytest
from models import batch, image

from pixtok.config import Model, Stream
from pixtok.model import attention, halo

TINY = Stream(width=16, layers=1, heads=1, kv_heads=1)


@pytest.mark.parametrize(("side", "width"), [(1, 1), (3, 1), (3, 2), (4, 4)])
def test_the_halo_is_the_pixels_around_a_window(side, width):
    """Against a search of each image, several of them and ragged ones in one row."""
    config = Model(TINY, TINY, TINY, window=side)
    shapes = [(7, 9), (2, 5), (1, 1), (8, 3)] if side > 1 else [(3, 4), (1, 2)]
    rows = batch(tuple(image(*shape) for shape in shapes), config=config, slots=100, windows=40)
    got = halo.around(rows.shape_BM2, rows.place_BM4, width, side, head_width=16)
    window = 0
    for height, breadth in shapes:
        own = {}  # pixel of the image → its index in the row
        columns = -(-breadth // side)
        for y, x in np.ndindex(height, breadth):
            row, column = y // side, x // side
            wide = min(side, breadth - column * side)
            own[y, x] = (window + row * columns + column) * side**2 + y % side * wide + x % side
        for row, column in np.ndindex(-(-height // side), columns):
            expected = {}
            for y in range(-width, side):
                for x in range(-width, side + width):
                    pixel = row * side + y, column * side + x
                    if (y < 0 or x < 0) and pixel in own and (y >= 0 or pixel[0] >= 0):
                        expected[own[pixel]] = (y, x)
            m = window + row * columns + column
            count = int(got.count_BM[0, m])
            index = np.asarray(got.index_BMP[0, m, :count]).tolist()
            assert sorted(index) == sorted(expected)
            offsets = np.array([expected[i] for i in index], np.int32).reshape(-1, 2)
            np.testing.assert_array_equal(
                got.angle_BMPR[0, m, :count], attention.axial_angles(*offsets.T, head_width=16)
            )
            assert max(index, default=-1) < m * side**2, "only earlier windows"
            if count:
                nearest = own.get((row * side, column * side - 1), own.get((row * side - 1, column * side)))
                assert got.nearest_BM[0, m] == nearest
        window += -(-height // side) * columns
    assert not got.count_BM[0, window:].any()
