import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixtok import fold

rgb = hnp.arrays(np.uint8, st.tuples(st.integers(0, 5), st.integers(0, 5), st.just(3)))


@pytest.mark.parametrize("factor", fold.FACTORS)
def test_ids_and_residuals_are_the_image(factor):
    every_level = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 77)], -1).astype(np.uint8)
    ids, residual = fold.fold(every_level, factor)
    assert ids.max() < fold.colours(factor)
    assert residual.max() < factor
    np.testing.assert_array_equal(fold.unfold(ids, factor, residual), every_level)


@given(rgb, st.sampled_from(fold.FACTORS))
def test_round_trip(image, factor):
    ids, residual = fold.fold(image, factor)
    assert ids.shape == image.shape[:-1]
    np.testing.assert_array_equal(fold.unfold(ids, factor, residual), image)


@given(rgb, st.sampled_from(fold.FACTORS))
def test_unfolding_to_the_middle_is_off_by_half_a_bin_at_most(image, factor):
    middle = fold.unfold(fold.fold(image, factor)[0], factor)
    assert np.abs(middle.astype(int) - image).max(initial=0) <= factor // 2


def test_id_is_r_plus_l_g_plus_l2_b():
    ids, _ = fold.fold(np.array([[17, 35, 250]], np.uint8), 16)
    assert ids.tolist() == [1 + 16 * 2 + 256 * 15]


@pytest.mark.parametrize("factor", [0, 3, 12, 512, -2])
def test_other_factors_are_refused(factor):
    with pytest.raises(ValueError, match="fold factor must be one of"):
        fold.fold(np.zeros((1, 3), np.uint8), factor)


def test_ids_out_of_range_are_refused():
    with pytest.raises(ValueError, match="ids must lie in"):
        fold.unfold(np.array([4096]), 16)
