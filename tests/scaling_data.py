"""Losses that follow a law."""

import numpy as np

from pixtok.scaling.law import Law, worth
from pixtok.scaling.runs import Runs
from pixtok.scaling.surface import Points

TEXT = Law(1.69, 406.4, 410.7, 0.34, 0.28)


def points(law: Law, noise: float = 0.0, seed: int = 0, unique: float = np.inf) -> Points:
    """6 sizes at 6 budgets."""
    n, c = map(np.ravel, np.meshgrid(np.geomspace(1e5, 1e7, 6), np.geomspace(1e13, 1e15, 6)))
    d = c / (6 * n)
    loss = law.loss(n, worth(d, unique, law.repeats))
    loss *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    return Points.of(n, d, np.full(len(n), unique), loss)


def runs(given: Points) -> Runs:
    """At 6 FLOPs for each parameter and item of data."""
    names = [str(number) for number in range(len(given.n_R))]
    meaning = {"N": "parameters", "D": "tokens", "C": "6·N·D", "L": "a loss"}
    return Runs(names, given, 6 * given.n_R * given.d_R, meaning, [], [], [])
