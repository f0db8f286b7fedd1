"""How to share a budget between parameters and data, without the surface: IsoFLOP parabolas, and the envelope.

Both end in N* = k·C^a (approaches 2 and 1 of Hoffmann et al., arXiv 2203.15556), and D* from what runs cost.  The
envelope is that of *final* losses: a run whose learning rate has not yet decayed is worse than one that was planned to
end there.
"""

from typing import NamedTuple

import numpy as np

from pixtok.scaling.law import Cost
from pixtok.scaling.surface import Points


class Profile(NamedTuple):
    """The runs of one budget, and the parabola of their losses over log N."""

    c: float
    """FLOPs, their geometric mean."""
    run_P: np.ndarray
    """Which runs they are."""
    n: float
    """N*; NaN, as D* and the loss there, where it is not to be relied on."""
    d: float
    loss: float
    problem: str
    """Why it is not; empty where it is."""
    parabola: tuple[float, float, float]
    """Of the loss over log N."""


class Power(NamedTuple):
    """y = k·C^a."""

    k: float
    a: float

    def at(self, c: float) -> float:
        """Its value for C FLOPs."""
        return self.k * c**self.a


def power(c: np.ndarray, y: np.ndarray) -> Power:
    """By least squares on logarithms; NaN for fewer than two budgets."""
    if len(np.unique(c)) < 2:
        return Power(np.nan, np.nan)
    a, k = np.polyfit(np.log(c), np.log(y), 1)
    return Power(float(np.exp(k)), float(a))


def budgets(c_R: np.ndarray, factor: float = 1.15) -> np.ndarray:
    """Which runs cost alike, to within `factor`: a number for each run, rising with its FLOPs."""
    group, number, first = np.zeros(len(c_R), np.int64), -1, 0.0
    for at in np.argsort(c_R):
        if number < 0 or c_R[at] > factor * first:
            number, first = number + 1, c_R[at]
        group[at] = number
    return group


def profiles(points: Points, c_R: np.ndarray, group_R: np.ndarray, cost: Cost) -> list[Profile]:
    """One for each budget that has runs of at least three sizes."""
    found = []
    for group in np.unique(group_R):
        run_P = np.flatnonzero(group_R == group)
        x, y = np.log(points.n_R[run_P]), points.loss_R[run_P]
        if len(np.unique(x.round(6))) < 3:
            continue
        c = float(np.exp(np.log(c_R[run_P]).mean()))
        middle = x.mean()
        p2, p1, p0 = np.polyfit(x - middle, y, 2)
        at = middle - p1 / (2 * p2) if p2 > 0 else np.nan
        problem = ""
        if not p2 > 0:
            problem = "its losses have no minimum"
        elif not x.min() < at < x.max():
            problem = f"its optimum lies beyond its {'smallest' if at <= x.min() else 'largest'} model"
        n, loss = (np.nan, np.nan) if problem else (float(np.exp(at)), float(p0 - p1 * p1 / (4 * p2)))
        parabola = (float(p2), float(p1 - 2 * p2 * middle), float(p0 - p1 * middle + p2 * middle**2))
        found.append(Profile(c, run_P, n, cost.data(c, n), loss, problem, parabola))
    return found


def by_profiles(found: list[Profile]) -> Power:
    """N* over C, of the parabolas that have their minimum among their runs."""
    good = [profile for profile in found if not profile.problem]
    return power(np.array([profile.c for profile in good]), np.array([profile.n for profile in good]))


def envelope(group_R: np.ndarray, loss_R: np.ndarray) -> np.ndarray:
    """The best run of each budget that no run of a smaller one beats, by rising compute."""
    best = [min(np.flatnonzero(group_R == group), key=lambda at: loss_R[at]) for group in np.unique(group_R)]
    lowest = np.minimum.accumulate(loss_R[best])
    return np.array(best)[np.concatenate([[True], lowest[1:] < lowest[:-1]])]


def by_envelope(points: Points, c_R: np.ndarray, group_R: np.ndarray) -> Power:
    """N over C of the runs on the envelope.  Coarse: N* is one of the sizes that were trained."""
    on = envelope(group_R, points.loss_R)
    return power(c_R[on], points.n_R[on])
