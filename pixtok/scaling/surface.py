"""Fits of the whole surface L(N, D): by Huber loss from many starts, and by variable projection.

With e = log E, a = log A, b = log B the law's logarithm is LSE(e, a − α log N, b − β log D'), and what is minimised is
Huber's loss of its distance from log L, with δ = 1e-3 (Hoffmann et al., arXiv 2203.15556, appendix D.3): a run that
went wrong weighs little.  The starts come from variable projection: for given α and β the law is linear in E, A and B,
so a grid of the two exponents is searched in closed form.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from pixtok.scaling.law import Law, worth

DELTA = 1e-3
STARTS = 6
_EXPONENTS = np.geomspace(0.02, 2.0, 28)
_LOW, _HIGH = 0.01, 3.0  # of both exponents
_REPEATS = (0.1, 1e4)
_AGAIN = (1.0, 15.0, 200.0)  # where searches for R* begin
_EPOCHS = 1.2  # fewer say nothing of R*


class Points(NamedTuple):
    """R runs: parameters, data seen, data that differs, loss."""

    n_R: np.ndarray
    d_R: np.ndarray
    unique_R: np.ndarray
    """At most D."""
    loss_R: np.ndarray
    repeated: bool
    """Whether a run has seen its data so often that the law must tell repeats from new data."""

    @classmethod
    def of(cls, n: np.ndarray, d: np.ndarray, unique: np.ndarray, loss: np.ndarray) -> "Points":
        """Runs whose data that differs may be told as more than they saw."""
        return cls(n, d, np.minimum(unique, d), loss, bool(np.any(d > _EPOCHS * unique)))

    def take(self, which: np.ndarray) -> "Points":
        """Some of them: numbers, or a mask."""
        return Points(*(array[which] for array in self[:4]), repeated=self.repeated)

    @property
    def parameters(self) -> int:
        """Of the law."""
        return 6 if self.repeated else 5


class Fit(NamedTuple):
    """The law that fits best, and how sure that is."""

    law: Law
    objective: float
    """Mean of Huber's loss over runs."""
    state: str
    """CONVERGED, BOUND_HIT, SINGULAR (the runs do not tell all parameters apart) or NOT_CONVERGED."""
    at_bound: tuple[str, ...]
    starts: int
    reached: int
    """Starts that ended at the best objective."""
    spread: float
    """Largest relative difference of a parameter among those."""


def _log_law(theta: np.ndarray, points: Points, means: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(log L of each run, its derivative by each parameter); N and D are over their means, so that parameters are
    nearly independent.
    """
    e, a, b, alpha, beta = theta[:5]
    x = np.log(points.n_R) - means[0]
    repeats = np.exp(theta[5]) if len(theta) > 5 else np.inf
    y = np.log(worth(points.d_R, points.unique_R, repeats)) - means[1]
    terms = np.stack([np.full_like(x, e), a - alpha * x, b - beta * y])
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    shares = shares / total
    columns = [*shares, -x * shares[1], -y * shares[2]]
    if len(theta) > 5:
        # d log D' / d log R*
        u = (points.d_R / points.unique_R - 1) / repeats
        change = repeats * (-np.expm1(-u) - u * np.exp(-u))
        columns.append(-beta * shares[2] * change / (1 - repeats * np.expm1(-u)))
    return top + np.log(total), np.stack(columns, 1)


def _means(points: Points) -> tuple[float, float]:
    return float(np.log(points.n_R).mean()), float(np.log(points.d_R).mean())


def _theta(law: Law, means: tuple[float, float], repeated: bool) -> np.ndarray:
    tiny = 1e-12
    values = [
        np.log(max(law.E, tiny)),
        np.log(max(law.A, tiny)) - law.alpha * means[0],
        np.log(max(law.B, tiny)) - law.beta * means[1],
        law.alpha,
        law.beta,
    ]
    return np.array([*values, np.log(min(law.repeats, 1e3))] if repeated else values)


def _law(theta: np.ndarray, means: tuple[float, float]) -> Law:
    e, a, b, alpha, beta = (float(value) for value in theta[:5])
    repeats = float(np.exp(theta[5])) if len(theta) > 5 else np.inf
    A, B = np.exp(a + alpha * means[0]), np.exp(b + beta * means[1])
    return Law(float(np.exp(e)), float(A), float(B), alpha, beta, repeats)


def _bounds(points: Points, repeated: bool) -> tuple[np.ndarray, np.ndarray]:
    top = float(np.log(points.loss_R.max()))
    low, high = [top - 9, top - 12, top - 12, _LOW, _LOW], [top, top + 3, top + 3, _HIGH, _HIGH]
    if repeated:
        low, high = [*low, np.log(_REPEATS[0])], [*high, np.log(_REPEATS[1])]
    return np.array(low), np.array(high)


def linear(points: Points, alpha: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E, A, B of at least 0 for each pair of exponents, sums of squared relative errors): least squares.

    All 7 sets of terms that may be positive are solved, and the best that is feasible taken.
    """
    x_GR = np.exp(-alpha[:, None] * (np.log(points.n_R) - _means(points)[0]))
    y_GR = np.exp(-beta[:, None] * (np.log(points.d_R) - _means(points)[1]))
    design = np.stack([np.ones_like(x_GR), x_GR, y_GR], -1) / points.loss_R[:, None]
    gram = np.einsum("gri,grj->gij", design, design)
    right = design.sum(1)
    best = np.full(len(alpha), np.inf)
    weights = np.zeros((len(alpha), 3))
    for size in (3, 2, 1):
        for kept in map(list, itertools.combinations(range(3), size)):
            part = gram[:, kept][:, :, kept]
            scale = np.sqrt(np.diagonal(part, axis1=1, axis2=2))
            unit = part / (scale[:, :, None] * scale[:, None, :]) + 1e-13 * np.eye(size)
            solved = np.linalg.solve(unit, (right[:, kept] / scale)[..., None])[..., 0] / scale
            left = ((np.einsum("grk,gk->gr", design[:, :, kept], solved) - 1) ** 2).sum(1)
            better = (solved >= 0).all(1) & (left < best)
            best = np.where(better, left, best)
            weights[better] = 0
            weights[np.ix_(better, kept)] = solved[better]
    scale = np.stack([np.ones(len(alpha)), np.exp(alpha * _means(points)[0]), np.exp(beta * _means(points)[1])], 1)
    return weights * scale, best


def _law_of(values: list[Any]) -> Law:
    return Law._make([*map(float, values), np.inf][:6])


def projected(points: Points) -> tuple[Law, list[Law]]:
    """(The best law by variable projection, the best of the grid, for starts).  Repeats count in full."""
    alpha, beta = (grid.ravel() for grid in np.meshgrid(_EXPONENTS, _EXPONENTS, indexing="ij"))
    weights, errors = linear(points, alpha, beta)
    grid = errors.reshape(len(_EXPONENTS), -1)
    around = np.pad(grid, 1, constant_values=np.inf)
    valley = np.all(
        [grid <= around[1 + i : 1 + i + len(grid), 1 + j : 1 + j + len(grid)] for i in (-1, 0, 1) for j in (-1, 0, 1)],
        axis=0,
    ).ravel()
    order = np.lexsort((errors, ~valley))[:STARTS]
    again = _AGAIN if points.repeated else (np.inf,)
    starts = [_law_of([*weights[at], alpha[at], beta[at], repeats]) for at in order for repeats in again]

    def left(logs: np.ndarray) -> float:
        return float(linear(points, *np.exp(logs)[:, None])[1][0])

    first = np.log([starts[0].alpha, starts[0].beta])
    found = optimize.minimize(left, first, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-16}).x
    exponents = np.exp(found)
    E, A, B = linear(points, *exponents[:, None])[0][0]
    return _law_of([E, A, B, *exponents]), starts


def _descend(points: Points, start: Law, delta: float, floor: float | None) -> Any:
    """What `scipy.optimize.least_squares` finds from here; with E held at `floor` where that is given."""
    means, repeated = _means(points), points.repeated
    low, high = _bounds(points, repeated)
    theta, target, first = _theta(start, means, repeated), np.log(points.loss_R), 0 if floor is None else 1
    theta = np.clip(theta, low + 1e-6, high - 1e-6)
    if floor is not None:
        theta[0] = np.log(floor)

    def full(free: np.ndarray) -> np.ndarray:
        return np.concatenate([theta[:first], free])

    end = optimize.least_squares(
        lambda free: _log_law(full(free), points, means)[0] - target,
        theta[first:],
        jac=lambda free: _log_law(full(free), points, means)[1][:, first:],  # pyright: ignore[reportArgumentType]
        bounds=(low[first:], high[first:]),
        loss="huber",
        f_scale=delta,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-14,
        max_nfev=400,
    )
    end.law, end.margin = _law(full(end.x), means), np.minimum(end.x - low[first:], high[first:] - end.x)
    return end


def solve(points: Points, starts: list[Law], delta: float = DELTA) -> Fit:
    """The law of the smallest Huber loss that any of the starts leads to."""
    ends = [_descend(points, start, delta, None) for start in starts]
    best = min(ends, key=lambda end: end.cost)
    alike = [end for end in ends if end.cost <= best.cost * 1.001 + 1e-15]
    at_bound = tuple(name for name, margin in zip(Law._fields, best.margin, strict=False) if margin < 1e-4)
    scaled = best.jac / np.maximum(np.linalg.norm(best.jac, axis=0), 1e-300)
    state = "CONVERGED" if best.success else "NOT_CONVERGED"
    if best.success and (len(points.loss_R) < len(best.x) or np.linalg.cond(scaled) > 1e7):
        state = "SINGULAR"
    if best.success and at_bound:
        state = "BOUND_HIT"
    apart = [np.abs(np.array(end.law[:5]) / np.array(best.law[:5]) - 1).max() for end in alike]
    return Fit(best.law, best.cost / len(points.loss_R), state, at_bound, len(starts), len(alike), float(max(apart)))


def fit(points: Points) -> Fit:
    """From the valleys that variable projection sees."""
    return solve(points, projected(points)[1])


class Floor(NamedTuple):
    """What the runs tell of E: a 95 % interval by its profile."""

    low: float
    high: float
    E_G: np.ndarray
    ratio_G: np.ndarray
    """Sum of squares with E held there, over the smallest."""
    limit: float
    """Of the ratio."""


def floor(points: Points, law: Law) -> Floor:
    """E is held at each of a grid from 0 to the smallest loss and all else fitted anew.

    The interval holds those E whose sum of squares, with Huber's loss for squares, is at most 1 + F(1, R − p) / (R − p)
    times the smallest: 95 % where residuals are below δ, some more (about 97 %) where most are above.
    """
    least = float(points.loss_R.min())
    grid = np.unique(np.concatenate([np.linspace(1e-3, 0.999, 40) * least, [law.E]]))
    start = int(np.searchsorted(grid, law.E))
    freedom = max(len(points.loss_R) - points.parameters, 1)
    limit = 1 + float(stats.f.ppf(0.95, 1, freedom)) / freedom
    costs, laws = np.zeros(len(grid)), dict[int, Law]()
    for steps in (range(start, len(grid)), range(start - 1, -1, -1)):  # outwards, each from its neighbour
        near = law
        for at in steps:
            end = _descend(points, near, DELTA, float(grid[at]))
            near = laws[at] = end.law
            costs[at] = end.cost
    smallest = max(costs.min(), 1e-30)
    inside = np.flatnonzero(costs <= limit * smallest)

    def edge(last: int, beyond: int) -> float:
        """Where between two points of the grid the limit is passed."""
        low, high, near = float(grid[last]), float(grid[beyond]), laws[last]
        for _ in range(14):
            end = _descend(points, near, DELTA, (low + high) / 2)
            if end.cost <= limit * smallest:
                low, near = (low + high) / 2, end.law
            else:
                high = (low + high) / 2
        return low

    bottom, top = int(inside.min()), int(inside.max())
    low = edge(bottom, bottom - 1) if bottom else 0.0
    high = edge(top, top + 1) if top + 1 < len(grid) else least
    return Floor(low, high, grid, costs / smallest, limit)
