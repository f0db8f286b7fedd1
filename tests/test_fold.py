import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import numpy as jnp

from pixtok import fold

rgb = hnp.arrays(np.uint8, st.tuples(st.integers(0, 5), st.integers(0, 5), st.just(3)))


@pytest.mark.parametrize("factor", fold.FACTORS)
def test_levels_and_residuals_are_the_image(factor):
    every_level = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 77)], -1).astype(np.uint8)
    level, residual = fold.split(fold.pack(every_level), factor)
    assert level.max() < fold.levels(factor)
    assert residual.max() < factor
    np.testing.assert_array_equal(fold.unpack(fold.join(level, residual, factor)), every_level)


@given(rgb, st.sampled_from(fold.FACTORS))
def test_round_trip(image, factor):
    colour = fold.pack(image)
    assert colour.shape == image.shape[:-1]
    np.testing.assert_array_equal(fold.join(*fold.split(colour, factor), factor), colour)
    np.testing.assert_array_equal(fold.unpack(colour), image)


@given(rgb, st.sampled_from(fold.FACTORS))
def test_folding_to_the_middle_is_off_by_half_a_bin_at_most(image, factor):
    assert np.abs(fold.folded(image, factor).astype(int) - image).max(initial=0) <= factor // 2


def test_id_is_r_plus_l_g_plus_l2_b():
    colour = fold.pack(np.array([[17, 35, 250]], np.uint8))
    assert colour.tolist() == [17 + 256 * 35 + 65536 * 250]
    assert fold.ids(colour, 16).tolist() == [1 + 16 * 2 + 256 * 15]


@given(rgb, st.sampled_from(fold.FACTORS))
def test_jax_gives_what_numpy_gives(image, factor):
    colour = fold.pack(image)
    np.testing.assert_array_equal(fold.ids(jnp.asarray(colour), factor), fold.ids(colour, factor))


@pytest.mark.parametrize("factor", fold.FACTORS)
def test_padding_is_a_colour_of_its_own(factor):
    assert fold.ids(np.array([fold.PADDING]), factor).tolist() == [fold.colours(factor)]


@pytest.mark.parametrize("factor", [0, 3, 12, 512, -2])
def test_other_factors_are_refused(factor):
    with pytest.raises(ValueError, match="fold factor must be one of"):
        fold.ids(np.zeros(1, np.int32), factor)


def test_other_colours_are_refused():
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(…, 3\); got float64 \(2, 3\)"):
        fold.pack(np.zeros((2, 3)))
