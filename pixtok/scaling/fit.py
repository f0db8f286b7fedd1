"""All that can be said of some runs: three approaches side by side, intervals, checks and warnings."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pixtok.errors import InputError
from pixtok.scaling import allocation, surface
from pixtok.scaling.law import Cost, Law, cost
from pixtok.scaling.runs import Runs
from pixtok.scaling.surface import Floor, Points

LEAST = 10
"""Runs without which nothing is fitted: with fewer, resamples of them are nearly all alike."""
DECADES = 1.5
ALONE = 1.25
"""A factor by which one run may change an exponent: more is warned of."""


class Interval(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The runs of most compute, predicted by a law that was fitted without them."""

    names: list[str]
    predicted: list[float]
    measured: list[float]

    @property
    def error(self) -> float:
        """Largest relative error."""
        return max(abs(p / m - 1) for p, m in zip(self.predicted, self.measured, strict=True))


class Influence(NamedTuple):
    """What the law would be without one of the runs, the one that changes an exponent most."""

    name: str
    exponent: str
    """alpha, beta, or that of N*(C)."""
    value: float
    """With all runs."""
    without: float

    @property
    def factor(self) -> float:
        """Of the two, at least 1."""
        return math.exp(abs(math.log(self.without / self.value)))


@dataclasses.dataclass(frozen=True)
class Study:
    """What was found."""

    runs: Runs
    cost: Cost
    fit: surface.Fit
    projected: Law
    """By variable projection, which is another algorithm and another loss: a check."""
    draws: Law
    """Of the bootstrap, one array for each parameter."""
    floor: Floor
    profiles: list[allocation.Profile]
    powers: dict[str, dict[str, Interval]]
    """By approach: `surface`, `isoflop`, `envelope`: the exponents of N*(C) and D*(C)."""
    held_out: HeldOut | None
    influence: Influence | None
    """None where no run can be left out."""
    residual_R: np.ndarray
    """log L of the law − log L measured."""
    warnings: list[str]

    def interval(self, figure: Callable[[Law], Any]) -> Interval:
        """Of something that follows from the law."""
        return _interval(figure(self.fit.law), np.asarray(figure(self.draws)), self.runs.points)

    @property
    def parameters(self) -> dict[str, Interval]:
        """Of the law."""
        names = [name for name in Law._fields if name != "repeats" or self.runs.points.repeated]
        return {name: self.interval(lambda law, name=name: getattr(law, name)) for name in names}

    @property
    def correlation(self) -> np.ndarray:
        """Of the parameters over the bootstrap, of E, log A, log B, α and β."""
        E, A, B, alpha, beta, _ = self.draws
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.corrcoef(np.stack([E, np.log(A), np.log(B), alpha, beta]))

    def optimum(self, c: float) -> dict[str, Interval]:
        """N*, D*, D*/N* and the loss there, for a budget in FLOPs."""
        return {
            "N": self.interval(lambda law: law.best(c, self.cost)[0]),
            "D": self.interval(lambda law: law.best(c, self.cost)[1]),
            "D/N": self.interval(lambda law: law.best(c, self.cost)[1] / law.best(c, self.cost)[0]),
            "loss": self.interval(lambda law: law.loss(*law.best(c, self.cost))),
        }


def _share(points: Points) -> float:
    """Of draws below a 95 % interval.

    With R runs and p parameters the percentiles of a plain bootstrap are too narrow, by √((R − p) / R) and by a normal
    instead of Student's distribution: the expanded percentile interval (Hesterberg, arXiv 1411.5279, section 5.3).
    """
    count = len(points.loss_R)
    freedom = max(count - points.parameters, 1)
    return float(stats.norm.cdf(math.sqrt(count / freedom) * stats.t.ppf(0.025, freedom)))


def _interval(value: float, draws: np.ndarray, points: Points) -> Interval:
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(draws, [_share(points), 1 - _share(points)])
    return Interval(float(value), float(low), float(high))


def _held_out(points: Points, c_R: np.ndarray, names: list[str]) -> HeldOut | None:
    """None where too few would be left."""
    largest = allocation.budgets(c_R) == allocation.budgets(c_R).max()
    if (~largest).sum() < LEAST:
        return None
    law = surface.fit(points.take(~largest)).law
    out = points.take(largest)
    predicted = law.loss(out.n_R, surface.worth(out.d_R, out.unique_R, law.repeats))
    return HeldOut([names[at] for at in np.flatnonzero(largest)], predicted.tolist(), out.loss_R.tolist())


def _influence(points: Points, place_R: np.ndarray, names: list[str], law: Law, gamma: float) -> Influence | None:
    """By fits without each run in turn, which begin at the law of all; those of most effect again, from all starts."""

    def exponents(law: Law) -> dict[str, float]:
        return {"alpha": law.alpha, "beta": law.beta, "of N*(C)": float(_exponent(law, gamma))}

    def most(at: int, without: Law) -> Influence:
        pairs = zip(exponents(law).items(), exponents(without).values(), strict=True)
        found = [Influence(names[at], key, value, other) for (key, value), other in pairs]
        return max(found, key=lambda one: one.factor)

    kept = {at: np.delete(np.arange(len(names)), at) for at in range(len(names))}
    rest = {at: points.take(some) for at, some in kept.items() if len(np.unique(place_R[some])) > points.parameters}
    near = sorted(rest, key=lambda at: most(at, surface.solve(rest[at], [law]).law).factor, reverse=True)
    return max((most(at, surface.fit(rest[at]).law) for at in near[:3]), key=lambda one: one.factor, default=None)


def study(runs: Runs, bootstraps: int = 1000, seed: int = 0, step: Callable[[], Any] = lambda: None) -> Study:
    """Fit all of it; `step` is called after each of the bootstraps.

    Raises InputError where there are too few runs, or they do not differ in N and in D.
    """
    points, c_R, count = runs.points, runs.c_R, len(runs.names)
    if count < LEAST:
        raise InputError(f"a law of {points.parameters} parameters wants at least {LEAST} runs; there are {count}")
    for name, values in (("N", points.n_R), ("D", points.d_R)):
        if np.ptp(np.log(values)) < 0.1:
            raise InputError(f"all runs have about the same {name} ({values[0]:.3g}): a law wants several")
    costs = cost(points.n_R, points.d_R, c_R)
    group_R = allocation.budgets(c_R)
    projected, starts = surface.projected(points)
    found = surface.solve(points, starts)
    profiles = allocation.profiles(points, c_R, group_R, costs)

    rng = np.random.default_rng(seed)
    laws, powers = [], []
    place_R = np.unique(np.stack([points.n_R, points.d_R]), axis=1, return_inverse=True)[1].ravel()
    if len(np.unique(place_R)) <= points.parameters:
        raise InputError(
            f"the {count} runs have {len(np.unique(place_R))} different pairs of N and D: a law wants more"
        )
    while len(laws) < bootstraps:
        which = rng.integers(0, count, count)
        if len(np.unique(place_R[which])) <= points.parameters:  # which fits anything
            continue
        sample = points.take(which)
        laws.append(surface.solve(sample, [found.law]).law)
        powers.append(_powers(sample, c_R[which], group_R[which], costs))
        step()
    draws = Law(*np.array(laws).T)
    power_draws = np.array(powers)
    gamma = costs.gamma
    out = {"surface": _interval(_exponent(found.law, gamma), _exponent(draws, gamma), points)}
    for at, (name, value) in enumerate(zip(("isoflop", "envelope"), _powers(points, c_R, group_R, costs), strict=True)):
        out[name] = _interval(value, power_draws[:, at], points)
    both = {
        name: {"N": a, "D": Interval(*(1 - gamma * x for x in (a.value, a.high, a.low)))} for name, a in out.items()
    }
    residual = np.log(found.law.loss(points.n_R, surface.worth(points.d_R, points.unique_R, found.law.repeats)))
    made = Study(
        runs,
        costs,
        found,
        projected,
        draws,
        surface.floor(points, found.law),
        profiles,
        both,
        _held_out(points, c_R, runs.names),
        _influence(points, place_R, runs.names, found.law, gamma),
        residual - np.log(points.loss_R),
        [],
    )
    return dataclasses.replace(made, warnings=_warnings(made, float(np.isfinite(power_draws[:, 0]).mean())))


def _exponent(law: Law, gamma: float) -> Any:
    """The exponent a of N* ∝ C^a; that of D* is 1 − γa."""
    return law.beta / (law.alpha + gamma * law.beta)


def _powers(points: Points, c_R: np.ndarray, group_R: np.ndarray, costs: Cost) -> tuple[float, float]:
    """Exponents of N* over C by IsoFLOP parabolas, and by the envelope."""
    parabolas = allocation.by_profiles(allocation.profiles(points, c_R, group_R, costs))
    return parabolas.a, allocation.by_envelope(points, c_R, group_R).a


def _warnings(made: Study, told: float) -> list[str]:
    """All that a reader must know before using the figures.  `told`: of which share of draws parabolas give N*(C)."""
    runs, found, points = made.runs, made.fit, made.runs.points
    out = []
    hit = [name for name in found.at_bound if name not in ("E", "repeats")]
    if found.state == "BOUND_HIT" and hit:
        out.append(f"the fit ended at a bound ({', '.join(hit)}): the law's form does not suit these runs")
    if "repeats" in found.at_bound:
        out.append("R* is not identified: these runs do not show what repeated data is worth")
    if found.state == "SINGULAR":
        out.append("these runs cannot tell all parameters of the law apart: vary N and D more, and apart")
    elif found.state == "NOT_CONVERGED":
        out.append("the fit did not converge")
    elif found.reached > 1 and found.spread > 0.01:
        apart = f"{found.spread:.0%}" if found.spread < 1 else "more than 100 %"
        out.append(f"fits as good differ by {apart} in a parameter")
    decades = float(np.log10(runs.c_R.max() / runs.c_R.min()))
    if decades < DECADES:
        out.append(f"runs span {decades:.2f} decades of compute: less than {DECADES} says little beyond them")
    for profile in made.profiles:
        if profile.problem:
            out.append(f"IsoFLOP {profile.c:.2g}: {profile.problem}; it is left out of N*(C)")
    if not made.profiles:
        out.append("no budget has runs of three sizes: there are no IsoFLOP parabolas")
    elif told < 0.95:
        out.append(f"IsoFLOP parabolas give N*(C) in {told:.0%} of the bootstraps; their interval is of those")
    least = float(points.loss_R.min())
    if made.floor.low == 0 or made.floor.high > 0.998 * least:
        where = "0" if made.floor.low == 0 else "the smallest loss"
        out.append(
            f"E is not identified: its profile reaches {where} ({made.floor.low:.3g} to {made.floor.high:.3g}); do not "
            "read it as an entropy, and do not extrapolate far"
        )
    if len(made.draws.E) * _share(points) < 1:
        out.append(
            f"for so few runs the intervals are the extremes of {len(made.draws.E)} bootstraps, and may be too narrow"
        )
    if made.cost.spread > 0.1:
        out.append(f"C = κ N^γ D is wrong by up to {made.cost.spread:.0%}: N*, D* rest on it")
    out += [f"learning rate not yet down: {name}" for name in runs.unfinished]
    if any(rate > 0.2 for rate in runs.final_rates):
        out.append("schedules end above 0.2 of the peak learning rate: losses are not those of finished runs")
    if runs.failed:
        out.append(f"{len(runs.failed)} runs have no result: {runs.failed[0]}")
    if points.repeated:
        out.append(
            f"up to {float((points.d_R / points.unique_R).max()):.1f} epochs: the law counts repeats less, by R*; "
            "parabolas, envelope and variable projection count them in full; N* and D* are for new data alone"
        )
    if made.held_out is None:
        out.append("too few runs to leave the largest out and predict them")
    elif made.held_out.error > 0.02:
        out.append(f"without the largest runs, the law misses them by {made.held_out.error:.1%}")
    if made.influence is not None and made.influence.factor > ALONE:
        name, exponent, value, without = made.influence
        out.append(
            f"exponents rest on single runs: without {name} alone the exponent {exponent} is {without:.2g}, not "
            f"{value:.2g}; more runs, or seeds, would steady them"
        )
    one, other = (made.powers[name]["N"] for name in ("surface", "isoflop"))
    if one.low > other.high or other.low > one.high:
        out.append("surface and parabolas disagree on how N* grows: their intervals do not meet")
    return out
