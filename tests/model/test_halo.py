import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from jax import numpy as jnp
from models import batch, image

from pixtok import sharding
from pixtok.config import Mesh, Model, Stream
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


@st.composite
def layouts(draw):
    """Side of a window, width of the halo, and sizes of the images of a row."""
    side = draw(st.integers(1, 5))
    size = st.integers(1, 3 * side)
    return side, draw(st.integers(1, side)), draw(st.lists(st.tuples(size, size), min_size=1, max_size=4))


def around(side: int, width: int, sizes) -> attention.Halo:
    config = Model(TINY, TINY, TINY, window=side)
    rows = batch(tuple(image(*size) for size in sizes), config=config, slots=100, windows=40)
    with jax.disable_jit():  # each layout would be compiled
        return halo.around(jnp.asarray(rows.shape_BM2), jnp.asarray(rows.place_BM4), width, side, head_width=16)


@pytest.mark.slow
@settings(max_examples=30)
@given(layouts())
def test_all_that_a_halo_needs_is_in_the_borders(layout):
    found = around(*layout)
    side, width, _ = layout
    size = found.border_BMQ.shape[2]
    assert size == side**2 - (side - width) ** 2
    window_BMP, number_BMP = np.divmod(found.border_index_BMP, size)
    pixel_BMP = window_BMP * side**2 + np.asarray(found.border_BMQ)[0][window_BMP, number_BMP]
    visible_BMP = np.arange(pixel_BMP.shape[2]) < found.count_BM[:, :, None]
    np.testing.assert_array_equal(pixel_BMP[visible_BMP], found.index_BMP[visible_BMP])


@pytest.mark.parametrize("mesh", [None, Mesh(data=1, window=4), Mesh(data=1, window=2, tensor=2)], ids=str)
def test_borders_tell_what_whole_images_do(mesh):
    """Wherever the windows are, and with the gradient of what was asked for."""
    found = around(3, 2, [(7, 8), (5, 4), (9, 2)])
    x_BMWKD = jax.random.normal(jax.random.key(0), (1, 40, 9, 2, 4))
    seen_BMP = jnp.arange(found.index_BMP.shape[2]) < found.count_BM[:, :, None]
    weight_BMPKD = jnp.where(seen_BMP[..., None, None], jax.random.normal(jax.random.key(1), (2, 4)), 0)

    def whole(x_BMWKD):
        return attention._gather(x_BMWKD.reshape(1, -1, 2, 4), found.index_BMP) * weight_BMPKD

    def borders(x_BMWKD):
        return attention.look(attention.border(x_BMWKD, found), found.border_index_BMP, "tensor") * weight_BMPKD

    def both(look):
        return jax.jit(lambda x: (look(x), jax.grad(lambda x: (look(x) ** 2).sum())(x)))(x_BMWKD)

    expected = both(whole)
    if mesh is None:
        got = both(borders)
    else:
        with jax.set_mesh(sharding.make_mesh(mesh)):
            got = both(borders)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
    assert np.abs(expected[0]).max() > 1
