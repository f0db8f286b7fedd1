import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtok import windows

SIZES = [(1, 1), (1, 223), (223, 1), (17, 223), (16, 16), (32, 48), (15, 15), (33, 17)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_join_is_the_inverse_of_split(height, width, channels):
    image = np.random.default_rng(0).integers(256, size=(height, width, *channels), dtype=np.uint8)
    np.testing.assert_array_equal(windows.join(windows.split(image, 16), height, width), image)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 18))
def test_windows_by_definition(height, width, side):
    image = np.arange(height * width).reshape(height, width)
    split = windows.split(image, side, fill=-1)
    place = windows.geometry(height, width, side)
    rows, columns = windows.grid(height, width, side)
    for m in range(rows * columns):
        row, column = divmod(m, columns)
        expected = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
        count = expected.size
        assert place.shape_M2[m].tolist() == list(expected.shape)
        assert place.place_M4[m].tolist() == [row, column, rows, columns]
        np.testing.assert_array_equal(split[m, :count], expected.ravel())
        assert (split[m, count:] == -1).all()
    np.testing.assert_array_equal(windows.join(split, height, width), image)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not make an image"):
        windows.join(np.zeros((3, 16)), 4, 4)
    with pytest.raises(ValueError, match="must be positive"):
        windows.geometry(0, 4, 4)
