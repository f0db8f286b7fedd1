"""Are the fits of `pixtok fit` right?  Laws that are known, with and without noise.

python experiments/synthetic_law.py        # → results/synthetic_law.json, minutes on one core

36 runs, 6 sizes at 6 budgets over two decades, of the law of Hoffmann et al. (arXiv 2203.15556, eq. 10).
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pixtok.scaling import fit, surface
from pixtok.scaling.law import Cost, Law
from pixtok.scaling.runs import Runs

TRUE = Law(1.69, 406.4, 410.7, 0.34, 0.28)
RESULT = Path(__file__).parent / "results" / "synthetic_law.json"
NAMES = Law._fields[:5]


def runs(noise: float, seed: int) -> Runs:
    n, c = map(np.ravel, np.meshgrid(np.geomspace(1e5, 1e7, 6), np.geomspace(1e13, 1e15, 6)))
    d = c / (6 * n)
    loss = TRUE.loss(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    points = surface.Points.of(n, d, d, loss)
    return Runs([str(at) for at in range(len(n))], points, c, {}, [], [], [])


def recovery() -> dict[str, float]:
    """Largest relative error of a parameter, without noise."""
    points = runs(0, 0).points
    found, (other, _) = surface.fit(points).law, surface.projected(points)
    return {
        name: float(max(abs(a / b - 1) for a, b in zip(law[:5], TRUE[:5], strict=True)))
        for name, law in (("huber", found), ("variable projection", other))
    }


def coverage(draws: int = 100, bootstraps: int = 200) -> dict[str, int]:
    """How many of so many 95 % intervals hold the truth, with 0.2 % of noise."""
    truth = {name: getattr(TRUE, name) for name in NAMES}
    n, d = TRUE.best(1e16, Cost(6, 1, 0))
    truth |= {"N*": n, "D*": d, "loss at N*, D*": TRUE.loss(n, d)}
    held = dict.fromkeys(truth, 0)
    for seed in range(draws):
        study = fit.study(runs(2e-3, seed), bootstraps, seed)
        optimum = study.optimum(1e16)
        found = study.parameters | {"N*": optimum["N"], "D*": optimum["D"], "loss at N*, D*": optimum["loss"]}
        for name, x in truth.items():
            held[name] += int(found[name].low <= x <= found[name].high)
    return held


def seconds() -> dict[str, float]:
    """Of one fit, the median of 20, and of 4,000 bootstraps with all else."""
    given = runs(2e-3, 0)
    took = []
    for _ in range(20):
        begin = time.perf_counter()
        surface.fit(given.points)
        took.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    fit.study(given, 4000)
    return {"fit": float(np.median(took)), "4000 bootstraps": time.perf_counter() - begin}


if __name__ == "__main__":
    result: dict[str, Any] = {"largest error without noise": recovery(), "seconds": seconds()}
    result["of 100 intervals, hold the truth"] = coverage()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
