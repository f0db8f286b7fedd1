"""What was found, as tables for a terminal and a page, and as JSON."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixtok.scaling.fit import Interval, Study
from pixtok.scaling.surface import DELTA

Table = list[list[str]]

LITERATURE: Table = [
    ["", "α", "β", "D*/N*", "source"],
    ["text", "0.34", "0.28", "about 20, by approaches 1 and 2", "Hoffmann et al., arXiv 2203.15556"],
    ["text, the same runs fitted anew", "0.348", "0.366", "about 20", "Besiroglu et al., arXiv 2404.10102"],
    ["images, as VQ tokens", "0.13", "0.13", "", "Aghajanyan et al., arXiv 2301.03728"],
    ["images, as pixels", "", "", "10 to 20 times that of text", "arXiv 2511.08704"],
]


def number(value: float) -> str:
    """Three digits."""
    return "-" if not math.isfinite(value) else f"{value:.3g}" if value < 1e4 else f"{value:.2e}"


def _band(figure: Interval, digits: str = "") -> list[str]:
    show = (lambda x: f"{x:{digits}}" if math.isfinite(x) else "-") if digits else number
    return [show(figure.value), f"{show(figure.low)} to {show(figure.high)}"]


def summary(study: Study) -> str:
    """What was found, and how far to trust it, in four sentences."""
    c_R, parts, held = study.runs.c_R, study.parameters, study.held_out
    top = float(c_R.max())
    best, exponents = study.optimum(top), study.powers["surface"]
    law = f"L = {number(parts['E'].value)} + {number(parts['A'].value)} / N^{parts['alpha'].value:.3f}"
    law += f" + {number(parts['B'].value)} / D^{parts['beta'].value:.3f}"
    tried = "" if held is None else f"; {len(held.names)} largest runs, left out, are predicted {held.error:.1%} wrong"
    return (
        f"{len(study.runs.names)} runs over {np.log10(top / c_R.min()):.1f} decades of compute give {law}, which "
        f"misses them by {np.sqrt(np.mean(study.residual_R**2)):.1%} (root mean square){tried}. "
        f"Of {top:.1e} FLOPs, the most that any run took, it gives {number(best['N'].value)} parameters "
        f"{number(best['D'].value)} of data (95 %: {number(best['N'].low)} to {number(best['N'].high)} parameters) and "
        f"expects {best['loss'].value:.3f}; the best run measured {float(study.runs.points.loss_R.min()):.3f}. "
        f"With more compute parameters grow as C^{exponents['N'].value:.2f}, data as C^{exponents['D'].value:.2f}. "
        + (
            f"{len(study.warnings)} warnings below say what these runs do not tell."
            if study.warnings
            else "Nothing here warns against it."
        )
    )


def parameters(study: Study) -> Table:
    """Of the law."""
    other = study.projected._asdict()
    lines = [
        [name, *_band(figure, "" if name in "AB" else ".4f"), number(other[name]) if name != "repeats" else "-"]
        for name, figure in study.parameters.items()
    ]
    return [["parameter", "Huber fit", "95 % interval", "variable projection"], *lines]


def quality(study: Study) -> Table:
    """Of the fit."""
    fit, held, one, far_R = study.fit, study.held_out, study.influence, np.abs(study.residual_R)
    return [
        ["runs", str(len(study.runs.names))],
        ["compute", f"{study.runs.c_R.min():.2e} to {study.runs.c_R.max():.2e} FLOPs"],
        ["state", fit.state + (f": {', '.join(fit.at_bound)}" if fit.at_bound else "")],
        ["starts", f"{fit.reached} of {fit.starts} end at the best fit; parameters differ by {fit.spread:.1e}"],
        [
            "residuals",
            f"{np.sqrt(np.mean(far_R**2)):.2%} rms, {far_R.max():.2%} at most ({study.runs.names[far_R.argmax()]})",
        ],
        ["E by its profile", f"{number(study.floor.low)} to {number(study.floor.high)}"],
        [
            "largest runs, left out and predicted",
            "-" if held is None else f"{held.error:.2%} wrong at most ({len(held.names)} runs)",
        ],
        [
            "run that decides most",
            "-"
            if one is None
            else f"{one.name}: without it the exponent {one.exponent} is {one.without:.3f}, not {one.value:.3f}",
        ],
        ["cost", f"C = {study.cost.kappa:.3g} N^{study.cost.gamma:.3f} D, within {study.cost.spread:.1%}"],
    ]


def approaches(study: Study) -> Table:
    """How N* and D* grow with C, three ways."""
    names = {"surface": "surface L(N, D)", "isoflop": "IsoFLOP parabolas", "envelope": "envelope of final losses"}
    lines = [
        [names[name], *_band(found["N"], ".3f"), *_band(found["D"], ".3f")] for name, found in study.powers.items()
    ]
    return [["approach", "a of N* ~ C^a", "95 % interval", "b of D* ~ C^b", "95 % interval"], *lines]


def budgets(study: Study, asked: tuple[float, ...] = ()) -> Table:
    """N*, D* and what they give, for some budgets: the largest run's, 10 and 100 times that, unless asked."""
    top = float(study.runs.c_R.max())
    lines = []
    for c in asked or (top, 10 * top, 100 * top):
        found = study.optimum(c)
        beyond = f", {c / top:.3g} times beyond the runs" if c > 1.001 * top else ""
        lines.append([f"{c:.2e}{beyond}", *(text for key in ("N", "D", "D/N", "loss") for text in _band(found[key]))])
    head = ["FLOPs C", "N*", "95 %", "D*", "95 %", "D*/N*", "95 %", "loss", "95 %"]
    return [head, *lines]


def predictions(study: Study, points: Sequence[tuple[float, float]]) -> Table:
    """The loss of runs that need not exist, of (N, D)."""
    lines = [
        [number(n), number(d), *_band(study.interval(lambda law, n=n, d=d: law.loss(n, d)), ".4f")] for n, d in points
    ]
    return [["N", "D", "loss", "95 % interval"], *lines]


def correlations(study: Study) -> Table:
    """Of parameters, over the bootstrap."""
    names = ["E", "log A", "log B", "α", "β"]
    return [
        ["", *names],
        *([name, *(f"{x:.2f}" for x in row)] for name, row in zip(names, study.correlation, strict=True)),
    ]


def checklist(study: Study) -> Table:
    """What a paper on scaling laws should state (Li et al., "(Mis)fitting", arXiv 2502.18969), of these runs."""
    runs, points = study.runs, study.runs.points
    sizes, levels = np.unique(points.n_R.round(6)), study.profiles
    epochs = float((points.d_R / points.unique_R).max())
    repeated = f"up to {epochs:.2f} epochs; repeats count in full" if runs.told else "repeats: not told"
    if points.repeated:
        repeated = f"up to {epochs:.1f} epochs; D' = U + U·R*(1 − exp(−(D/U − 1)/R*)) counts instead of D"
    ends = ", ".join(map(str, sorted(set(runs.final_rates))))
    schedule = f"falls to {ends} of the peak by the end of each run's own length; unfinished: {len(runs.unfinished)}"
    return [
        ["Law", f"L(N, D) = E + A/N^α + B/D^β, {points.parameters} parameters; {repeated}"],
        *([name, runs.meaning[name]] for name in ("N", "D", "C", "L") if name in runs.meaning),
        ["Models trained", f"{len(runs.names)}, of {len(sizes)} sizes: {number(sizes[0])} to {number(sizes[-1])}"],
        ["Data", f"D from {number(points.d_R.min())} to {number(points.d_R.max())}"],
        [
            "Compute",
            f"{len(levels)} budgets with an IsoFLOP profile; C from {number(runs.c_R.min())} to "
            f"{number(runs.c_R.max())} ({np.log10(runs.c_R.max() / runs.c_R.min()):.2f} decades)",
        ],
        ["Learning rate", schedule if runs.told else "not told"],
        [
            "Points",
            "one for each run, at its end; no intermediate checkpoints, no smoothing"
            if runs.told
            else "as in the table",
        ],
        ["Left out", f"{len(runs.failed)} runs without a result; nothing else"],
        ["Objective", f"Huber, delta = {DELTA}, of log L − log of the law; all runs weigh the same"],
        [
            "Optimizer",
            f"scipy.optimize.least_squares (trust region, exact derivatives) from {study.fit.starts} starts, "
            "the valleys of a 28 × 28 grid of exponents by variable projection",
        ],
        [
            "Intervals",
            f"95 %, of {len(np.atleast_1d(study.draws.E))} bootstraps that draw runs, expanded for few runs "
            "(Hesterberg 2014)",
        ],
        [
            "Checks",
            "variable projection, IsoFLOP parabolas, envelope, profile of E; largest runs left out, each run left out",
        ],
        ["Points given", "in this file"],
    ]


def as_json(
    study: Study, asked: tuple[float, ...] = (), predicted: Sequence[tuple[float, float]] = ()
) -> dict[str, Any]:
    """All of it, for programs; the points as well.  `asked`: budgets; `predicted`: (N, D)."""

    def band(figure: Interval) -> dict[str, float | None]:
        return {key: value if math.isfinite(value) else None for key, value in figure._asdict().items()}

    top, held, points = float(study.runs.c_R.max()), study.held_out, study.runs.points
    return {
        "parameters": {name: band(figure) for name, figure in study.parameters.items()},
        "variable_projection": {k: v for k, v in study.projected._asdict().items() if math.isfinite(v)},
        "state": study.fit.state,
        "at_bound": list(study.fit.at_bound),
        "cost": study.cost._asdict(),
        "exponents": {name: {key: band(x) for key, x in found.items()} for name, found in study.powers.items()},
        "optimum": {
            f"{c:.3g}": {k: band(v) for k, v in study.optimum(c).items()} for c in asked or (top, 10 * top, 100 * top)
        },
        "predictions": [
            {"N": n, "D": d, "loss": band(study.interval(lambda law, n=n, d=d: law.loss(n, d)))} for n, d in predicted
        ],
        "E_profile": [study.floor.low, study.floor.high],
        "held_out": None
        if held is None
        else {"runs": held.names, "predicted": held.predicted, "measured": held.measured, "error": held.error},
        "influence": study.influence and study.influence._asdict(),
        "residual_rms": float(np.sqrt(np.mean(study.residual_R**2))),
        "warnings": study.warnings,
        "meaning": study.runs.meaning,
        "runs": [
            {"name": name, "N": n, "D": d, "unique": unique, "C": c, "loss": loss}
            for name, n, d, unique, c, loss in zip(
                study.runs.names,
                points.n_R.tolist(),
                points.d_R.tolist(),
                points.unique_R.tolist(),
                study.runs.c_R.tolist(),
                points.loss_R.tolist(),
                strict=True,
            )
        ],
    }
