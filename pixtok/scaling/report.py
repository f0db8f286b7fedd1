"""One page that shows what was found and how: HTML that needs no other file."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pixtok import page
from pixtok.scaling import tables
from pixtok.scaling.allocation import budgets, by_profiles, envelope
from pixtok.scaling.fit import Study
from pixtok.scaling.surface import worth

_LAW = """
<p>L(N, D) = E + A / N<sup>α</sup> + B / D<sup>β</sup>: E is what no model and no data can remove, the other terms are
what a finite model and finite data cost.</p>
"""


def _colour(values: np.ndarray) -> np.ndarray:
    logs = np.log(values)
    return matplotlib.colormaps["viridis"](0.9 * (logs - logs.min()) / max(float(np.ptp(logs)), 1e-9))


def _compute(study: Study) -> Figure:
    points, c_R = study.runs.points, study.runs.c_R
    figure, axes = page.axes("training FLOPs C", "loss", log="x")
    colours = _colour(points.n_R)
    for n in np.unique(points.n_R):
        own = np.flatnonzero(points.n_R == n)
        own = own[np.argsort(c_R[own])]
        label = f"N = {n:.2g}"
        axes.plot(c_R[own], points.loss_R[own], "o-", ms=4, lw=0.8, color=colours[own[0]], label=label)
    on = envelope(budgets(c_R), points.loss_R)
    axes.plot(c_R[on], points.loss_R[on], "k--", lw=1, label="envelope")
    c = np.geomspace(c_R.min(), 10 * c_R.max(), 80)
    law = study.fit.law
    axes.plot(c, law.loss(*law.best(c, study.cost)), color="crimson", lw=1.5, label="best by the law")
    spread = [study.interval(lambda one, at=at: one.loss(*one.best(at, study.cost))) for at in c]
    axes.fill_between(c, [x.low for x in spread], [x.high for x in spread], color="crimson", alpha=0.15, lw=0)
    axes.legend(fontsize=7)
    return figure


def _profiles(study: Study) -> Figure:
    points = study.runs.points
    figure, axes = page.axes("parameters N", "loss", log="x")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(len(study.profiles), 1)))
    for profile, colour in zip(study.profiles, colours, strict=False):
        n, loss = points.n_R[profile.run_P], points.loss_R[profile.run_P]
        x = np.geomspace(n.min(), n.max(), 60)
        axes.plot(n, loss, "o", ms=4, color=colour)
        axes.plot(x, np.polyval(profile.parabola, np.log(x)), color=colour, lw=1, label=f"C = {profile.c:.2g}")
        if not profile.problem:
            axes.plot([profile.n], [profile.loss], "*", ms=11, color=colour, mec="black", mew=0.5)
    if study.profiles:
        axes.legend(fontsize=7)
    return figure


def _residuals(study: Study) -> Figure:
    figure, axes = page.axes("training FLOPs C", "law / measured − 1, %", log="x")
    axes.axhline(0, color="black", lw=0.8)
    shown = axes.scatter(
        study.runs.c_R, 100 * np.expm1(study.residual_R), c=np.log10(study.runs.points.n_R), s=22, cmap="viridis"
    )
    figure.colorbar(shown, label="log10 N")
    return figure


def _optimum(study: Study, which: str) -> Figure:
    figure, axes = page.axes("training FLOPs C", {"N": "parameters N*", "D": "data D*"}[which], log="xy")
    c_R = study.runs.c_R
    c = np.geomspace(c_R.min(), 10 * c_R.max(), 40)
    found = [study.optimum(float(at))[which] for at in c]
    axes.plot(c, [x.value for x in found], color="crimson", label="surface")
    axes.fill_between(c, [x.low for x in found], [x.high for x in found], color="crimson", alpha=0.15, lw=0)
    good = [profile for profile in study.profiles if not profile.problem]
    if good:
        axes.plot([p.c for p in good], [getattr(p, which.lower()) for p in good], "k*", label="IsoFLOP minima")
    if len(good) > 1:
        line = by_profiles(good)
        n = np.array([line.at(float(at)) for at in c])
        axes.plot(c, n if which == "N" else study.cost.data(c, n), "k--", lw=0.8, label="through them")
    on = envelope(budgets(c_R), study.runs.points.loss_R)
    values = study.runs.points.n_R if which == "N" else study.runs.points.d_R
    axes.plot(c_R[on], values[on], "o", ms=4, mfc="none", color="steelblue", label="runs on the envelope")
    axes.legend(fontsize=7)
    return figure


def _agreement(study: Study) -> Figure:
    points, law = study.runs.points, study.fit.law
    predicted = law.loss(points.n_R, worth(points.d_R, points.unique_R, law.repeats))
    figure, axes = page.axes("loss by the law", "loss measured")
    axes.scatter(predicted, points.loss_R, c=_colour(study.runs.c_R), s=22)
    ends = [points.loss_R.min(), points.loss_R.max()]
    axes.plot(ends, ends, "k-", lw=0.8)
    return figure


def _floor(study: Study) -> Figure:
    figure, axes = page.axes("E held at", "sum of squares, over the smallest")
    floor = study.floor
    axes.plot(floor.E_G, floor.ratio_G, "o-", ms=3)
    axes.axhline(floor.limit, color="crimson", lw=1, label="95 %")
    axes.set_ylim(0.95, max(3 * (floor.limit - 1) + 1, 1.5))
    axes.legend(fontsize=7)
    return figure


def _section(name: str, study: Study) -> str:
    figures = (
        ("Loss against compute: each line is one size, dashed the best runs, red the law's best.", _compute(study)),
        ("IsoFLOP profiles: runs of one budget, a parabola over log N, and its minimum.", _profiles(study)),
        (
            "How many parameters a budget wants; the band is 95 %, and wide where runs tell little.",
            _optimum(study, "N"),
        ),
        ("How much data a budget wants, likewise.", _optimum(study, "D")),
        ("Measured against the law: a good law has all on the line.", _agreement(study)),
        ("What the law leaves: a good law leaves no trend.", _residuals(study)),
        ("What the runs tell of E: below the line are values that they do not exclude.", _floor(study)),
    )
    drawn = "".join(page.drawn(figure, text) for text, figure in figures)
    warned = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in study.warnings)
    meaning = study.runs.meaning
    means = [[letter, meaning[letter]] for letter in ("L", "N", "D", "C") if letter in meaning]
    return f"""
<h2>{html.escape(name)}</h2><p>{html.escape(tables.summary(study))}</p>
{warned or "<p>No warnings.</p>"}
<h3>The law</h3>{_LAW}{page.table(means, head=False)}
{page.table(tables.parameters(study))}{page.table(tables.quality(study), head=False)}
<h3>Sharing a budget</h3>{page.table(tables.approaches(study))}{page.table(tables.budgets(study))}
<h3>Figures</h3><div class="figures">{drawn}</div>
<h3>Correlation of parameters</h3>{page.table(tables.correlations(study))}
<h3>Checklist</h3>{page.table(tables.checklist(study), head=False)}
<details><summary>{len(study.runs.names)} runs</summary>{page.table(_points(study))}</details>
<script type="application/json" data-law="{html.escape(name)}">{_inside_script(tables.as_json(study))}</script>
"""


def _inside_script(content: Any) -> str:
    """JSON in which no tag can end the element around it."""
    return json.dumps(content).replace("<", "\\u003c")


def _points(study: Study) -> tables.Table:
    points = study.runs.points
    columns = zip(study.runs.names, *points[:3], study.runs.c_R, points.loss_R, study.residual_R, strict=True)
    by_cost = sorted(columns, key=lambda run: run[4])
    lines = [[a, *(f"{x:.3e}" for x in (n, d, u, c)), f"{y:.4f}", f"{r:+.2%}"] for a, n, d, u, c, y, r in by_cost]
    return [["run", "N", "D", "D that differs", "C", "loss", "law / measured − 1"], *lines]


def whole(studies: dict[str, Study], commands: Sequence[str], samples: Sequence[Path], title: str) -> str:
    """The page of one or several laws, by the names of their losses; `commands` made it; `samples`: pictures."""
    shown = "".join(page.picture(path.read_bytes(), path.name, str(path)) for path in samples)
    body = f"""{"".join(_section(name, study) for name, study in studies.items())}
<h2>From the literature</h2>{page.table(tables.LITERATURE)}
{f"<h2>Samples</h2>{shown}" if shown else ""}
<h2>How it was made</h2><pre>{html.escape(chr(10).join(commands))}</pre>"""
    return page.document(title, body)
