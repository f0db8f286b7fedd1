"""Every table and figure, from the results of all runs: `python experiments/reading/report.py CIFAR`.

Writes experiments/results/reading.html, and what stands between the two marks of experiments/reading/README.md.
`CIFAR` is what source.py was given: the ceiling draws test images again.
"""

import functools
import html
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import arms
import ceiling
import source
import stats
import study
from pixtok import flops, fold, page
from pixtok.data import images
from pixtok.errors import InputError
from pixtok.sample import sheet

HEIGHT_K = np.array(source.HEIGHTS, float)
GUARD, MARGIN_PX, MARGIN = 0.95, 2.0, 0.02
"""What a baseline must reach at the largest height; margins of the two hypotheses."""
LEVEL = 0.975
"""Of the intervals that the two hypotheses are judged by: 95 % for both together."""
CEILING = 5
"""One in so many images of `contrast` is what the ceiling is computed of."""
MISSING = "not measured"
_MARKS = "<!-- results: report.py -->", "<!-- end of results -->"


class Results:
    """What all runs read, by test set."""

    def __init__(self, folder: Path = study.DATA) -> None:
        """`folder`: where the test images are."""
        self._tests = {}
        for name in source.TESTS:
            with np.load(folder / f"{name}.npz") as test:
                self._tests[name] = dict(test)

    def image(self, number: int) -> tuple[np.ndarray, str]:
        """One of `test`, and what it says."""
        return self._tests["test"]["image"][number], str(self._tests["test"]["text"][number])

    def results(self, cell: str) -> list[dict[str, Any]]:
        """Of its seeds: `CELL-1`, `CELL-2`, …; of another single run, its name."""
        jobs = [job for job in study.main_jobs() + study.ablations() if job.name in (cell, f"{cell}-{job.seed}")]
        return [found for found in map(study.result, jobs) if found is not None]

    def cell(self, name: str, test: str = "test", contrast: int | None = None) -> stats.Cell | None:
        """What its seeds read of a test, or of the images of one contrast there."""
        found = [one["tests"][test]["distances"] for one in self.results(name) if test in one["tests"]]
        if not found:
            return None
        test_of = self._tests[test]
        kept_N = test_of["contrast"] == contrast if contrast else np.full(len(test_of["text"]), True)
        distance_TN = np.stack([study.decode(one) for one in found])[:, kept_N]
        return stats.Cell(distance_TN, np.char.str_len(test_of["text"][kept_N]), test_of["height"][kept_N])

    def whole(self, name: str) -> bool:
        """Whether all seeds of a cell are there."""
        return len([one for one in self.results(name) if one["tests"]]) == study.seeds(name)

    @functools.cache  # noqa: B019 - one object, as long as the page is made
    def summary(self, name: str, test: str = "test") -> stats.Summary | None:
        """The numbers of a cell."""
        cell = self.cell(name, test)
        return None if cell is None else stats.summary(cell)


def percent(one: stats.Estimate) -> str:
    """50.0 % (48.1 to 51.9)."""
    return f"{100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _difference(results: Results, name: str, one: str, other: str) -> stats.Estimate | None:
    summaries = results.summary(one), results.summary(other)
    if summaries[0] is None or summaries[1] is None:
        return None
    return stats.estimate(summaries[0], name, summaries[1], LEVEL)


def _value(results: Results, cell: str, name: str) -> float:
    found = results.summary(cell)
    assert found is not None
    return float(found.value_V[stats.NAMES.index(name)])


def _lacking(results: Results, *cells: str) -> str:
    """Why no comparison is made: runs are missing, or no ViT reads; empty where it is made."""
    if missing := [cell for cell in (*cells, study.GUARD) if not results.whole(cell)]:
        return f"not all runs of {' and '.join(missing)} are there"
    top = _value(results, study.GUARD, "top")
    least = f"a baseline must read {GUARD:.0%}"
    return "" if top >= GUARD else f"{study.GUARD} reads {top:.1%} of the largest digits exactly, and {least}"


def _reaches(summary: stats.Summary | None) -> bool:
    """Whether 90 % is reached at a height that was shown, for all seeds together and each, and 97.5 % of resamples."""
    assert summary is not None
    at = stats.NAMES.index("h90")
    few = np.mean(summary.draw_DV[:, at] >= HEIGHT_K[-1]) <= (1 - LEVEL)
    return bool(few and max(summary.value_V[at], *summary.seed_TV[:, at]) < HEIGHT_K[-1])


def first(results: Results) -> str:
    """H1: the height that `words` reads, against that of ViT-16, after equal images with equal parameters."""
    what = "H1, pixels read digits at least 2 px smaller than ViT-16 does (parameters and data matched)"
    ours, theirs = "words-data", "vit16-data"
    if reason := _lacking(results, ours, theirs):
        return f"{what}: no comparison, {reason}."
    found = _difference(results, "h90", ours, theirs)
    assert found is not None
    known = {cell: _reaches(results.summary(cell)) for cell in (ours, theirs)}
    # What lies beyond the heights counts as the largest: that makes ViT-16 look better than it is, or pixels.
    holds, fails = found.high <= -MARGIN_PX and known[ours], found.low > -MARGIN_PX and known[theirs]
    said = f"h90 differs by {found.value:+.1f} px ({found.low:+.1f} to {found.high:+.1f})"
    beyond = " and ".join(cell for cell, reached in known.items() if not reached)
    said += f"; of {beyond} it may be above {HEIGHT_K[-1]:g} px, so this difference is a bound" if beyond else ""
    return f"{what}: {_verdict(holds, fails)}; {said}; {theirs} reads {_value(results, theirs, 'top'):.1%} at 20 px."


def second(results: Results) -> str:
    """H2: the share that `words` reads, against that of ViT-8, after equal FLOPs."""
    what = "H2, pixels read no more than 2 points less than ViT-8 does (FLOPs matched)"
    if reason := _lacking(results, "words-data", "vit8-data"):
        return f"{what}: no comparison, {reason}."
    found = _difference(results, "exact", "words-data", "vit8-data")
    assert found is not None
    said = (
        f"exact matches differ by {100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
    return f"{what}: {_verdict(found.low > -MARGIN, found.high < -MARGIN)}; {said}."


def _verdict(holds: bool, fails: bool) -> str:
    return "HOLDS" if holds else "FAILS" if fails else "UNDECIDED"


def arms_table(results: Results) -> list[list[str]]:
    """Main arms: what they are, what they cost, and what they read."""
    rows = [
        [
            "arm",
            "matched on",
            "seeds",
            "parameters",
            "images",
            "PFLOP",
            "rate",
            "exact",
            "characters wrong",
            "h50",
            "h90",
        ]
    ]
    rows[0] += [f"exact at {HEIGHT_K[-1]:g} px", "exact, unseen fonts"]
    for cell, (arm, count) in study.cells().items():
        found, summary = results.results(cell), results.summary(cell)
        start = [arm, cell.rsplit("-", 1)[1]]
        if summary is None:
            rows.append([*start, "0", *[MISSING] * (len(rows[0]) - 3)])
            continue
        held_out = results.summary(cell, "held-out")
        numbers = {name: stats.estimate(summary, name) for name in stats.NAMES}
        rows.append(
            [
                *start,
                f"{len(found)}",
                f"{found[0]['parameters'] / 1e6:.3f} M",
                f"{count:,}",
                f"{count * found[0]['gflop_an_image'] / 1e6:.3f}",
                f"{found[0]['settings']['rate']:g}",
                percent(numbers["exact"]),
                percent(numbers["cer"]),
                stats.bound(numbers["h50"], HEIGHT_K),
                stats.bound(numbers["h90"], HEIGHT_K),
                percent(numbers["top"]),
                MISSING if held_out is None else percent(stats.estimate(held_out, "exact")),
            ]
        )
    return rows


def beside_table(results: Results) -> list[list[str]]:
    """Differences that the hypotheses leave out."""
    rows = [["difference", "exact, points", "h90, px"]]
    for one, other, what in (
        ("words-data", "vit8-data", "pixels less patches, windows of 8, parameters, data and FLOPs matched"),
        ("window16-data", "vit16-data", "pixels less patches, windows of 16, parameters and data matched"),
        ("words-data", "vit16f-data", "pixels less ViT-16 with a full-width stem, data matched"),
        ("words-data", "vit16-flops", "pixels less ViT-16, FLOPs matched"),
        ("full-flops", "words-data", "likelihood of pixels less words alone, FLOPs matched"),
        ("upw-flops", "words-data", "UPW less words alone, FLOPs matched"),
    ):
        exact, height = (_difference(results, name, one, other) for name in ("exact", "h90"))
        rows.append(
            [
                f"{one} − {other}: {what}",
                MISSING
                if exact is None
                else f"{100 * exact.value:+.1f} ({100 * exact.low:+.1f} to {100 * exact.high:+.1f})",
                MISSING if height is None else f"{height.value:+.1f} ({height.low:+.1f} to {height.high:+.1f})",
            ]
        )
    return rows


def fold_shares(results: Results, scenes: dict[int, list[source.Scene]]) -> tuple[list[str], np.ndarray]:
    """→ (rows: an arm and its ceiling for each fold factor; share read exactly at each contrast, NaN: not measured)."""
    factors = sorted((*arms.FOLDS, 16))
    of_image = {contrast: [ceiling.exact(one, factors) for one in drawn] for contrast, drawn in scenes.items()}
    best = np.array([np.mean(of_image[contrast], axis=0) for contrast in source.CONTRASTS])
    names, shares = [], []
    for at, factor in enumerate(factors):
        names.append(f"F = {factor}")
        cells = [
            results.cell("words-data" if factor == 16 else f"fold{factor}", "contrast", contrast)
            for contrast in source.CONTRASTS
        ]
        shares.append([np.nan if cell is None else float((cell.distance_TN[0] == 0).mean()) for cell in cells])
        names.append(f"F = {factor}, ideal reader")
        shares.append(best[:, at])
    return names, np.array(shares)


def fold_map(names: Sequence[str], share_RC: np.ndarray) -> Figure:
    """Contrast against fold factor."""
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    axes.imshow(share_RC, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(source.CONTRASTS)), [f"{contrast}" for contrast in source.CONTRASTS])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("contrast of ink, of 256")
    for (row, column), share in np.ndenumerate(share_RC):
        text = "?" if np.isnan(share) else f"{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color="black" if share > 0.6 else "white", fontsize=8)
    return figure


def ablation_table(results: Results, scenes: dict[int, list[source.Scene]]) -> list[list[str]]:
    """One seed each, on the test at contrast 64; `words` and `full` likewise."""
    drawn = [one.image() for one in scenes[source.CONTRAST]]
    rows = [["what is changed", "images", "exact", "h50", "h90", "PSNR of folding, dB"]]
    for cell, what in (
        ("words-data", "nothing: windows of 8, F = 16, summaries by a stem over embeddings of pixels"),
        *((f"fold{factor}", _fold(factor)) for factor in arms.FOLDS),
        ("window16-data", "windows of 16"),
        ("window4", "windows of 4"),
        ("last", "summaries by causal attention to the last pixel, as in UPW"),
        ("vit8-data", "patches of 8 in the place of pixel embeddings"),
        ("full-flops", "likelihood of all pixels, with global conditional attention"),
        ("local", "the same, the pixel decoder sees its window and halo alone"),
    ):
        found, whole = results.results(cell), results.cell(cell)
        if whole is None:
            rows.append([what, *[MISSING] * 4, ""])
            continue
        summary = stats.summary(whole._replace(distance_TN=whole.distance_TN[:1]))
        factor = arms.MODELS[found[0]["settings"]["arm"]].fold_factor
        decibels = np.mean([ceiling.psnr(one, factor) for one in drawn])
        shown = "" if "vit" in cell else "lossless" if np.isinf(decibels) else f"{decibels:.1f}"
        heights = (stats.bound(stats.estimate(summary, name), HEIGHT_K) for name in ("h50", "h90"))
        images_seen = f"{found[0]['settings']['images']:,}"
        rows.append([what, images_seen, percent(stats.estimate(summary, "exact")), *heights, shown])
    rows.append(["full attention over all pixels (windows of 1)", *[MISSING] * 4, ""])
    return rows


def _fold(factor: int) -> str:
    parameters = flops.parameters(arms.MODELS[f"fold{factor}"]) / 1e6
    tables = "a table for each channel" if fold.by_channel(factor) else "a row for each colour"
    return f"F = {factor}: {tables}, {parameters:.2f} M parameters"


def labels_table(results: Results) -> list[list[str]]:
    """Few labels, with and without pretraining on images alone."""
    rows = [["labelled images", *(f"{count:,}" for count in study.LABELS), "labels for 90 % at 20 px"]]
    top = stats.NAMES.index("top")
    for end, arm, what in (
        ("", "words", "pixels, from the start"),
        ("-pretrained", "words", "pixels, pretrained on images without text"),
        ("", "vit8", "ViT-8, from the start"),
    ):
        summaries = [results.summary(f"{arm}-{count}{end}") for count in study.LABELS]
        shown = [MISSING if one is None else percent(stats.estimate(one, "exact")) for one in summaries]
        known = [(n, one.value_V[top]) for n, one in zip(study.LABELS, summaries, strict=True) if one is not None]
        enough = [f"{n:,}" for n, share in known if share >= 0.9]
        last = enough[0] if enough else f"> {study.LABELS[-1]:,}" if len(known) == len(study.LABELS) else MISSING
        rows.append([what, *shown, last])
    return rows


def curves(results: Results, cells: Sequence[str]) -> Figure:
    """Share read exactly against height, with the function that was fitted."""
    figure, axes = page.axes("height of a digit, px", "read exactly")
    colours = matplotlib.colormaps["tab10"]
    fine = np.geomspace(HEIGHT_K[0], HEIGHT_K[-1], 100)
    for number, cell in enumerate(cells):
        summary = results.summary(cell)
        if summary is None:
            continue
        axes.plot(HEIGHT_K, summary.curve_K, "o", ms=4, color=colours(number))
        axes.plot(fine, stats.curve(fine, stats.fit(HEIGHT_K, summary.curve_K)), color=colours(number), label=cell)
    axes.axhline(0.9, color="grey", lw=0.8, ls="--")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    return figure


def mistakes(results: Results, cell: str) -> str:
    """Pictures of what a cell's first seed read wrongly, as HTML."""
    found = results.results(cell)
    if not found:
        return ""
    wrong = found[0]["tests"]["test"]["wrong"]
    if not wrong:
        return f"<p>{cell}: none.</p>"
    pictures, texts = zip(*(results.image(number) for number, _ in wrong), strict=True)
    said = ", ".join(f"{text} as {read or 'nothing'}" for text, (_, read) in zip(texts, wrong, strict=True))
    return page.picture(
        images.encode(np.asarray(sheet(list(pictures), columns=6))), cell, f"{cell}, row by row: {said}"
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same table for README.md."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main(cifar: str, folder: Path = study.DATA) -> None:
    """Write the page, and the results in README.md."""
    results = Results(folder)
    _, photos = source.photographs(cifar)
    every = list(itertools.islice(source.tests("contrast", photos, source.TESTS["contrast"]), 0, None, CEILING))
    scenes = {contrast: [one for one in every if one.contrast == contrast] for contrast in source.CONTRASTS}
    verdicts = [first(results), second(results)]
    names, shares = fold_shares(results, scenes)
    tables = {
        "Arms": arms_table(results),
        "Beside the hypotheses": beside_table(results),
        "Ablations": ablation_table(results, scenes),
        "Few labels": labels_table(results),
    }
    data, matched = ([cell for cell in study.cells() if cell.endswith(end)] for end in ("data", "flops"))
    every_result = [one for cell in (*study.cells(), study.GUARD) for one in results.results(cell)]
    ablated = [one for job in study.ablations() if (one := study.result(job))]
    made = sorted({one["made"] for one in every_result + ablated})
    minutes = [sum(one["minutes"].values()) for one in every_result + ablated]
    cost = "; ".join([*made, f"{len(minutes)} runs in {sum(minutes) / 60:.1f} hours of one core, tuning not counted"])
    commands = f"{study.__doc__}\npython experiments/reading/report.py CIFAR"
    body = "".join(
        [
            *(f"<p><strong>{html.escape(text)}</strong></p>" for text in verdicts),
            "<p>See experiments/reading/PROTOCOL.md for what was fixed before.</p><div class='figures'>",
            page.drawn(curves(results, data), "After equal images."),
            page.drawn(curves(results, ["words-data", "vit8-data", *matched]), "After equal FLOPs."),
            page.drawn(
                fold_map(names, shares), "Contrast against fold factor: `words`, and what an ideal reader could."
            ),
            "</div>",
            *(f"<h2>{name}</h2>{page.table(rows)}" for name, rows in tables.items()),
            "<h2>Mistakes</h2>",
            *(mistakes(results, cell) for cell in ("words-data", "vit16-data", "vit8-data")),
            f"<h2>How it was made</h2><p>{html.escape(cost)}</p><pre>{html.escape(commands)}</pre>",
        ]
    )
    study.RESULTS.with_suffix(".html").write_text(page.document("Does it read small text better than patches?", body))
    readme = Path(__file__).parent / "README.md"
    before, rest = readme.read_text().split(_MARKS[0])
    fresh = "\n\n".join([*verdicts, cost, *(f"### {name}\n\n{markdown(rows)}" for name, rows in tables.items())])
    readme.write_text(f"{before}{_MARKS[0]}\n{fresh}\n{_MARKS[1]}{rest.split(_MARKS[1])[1]}")
    print("\n".join(verdicts))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
