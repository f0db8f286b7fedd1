"""Laws that are known are found again."""

import numpy as np
import pytest
from scaling_data import TEXT, points

from pixtok.scaling import surface
from pixtok.scaling.law import Cost, Law, cost, worth


@pytest.mark.parametrize(
    "law",
    [TEXT, Law(0.9, 30.0, 900.0, 0.25, 0.45), Law(2.5, 5.0, 7.0, 0.13, 0.13), Law(0.05, 1e3, 1e4, 0.6, 0.7)],
    ids=["text", "data-hungry", "images", "hardly any floor"],
)
def test_a_surface_without_noise_is_recovered(law):
    found = surface.fit(points(law))
    assert found.state == "CONVERGED"
    np.testing.assert_allclose(found.law[:5], law[:5], rtol=1e-3)
    other, _ = surface.projected(points(law))
    np.testing.assert_allclose(other[:5], law[:5], rtol=1e-3)


def test_a_run_that_went_wrong_weighs_little():
    given = points(TEXT, noise=1e-4)
    loss = given.loss_R.copy()
    loss[7] *= 1.3
    found = surface.fit(given._replace(loss_R=loss)).law
    assert abs(found.alpha - TEXT.alpha) < 0.005
    assert abs(found.beta - TEXT.beta) < 0.005


def test_what_repeated_data_is_worth_is_recovered():
    law = TEXT._replace(repeats=12.0)
    found = surface.fit(points(law, unique=1e6))
    assert found.law.repeats == pytest.approx(12, rel=1e-2)
    np.testing.assert_allclose(found.law[:5], law[:5], rtol=1e-2)


def test_data_seen_again_is_worth_less_and_less():
    d = np.array([0.5, 1.0, 2.0, 5.0, 1e6])
    np.testing.assert_allclose(worth(d, 1.0, 15.0)[:2], d[:2])
    assert worth(d, 1.0, 15.0)[2] == pytest.approx(2, abs=0.04)  # the second epoch is nearly as good as new data
    assert worth(d, 1.0, 15.0)[4] == pytest.approx(16)  # and no number of them is worth more than 1 + R*
    np.testing.assert_array_equal(worth(d, 1.0, np.inf), d)


def test_data_that_is_not_known_to_repeat_does_not(tmp_path):
    given = points(TEXT)
    unique = np.where(np.arange(36) % 2, np.inf, given.d_R / 3)
    mixed = surface.Points.of(given.n_R, given.d_R, unique, given.loss_R)
    assert mixed.repeated
    assert np.isfinite(surface.fit(mixed).objective)
    assert not surface.Points.of(given.n_R, given.d_R, 0.9 * given.d_R, given.loss_R).repeated


def test_derivatives_of_the_law_are_its_own():
    given = points(TEXT._replace(repeats=5.0), unique=2e6)
    means = surface._means(given)
    theta = surface._theta(TEXT._replace(repeats=5.0), means, True)
    _, jacobian = surface._log_law(theta, given, means)
    for at in range(len(theta)):
        step = np.zeros_like(theta)
        step[at] = 1e-6
        high, low = (surface._log_law(theta + sign * step, given, means)[0] for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, at], (high - low) / 2e-6, rtol=1e-5, atol=1e-8)


def test_the_profile_of_the_floor_tells_whether_there_is_one():
    clear = surface.floor(points(TEXT, noise=1e-3), surface.fit(points(TEXT, noise=1e-3)).law)
    assert clear.low < TEXT.E < clear.high
    assert clear.low / TEXT.E > 0.8
    short = points(Law(0.3, 8.0, 6.0, 0.1, 0.1), noise=2e-2)
    assert surface.floor(short, surface.fit(short).law).low == 0


def test_the_optimum_is_where_the_loss_is_least():
    costs = Cost(30.0, 0.9, 0.0)
    n, d = TEXT.best(1e18, costs)
    assert 30 * n**0.9 * d == pytest.approx(1e18)
    others = n * np.geomspace(0.5, 2, 41)
    losses = TEXT.loss(others, costs.data(1e18, others))
    assert np.argmin(losses) == 20


def test_what_runs_cost_is_recovered():
    n, d = np.geomspace(1e5, 1e7, 5), np.geomspace(1e8, 1e6, 5)
    found = cost(n, d, 40 * n**0.85 * d)
    assert found.kappa == pytest.approx(40)
    assert found.gamma == pytest.approx(0.85)
    assert found.spread < 1e-9
