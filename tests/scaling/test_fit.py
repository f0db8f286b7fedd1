"""What is said of runs: three approaches, intervals, and the warnings that it must not keep to itself."""

import dataclasses
import json
import re

import numpy as np
import pytest
from scaling_data import TEXT, points, runs

from pixtok.errors import InputError
from pixtok.scaling import allocation, fit, report, surface, tables
from pixtok.scaling.law import Cost, Law


def test_three_approaches_agree_on_data_that_follows_the_law():
    study = fit.study(runs(points(TEXT, noise=1e-3)), bootstraps=100)
    exponent = TEXT.beta / (TEXT.alpha + TEXT.beta)
    assert study.powers["surface"]["N"].value == pytest.approx(exponent, abs=0.02)
    assert study.powers["isoflop"]["N"].value == pytest.approx(exponent, abs=0.06)
    for found in study.powers.values():
        assert found["N"].low < exponent < found["N"].high
    truth = TEXT.best(1e16, Cost(6, 1, 0))
    optimum = study.optimum(1e16)
    assert optimum["N"].low < truth[0] < optimum["N"].high
    assert optimum["D"].low < truth[1] < optimum["D"].high
    assert study.held_out is not None
    assert study.held_out.error < 0.01
    assert study.warnings == []


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95 % ones, of 100 draws of 36 runs with 0.2 % of noise."""
    covered, widths = np.zeros(5), []
    for seed in range(100):
        study = fit.study(runs(points(TEXT, noise=2e-3, seed=seed)), bootstraps=100)
        found = study.parameters
        covered += [found[name].low <= getattr(TEXT, name) <= found[name].high for name in Law._fields[:5]]
        widths.append(found["alpha"].high - found["alpha"].low)
    assert covered.min() >= 90
    assert np.mean(widths) < 0.03


def test_costs_that_are_not_quite_alike_do_not_bend_the_envelope():
    """Runs have whole numbers of steps."""
    given = points(TEXT)
    exact = allocation.by_envelope(given, 6 * given.n_R * given.d_R, allocation.budgets(6 * given.n_R * given.d_R)).a
    c = 6 * given.n_R * given.d_R * np.random.default_rng(0).uniform(0.99, 1.01, 36)
    assert allocation.by_envelope(given, c, allocation.budgets(c)).a == pytest.approx(exact, abs=0.01)
    assert exact == pytest.approx(TEXT.beta / (TEXT.alpha + TEXT.beta), abs=0.15)


def test_budgets_do_not_run_into_each_other():
    assert len(np.unique(allocation.budgets(np.geomspace(1e13, 1e15, 60)))) > 15
    np.testing.assert_array_equal(allocation.budgets(np.array([5.0, 1.0, 1.1, 5.2, 2.0])), [2, 0, 0, 2, 1])


def test_costs_that_do_not_go_with_parameters_are_used():
    given = points(TEXT)
    c = 30 * given.n_R**0.8 * given.d_R
    study = fit.study(dataclasses.replace(runs(given), c_R=c), bootstraps=10)
    n, d = TEXT.best(1e16, Cost(30, 0.8, 0))
    assert study.optimum(1e16)["N"].value == pytest.approx(n, rel=1e-2)
    assert study.optimum(1e16)["D"].value == pytest.approx(d, rel=1e-2)
    exponent = study.powers["surface"]
    assert exponent["D"].value == pytest.approx(1 - 0.8 * exponent["N"].value)
    with pytest.raises(InputError, match="C does not grow with N"):
        fit.study(dataclasses.replace(runs(given), c_R=given.d_R / given.n_R), bootstraps=10)


def test_repeats_that_show_nothing_are_said_not_to_be_identified():
    given = points(TEXT, unique=4e8)
    assert given.repeated
    study = fit.study(runs(given), bootstraps=5)
    assert study.fit.at_bound == ("repeats",)
    assert warned(study, "R* is not identified")
    assert not warned(study, "the law's form")


def warned(study: fit.Study, text: str) -> bool:
    return any(text in warning for warning in study.warnings)


def test_an_exponent_that_the_runs_do_not_show_is_said_to_be_at_its_bound():
    steep = points(Law(1.69, 1e25, 410.7, 5.0, 0.28))
    study = fit.study(runs(steep), bootstraps=10)
    assert study.fit.at_bound == ("alpha",)
    assert warned(study, "the fit ended at a bound (alpha)")


def test_an_optimum_beyond_the_models_that_were_trained_is_left_out():
    whole = points(TEXT)
    small = whole.n_R < 7e5
    study = fit.study(runs(whole.take(small)), bootstraps=10)
    assert warned(study, "its optimum lies beyond its largest model")


def test_a_budget_whose_losses_are_almost_on_a_line_does_not_stop_the_fit():
    """As in some bootstraps: the minimum of such a parabola is at a number of parameters that no float holds."""
    n = np.geomspace(1e5, 1e7, 5)
    log_n = np.log(n)
    given = surface.Points.of(n, 1e15 / (6 * n), np.full(5, np.inf), 4 + 0.1 * log_n + 1e-5 * log_n**2)
    (profile,) = allocation.profiles(given, np.full(5, 1e15), np.zeros(5, np.int64), Cost(6, 1, 0))
    assert "beyond its smallest model" in profile.problem
    assert np.isnan([profile.n, profile.d, profile.loss]).all()


def test_few_decades_are_warned_of():
    whole = points(TEXT)
    few = (6 * whole.n_R * whole.d_R) < 1e14
    assert warned(fit.study(runs(whole.take(few)), bootstraps=10), "decades of compute")


def test_a_floor_that_nothing_shows_is_warned_of():
    study = fit.study(runs(points(Law(0.3, 8.0, 6.0, 0.1, 0.1), noise=2e-2)), bootstraps=10)
    assert warned(study, "E is not identified")


def test_exponents_that_rest_on_single_runs_are_warned_of():
    steady = fit.study(runs(points(TEXT, noise=1e-3)), bootstraps=5)
    assert steady.influence is not None
    assert steady.influence.factor < 1.1
    assert not warned(steady, "rest on single runs")
    given = points(TEXT, noise=2e-2)
    loose = runs(given.take(given.n_R < 1e6))
    study = fit.study(loose, bootstraps=5)
    assert study.influence is not None
    name, exponent, value, without = study.influence
    assert value == getattr(study.fit.law, exponent)
    left_out = [getattr(surface.fit(loose.points.take(np.arange(18) != at)).law, exponent) for at in range(18)]
    assert without == pytest.approx(left_out[loose.names.index(name)], rel=1e-3)
    assert study.influence.factor == pytest.approx(max(max(x / value, value / x) for x in left_out), rel=1e-3)
    assert warned(study, f"without {name} alone the exponent {exponent} is {without:.2g}, not {value:.2g}")
    assert dict(tables.quality(study))["run that decides most"].startswith(f"{name}: ")


def test_unfinished_and_failed_runs_are_warned_of():
    given = runs(points(TEXT))
    given = dataclasses.replace(given, unfinished=["7: it ended after step 5 of 9"], failed=["8 has not ended"])
    study = fit.study(given, bootstraps=5)
    assert warned(study, "learning rate not yet down: 7")
    assert warned(study, "1 runs have no result: 8 has not ended")


def test_too_few_runs_are_refused():
    whole = points(TEXT)
    with pytest.raises(InputError, match="at least 10 runs; there are 5"):
        fit.study(runs(whole.take(np.arange(5))))
    with pytest.raises(InputError, match="about the same N"):
        fit.study(runs(whole.take(np.repeat(np.flatnonzero(whole.n_R == whole.n_R[0]), 2))))
    with pytest.raises(InputError, match="have 4 different pairs of N and D"):
        fit.study(runs(whole.take(np.repeat([0, 1, 6, 7], 3))))


def test_the_page_tells_all_and_needs_no_other_file(tmp_path):
    given = runs(points(TEXT, noise=1e-3))
    given.names[0] = "</script><b>"
    study = fit.study(given, bootstraps=20)
    page = report.whole({"bpd <8bit>": study}, ["pixtok report RUNS"], [], "A title")
    assert page.count("<svg") == 7
    assert "bpd &lt;8bit&gt;" in page
    assert "</script><b>" not in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)  # figures refer to their own parts
    assert "pixtok report RUNS" in page
    for row in tables.checklist(study):
        assert row[0] in page
    start = page.index("<script")
    content = json.loads(page[page.index(">", start) + 1 : page.index("</script>")])
    assert content["parameters"]["alpha"]["value"] == pytest.approx(TEXT.alpha, abs=0.01)
    assert len(content["runs"]) == 36


def test_a_fit_is_the_same_for_one_seed():
    given = runs(points(TEXT, noise=1e-3))
    first, again, other = (fit.study(given, bootstraps=5, seed=seed).parameters for seed in (0, 0, 1))
    assert first == again
    assert first != other
