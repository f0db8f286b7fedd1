"""What runs read, as numbers with intervals.

A cell is one arm after so many images, with several seeds.  All cells read the same images, so a difference is taken
image by image.  An interval has two parts, added as squares: images, by a bootstrap that draws them anew within each
height, and seeds, by Student's t of their spread, since there are few.

The psychometric function is p(h) = (1 − λ) / (1 + (h / h₀)^(−β)), fitted by maximum likelihood to the share of images
read exactly at each height; h50 and h90 are where it is 0.5 and 0.9.  Outside of the heights that were shown it is not
known: what lies above 20 counts as 20, what lies below 6 as 6, and is said to be so.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

DRAWS = 400
NAMES = ("exact", "cer", "h50", "h90")
"""Share of images read exactly; wrong characters for each that is there; two heights."""


class Cell(NamedTuple):
    """What T seeds of one arm read of N images."""

    distance_TN: np.ndarray
    """Characters that are wrong, 0 where an image was read exactly."""
    length_N: np.ndarray
    """Of the texts."""
    height_N: np.ndarray


class Summary(NamedTuple):
    """V = 4 + K numbers: those of `NAMES`, then the share of images read exactly at each of K heights."""

    value_V: np.ndarray
    """Of all seeds together."""
    seed_TV: np.ndarray
    draw_DV: np.ndarray
    """Of resampled images; the same images in all summaries of one test."""

    @property
    def curve(self) -> np.ndarray:
        """Share of images read exactly, at each height."""
        return self.value_V[len(NAMES) :]


class Estimate(NamedTuple):
    """A number and its interval."""

    value: float
    low: float
    high: float


def fit(height_K: np.ndarray, share_K: np.ndarray) -> tuple[float, float, float]:
    """(log h₀, β, λ) of the psychometric function; as many images at each height."""
    log_K = np.log(height_K)

    def nats(x: np.ndarray) -> tuple[float, np.ndarray]:
        middle, slope, lapse = x
        rise_K = special.expit(slope * (log_K - middle))
        free_K = (1 - lapse) * rise_K
        p_K = np.clip(free_K, 1e-6, 1 - 1e-6)
        loss = -np.mean(share_K * np.log(p_K) + (1 - share_K) * np.log1p(-p_K))
        by_p_K = ((1 - share_K) / (1 - p_K) - share_K / p_K) / len(p_K) * (p_K == free_K)
        by_exponent_K = by_p_K * free_K * (1 - rise_K)
        by_slope = np.sum(by_exponent_K * (log_K - middle))
        return float(loss), np.array([-slope * np.sum(by_exponent_K), by_slope, -np.sum(by_p_K * rise_K)])

    middle = float(np.interp(0.5 * share_K.max(), np.maximum.accumulate(share_K), log_K))
    start = np.array([middle, 5.0, min(0.3, max(1e-3, 1 - share_K.max()))])
    bounds = [(log_K[0] - 1, log_K[-1] + 2), (0.5, 40), (0, 0.5)]
    found = optimize.minimize(nats, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(found.x[0]), float(found.x[1]), float(found.x[2])


def curve(height: np.ndarray, law: tuple[float, float, float]) -> np.ndarray:
    """p(h)."""
    middle, slope, lapse = law
    return (1 - lapse) * special.expit(slope * (np.log(height) - middle))


def threshold(height_K: np.ndarray, law: tuple[float, float, float], level: float) -> float:
    """The height where p is `level`, within those that were shown."""
    middle, slope, lapse = law
    if 1 - lapse <= level:
        return float(height_K[-1])
    log = middle - math.log((1 - lapse) / level - 1) / slope
    return float(np.clip(np.exp(log), height_K[0], height_K[-1]))


def _numbers(height_K: np.ndarray, right_K: np.ndarray, wrong: float, length: float) -> np.ndarray:
    law = fit(height_K, right_K)
    heights = [threshold(height_K, law, level) for level in (0.5, 0.9)]
    return np.array([right_K.mean(), wrong / length, *heights, *right_K])


def summary(cell: Cell, draws: int | None = None) -> Summary:
    """Of one cell, with as many images at each height; `draws`, None: `DRAWS`."""
    height_K, at_N = np.unique(cell.height_N, return_inverse=True)
    order_KN = np.argsort(at_N, kind="stable").reshape(len(height_K), -1)
    right_TKN, wrong_TKN = (cell.distance_TN == 0)[:, order_KN], cell.distance_TN[:, order_KN].astype(float)
    length_KN = cell.length_N[order_KN]
    rng, count = np.random.default_rng(0), order_KN.shape[1]

    def of(right_KN: np.ndarray, wrong_KN: np.ndarray) -> np.ndarray:
        return _numbers(height_K, right_KN.mean(1), float(wrong_KN.sum()), float(length_KN.sum()))

    right_KN, wrong_KN = right_TKN.mean(0), wrong_TKN.mean(0)
    drawn = []
    for _ in range(draws or DRAWS):
        weight_KN = rng.multinomial(count, np.full(count, 1 / count), size=len(height_K))
        shares = (weight_KN * right_KN).sum(1) / count
        drawn.append(
            _numbers(height_K, shares, float((weight_KN * wrong_KN).sum()), float((weight_KN * length_KN).sum()))
        )
    seeds = [of(*both) for both in zip(right_TKN, wrong_TKN, strict=True)]
    return Summary(of(right_KN, wrong_KN), np.array(seeds), np.array(drawn))


def estimate(
    one: Summary, what: str | int, other: Summary | None = None, level: float = 0.95, *, by_seed: bool = False
) -> Estimate:
    """A number of a cell, or how much larger it is than that of another; of one seed, the spread of images alone.

    `what`: one of `NAMES`, or the share of images read exactly at height number `what`, −1: the largest.
    `by_seed`: the spread is that of differences between the same seeds, of which both have as many.
    """
    at = NAMES.index(what) if isinstance(what, str) else len(NAMES) + what if what >= 0 else what
    value, draw_D = one.value_V[at], one.draw_DV[:, at]
    if other is not None:
        value, draw_D = value - other.value_V[at], draw_D - other.draw_DV[:, at]
    images = stats.norm.ppf(0.5 + level / 2) * draw_D.std()
    cells = [cell.seed_TV[:, at] for cell in (one, other) if cell is not None]
    if by_seed:
        cells = [cells[0] - cells[1]]
    fewest = min(map(len, cells))
    spread = sum(seed_T.var(ddof=1) / len(seed_T) for seed_T in cells) if fewest > 1 else 0.0
    seeds = stats.t.ppf(0.5 + level / 2, fewest - 1) * spread**0.5 if fewest > 1 else 0.0
    half = math.hypot(images, seeds)
    return Estimate(float(value), float(value - half), float(value + half))


def bound(estimate: Estimate, height_K: np.ndarray) -> str:
    """A height for people: a value at an end of what was shown is one beyond it."""
    low, high = height_K[0], height_K[-1]
    if estimate.value >= high:
        return f"> {high:g}"
    if estimate.value <= low:
        return f"< {low:g}"
    inner = [f"{max(estimate.low, low):.1f}", f"{estimate.high:.1f}" if estimate.high < high else f"> {high:g}"]
    return f"{estimate.value:.1f} ({' to '.join(inner)})"
