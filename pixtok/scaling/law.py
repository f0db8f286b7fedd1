"""The law that everything here is about, and what follows from it.

    L(N, D) = E + A / N^α + B / D^β                              (Hoffmann et al., arXiv 2203.15556, eq. 2)

N are parameters, D is data seen, L is a loss.  When D is more than the U of it that differ, the rest repeats, and data
seen counts as (Muennighoff et al., arXiv 2305.16264, eq. 5)

    D' = U + U·R* (1 − exp(−(D/U − 1) / R*))

What a run costs is C = κ·N^γ·D FLOPs: 6·N·D in a plain transformer, while streams of other widths make γ differ from 1.
"""

from typing import Any, NamedTuple

import numpy as np

from pixtok.errors import InputError


class Cost(NamedTuple):
    """C = κ·N^γ·D."""

    kappa: float
    gamma: float
    spread: float
    """Largest relative error of it over the runs that it was fitted to."""

    def data(self, c: Any, n: Any) -> Any:
        """What a budget buys for so many parameters."""
        return c / (self.kappa * n**self.gamma)


def cost(n_R: np.ndarray, d_R: np.ndarray, c_R: np.ndarray) -> Cost:
    """By least squares on logarithms; γ = 1 where all runs have one N.

    Raises InputError where runs of more parameters cost less.
    """
    x, y = np.log(n_R), np.log(c_R / d_R)
    varied = np.ptp(x) > 1e-9
    gamma = float(np.polyfit(x, y, 1)[0]) if varied else 1.0
    if gamma < 0.05:
        raise InputError(f"C does not grow with N (C / D goes with N to the power {gamma:.2f}): is it training FLOPs?")
    kappa = float(np.exp(np.mean(y - gamma * x)))
    return Cost(kappa, gamma, float(np.max(np.abs(np.expm1(y - gamma * x - np.log(kappa))))))


def worth(d: Any, unique: Any, repeats: float) -> Any:
    """D': what data seen is worth, with R* = `repeats`."""
    if not np.isfinite(repeats):
        return d
    unique = np.minimum(d, unique)
    return unique - unique * repeats * np.expm1(-(d / unique - 1) / repeats)


class Law(NamedTuple):
    """Floats, or arrays of one draw each."""

    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any
    repeats: Any = np.inf
    """R*; infinite where repeated data is worth as much as new."""

    def loss(self, n: Any, d: Any) -> Any:
        """Of N parameters after data worth D."""
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def best(self, c: Any, cost: Cost) -> tuple[Any, Any]:
        """(N*, D*): the smallest loss for C FLOPs, in closed form, of data that does not repeat."""
        alpha, beta, gamma = self.alpha, self.beta, cost.gamma
        # αA/N^α = γβB/D^β with D = C / (κN^γ)
        power = 1 / (alpha + gamma * beta)
        n = (alpha * self.A / (gamma * beta * self.B)) ** power * (c / cost.kappa) ** (beta * power)
        return n, cost.data(c, n)
