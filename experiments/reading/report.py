"""Every table and figure, from the results of all runs: `python experiments/reading/report.py CIFAR`.

Writes experiments/results/reading.html, the pictures of experiments/results/reading, and what stands between the two
marks of experiments/reading/README.md.
`CIFAR` is what source.py was given: the ceiling draws test images again.
"""

import html
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import arms
import ceiling
import source
import stats
import study
from figures import curves, fold_map, fold_shares, mistakes
from pixtok import flops, fold, page
from pixtok.errors import InputError
from results import HEIGHT_K, Results

GUARD, MARGIN_PX, MARGIN = 0.95, 2.0, 0.02
"""What a baseline must reach at the largest height; margins of the two hypotheses."""
LEVEL = 0.975
"""Of the intervals that each verdict is judged by: 95 % for the first two together, 80 % for all eight."""
CEILING = 5
"""One in so many images of `contrast` is what the ceiling is computed of."""
MISSING, NONE = "not measured", "no comparison"
_PAIRS = (
    ("words-data", "vit8-data", "pixels less patches, windows of 8, parameters, data and FLOPs matched"),
    ("window16-data", "vit16-data", "pixels less patches, windows of 16, parameters and data matched"),
    ("vit8-data", "vit16-data", "patches of 8 less patches of 16, parameters and data matched"),
    ("words-data", "vit16-data", "windows of 8 less patches of 16, parameters and data matched"),
    ("words-data", "vit16f-data", "the same, ViT-16 with a full-width stem, data matched"),
    ("words-data", "vit16-flops", "the same, FLOPs matched"),
    ("full-flops", "words-data", "likelihood of pixels less words alone, FLOPs matched"),
    ("upw-flops", "words-data", "UPW less words alone, FLOPs matched"),
    ("words-again", "vit8-again", "pixels less patches, windows of 8, 150,000 images, seeds 4 to 7"),
    ("words-more", "vit8-more", "the same, seeds 8 to 15"),
    ("words-seven", "vit8-seven", "the same, seeds 1 to 7"),
    ("words-fifteen", "vit8-fifteen", "the same, seeds 1 to 15"),
    ("words-twelve", "vit8-twelve", "the same, seeds 4 to 15"),
    ("words-half", "vit8-twelve", "the same seeds, pixels at a rate of 0.0005"),
    ("words-half", "words-twelve", "pixels at a rate of 0.0005 less pixels at that which was chosen, seeds 4 to 15"),
    ("words-seven", "vit16-seven", "windows of 8 less patches of 16, 150,000 images, seeds 1 to 7"),
)
"""Differences that are shown: a cell, one that is taken from it, what that tells."""
_BY_HEIGHT = (("words-twelve", "vit8-twelve"), ("words-half", "vit8-twelve"), ("words-seven", "vit16-seven"))
"""Those shown at each height."""
_ONCE_MORE = (
    ("words-data", "vit16-data"),
    ("words-long", "vit16-long"),
    ("words-data", "vit16-flops"),
    ("words-data", "vit8-data"),
    ("words-long", "vit8-150000"),
    ("window16-data", "vit16-data"),
)
"""Those that stand beside the same trained once more."""
_FRESH = "; the same, fresh seeds: PROTOCOL.md, third addendum"
_ENDS = {
    "data": ("vit8-data", "", ""),
    "long": ("vit8-150000", *(f", after more images: PROTOCOL.md, {which}addendum" for which in ("", "second "))),
    "again": ("vit8-again", _FRESH, _FRESH),
    "more": ("vit8-more", "", "; the same, eight more seeds: PROTOCOL.md, fourth addendum"),
    "half": ("vit8-twelve", "", "; the same, pixels at a rate of 0.0005, seeds 4 to 15: PROTOCOL.md, sixth addendum"),
}
"""How names of cells end, in the order of the verdicts: (ViT-8 for H2, what is added to H1, to H2)."""
_COMMANDS = f"{study.__doc__}\npython experiments/reading/report.py CIFAR"
_BARS = "bars: 95 % intervals, over images alone where there is one seed"
_FOLD = (
    "Contrast against fold factor: words, one seed each (once more: with rates chosen anew), and an ideal reader, who "
    "knows font, place and ground."
)
_MARKS = "<!-- results: report.py -->", "<!-- end of results -->"


def percent(one: stats.Estimate) -> str:
    """50.0 % (48.1 to 51.9); no share is below 0."""
    return f"{100 * one.value:.1f} % ({100 * max(0, one.low):.1f} to {100 * one.high:.1f})"


def _difference(results: Results, what: str | int, one: str, other: str) -> stats.Estimate | None:
    """`what`: as of `stats.estimate`.  None where the protocol allows no comparison."""
    if _lacking(results, one, other):
        return None
    summaries = results.summary(one), results.summary(other)
    if summaries[0] is None or summaries[1] is None:
        return None
    return stats.estimate(summaries[0], what, summaries[1], LEVEL)


def _top(results: Results, cell: str) -> float:
    """Share that is read exactly of the largest digits."""
    found = results.summary(cell)
    assert found is not None
    return float(found.curve[-1])


def _lacking(results: Results, *cells: str) -> str:
    """Why no comparison is made: runs are missing, or no ViT reads; empty where it is made."""
    if missing := [cell for cell in (*cells, study.GUARD) if not results.whole(cell)]:
        return f"not all runs of {' and '.join(missing)} are there"
    top = _top(results, study.GUARD)
    least = f"a baseline must read {GUARD:.0%}"
    return "" if top >= GUARD else f"{study.GUARD} reads {top:.1%} of the largest digits exactly, and {least}"


def _reaches(summary: stats.Summary | None) -> bool:
    """Whether 90 % is reached at a height that was shown, for all seeds together and each, and 97.5 % of resamples."""
    assert summary is not None
    at = stats.NAMES.index("h90")
    few = np.mean(summary.draw_DV[:, at] >= HEIGHT_K[-1]) <= (1 - LEVEL)
    return bool(few and max(summary.value_V[at], *summary.seed_TV[:, at]) < HEIGHT_K[-1])


def first(results: Results, end: str = "data") -> str:
    """H1: the height that `words` reads, against that of ViT-16, after equal images with equal parameters.

    `end`: of the names of cells, `data` or, for the addenda, `long` and `again` (of H2 also `more` and `half`).
    """
    ours, theirs = f"words-{end}", f"vit16-{end}"
    _, after, _ = _ENDS[end]
    what = (
        f"H1, pixels read digits at least 2 px smaller than ViT-16 does (parameters and data matched, FLOPs not{after})"
    )
    if reason := _lacking(results, ours, theirs):
        return f"{what}: no comparison, {reason}."
    found = _difference(results, "h90", ours, theirs)
    assert found is not None
    known = {cell: _reaches(results.summary(cell)) for cell in (ours, theirs)}
    # What lies beyond the heights counts as the largest: that makes ViT-16 look better than it is, or pixels.
    holds, fails = found.high <= -MARGIN_PX and known[ours], found.low > -MARGIN_PX and known[theirs]
    beyond, last = [cell for cell, reached in known.items() if not reached], f"{HEIGHT_K[-1]:g} px"
    said = f"h90 differs by {_interval(found)} px"
    if len(beyond) == 1:
        where = _limit(found.high, upper=True) if known[ours] else _limit(found.low, upper=False)
        said = f"h90 of {ours} is {where} that of {theirs}; of {beyond[0]} it may be above {last}"
    elif beyond:
        said = f"h90 of {' and of '.join(beyond)} may be above {last}, so that no difference is known"
    return f"{what}: {_verdict(holds, fails)}; {said}; {theirs} reads {_top(results, theirs):.1%} at 20 px."


def second(results: Results, end: str = "data") -> str:
    """H2: the share that `words` reads, against that of ViT-8, after equal FLOPs; `end`: as of `first`."""
    ours, (theirs, _, after) = f"words-{end}", _ENDS[end]
    what = f"H2, pixels read no more than 2 points less than ViT-8 does (FLOPs matched{after})"
    if reason := _lacking(results, ours, theirs):
        return f"{what}: no comparison, {reason}."
    found = _difference(results, "exact", ours, theirs)
    assert found is not None
    verdict = _verdict(found.low > -MARGIN, found.high < -MARGIN)
    return f"{what}: {verdict}; exact matches differ by {_interval(found, 100)} points."


def alike(results: Results) -> str:
    """What pixels change where windows are as large as patches."""
    what = "Windows as large as patches, exact matches of pixels less those of patches, in points"
    pairs = {8: ("words-data", "vit8-data"), 16: ("window16-data", "vit16-data")}
    found = {side: _points(results, *pair) for side, pair in pairs.items()}
    return f"{what}: {'; '.join(f'{side} × {side}, {said}' for side, said in found.items())}."


def _points(results: Results, one: str, other: str, what: str | int = "exact") -> str:
    found = _difference(results, what, one, other)
    return NONE if found is None else _interval(found, 100)


def _interval(found: stats.Estimate, scale: float = 1) -> str:
    return f"{scale * found.value:+.1f} ({scale * found.low:+.1f} to {scale * found.high:+.1f})"


def _limit(px: float, *, upper: bool) -> str:
    """A difference of which only one end is known, `upper` or lower."""
    below = px < 0
    return f"at {'least' if below == upper else 'most'} {abs(px):.1f} px {'below' if below else 'above'}"


def _verdict(holds: bool, fails: bool) -> str:
    return "HOLDS" if holds else "FAILS" if fails else "UNDECIDED"


def arms_table(results: Results) -> list[list[str]]:
    """Main arms: what they are, what they cost, and what they read."""
    rows = [
        [
            "arm",
            "matched on, or",
            "seeds",
            "parameters",
            "images",
            "TFLOP",
            "rate",
            "exact",
            "exact, seed by seed, %",
            "characters wrong",
            "h50",
            "h90",
        ]
    ]
    rows[0] += [f"exact at {HEIGHT_K[-1]:g} px", "exact, unseen fonts"]
    fresh = study.AGAIN | study.MORE | study.HALF
    pooled = {cell: fresh.get(before, before) for cell, (before, *_) in study.POOLED.items()}
    long = {cell: study.LONGER[of] for cell, of in (fresh | pooled).items()}
    after = dict.fromkeys(study.LONGER, "more images")
    after |= {cell: f"more images, {cell.rsplit('-', 1)[1]} seeds" for cell in pooled}
    after |= dict.fromkeys(study.AGAIN, "more images, fresh seeds")
    after |= dict.fromkeys(study.MORE, "more images, eight more seeds")
    after |= dict.fromkeys(study.HALF, "more images, twelve seeds at 0.0005")
    for cell, (arm, count) in (study.cells() | study.LONGER | long).items():
        found, summary = results.results(cell), results.summary(cell)
        start = [arm, after.get(cell) or cell.rsplit("-", 1)[1]]
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
                f"{count * found[0]['gflop_an_image'] / 1e3:.1f}",
                f"{found[0]['settings']['rate']:g}",
                percent(numbers["exact"]),
                ", ".join(f"{100 * one:.1f}" for one in summary.seed_TV[:, stats.NAMES.index("exact")]),
                percent(numbers["cer"]),
                stats.bound(numbers["h50"], HEIGHT_K),
                stats.bound(numbers["h90"], HEIGHT_K),
                percent(stats.estimate(summary, -1)),
                MISSING if held_out is None else percent(stats.estimate(held_out, "exact")),
            ]
        )
    return rows


def beside_table(results: Results) -> list[list[str]]:
    """Differences that the hypotheses leave out."""
    rows = [["difference", "exact, points", "seed by seed", "h50, px", "h90, px"]]
    for one, other, what in _PAIRS:
        heights = (_pixels(results, name, one, other) for name in ("h50", "h90"))
        rows.append([f"{one} − {other}: {what}", _points(results, one, other), _by_seed(results, one, other), *heights])
    return rows


def heights_table(results: Results) -> list[list[str]]:
    """Differences at each height, in points."""
    rows = [["exact, points", *(f"{height:g} px" for height in HEIGHT_K)]]
    for one, other in _BY_HEIGHT:
        rows.append([f"{one} − {other}", *(_points(results, one, other, at) for at in range(len(HEIGHT_K)))])
    return rows


def _by_seed(results: Results, one: str, other: str) -> str:
    """Exact matches, each seed less the same of the other cell, which saw the images in the same order."""
    summaries = results.summary(one), results.summary(other)
    if _lacking(results, one, other) or summaries[0] is None or summaries[1] is None:
        return NONE
    if len(summaries[0].seed_TV) != len(summaries[1].seed_TV):
        return ""
    return _interval(stats.estimate(summaries[0], "exact", summaries[1], LEVEL, by_seed=True), 100)


def _pixels(results: Results, name: str, one: str, other: str) -> str:
    """A difference of heights; one beyond those that were shown counts as the last of them."""
    found, last = _difference(results, name, one, other), HEIGHT_K[-1]
    if found is None:
        return NONE
    ours, theirs = (
        summary.value_V[stats.NAMES.index(name)] >= last for cell in (one, other) if (summary := results.summary(cell))
    )
    if ours or theirs:
        return f"both > {last:g}" if ours and theirs else f"≥ {found.low:+.1f}" if ours else f"≤ {found.high:+.1f}"
    return _interval(found)


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
    for end, arm, what in (
        ("", "words", "pixels, from the start"),
        ("-pretrained", "words", "pixels, pretrained on images without text"),
        ("", "vit8", "ViT-8, from the start"),
    ):
        summaries = [results.summary(f"{arm}-{count}{end}") for count in study.LABELS]
        shown = [MISSING if one is None else percent(stats.estimate(one, "exact")) for one in summaries]
        known = [(n, one.curve[-1]) for n, one in zip(study.LABELS, summaries, strict=True) if one is not None]
        enough = [f"{n:,}" for n, share in known if share >= 0.9]
        last = enough[0] if enough else f"> {study.LABELS[-1]:,}" if len(known) == len(study.LABELS) else MISSING
        rows.append([what, *shown, last])
    return rows


def repeated_table(first: Results, again: Results) -> list[list[str]]:
    """What was trained once more, beside what came out the first time."""
    rows = [["", "first", "once more"]]
    for one, other in _ONCE_MORE:
        exact = (_points(results, one, other) for results in (first, again))
        heights = (_pixels(results, "h90", one, other) for results in (first, again))
        rows += [[f"{one} − {other}: exact, points", *exact], [f"{one} − {other}: h90, px", *heights]]
    ablations = (job.name for job in study.ablations() if job.reads)
    rows += [[cell, _exact(first, cell), _exact(again, cell)] for cell in (*study.cells(), *study.LONGER, *ablations)]
    return rows


def _exact(results: Results, cell: str) -> str:
    """Of all heights, and the learning rate."""
    found, summary = results.results(cell), results.summary(cell)
    if summary is None:
        return MISSING
    return f"{percent(stats.estimate(summary, 'exact'))}, rate {found[0]['settings']['rate']:g}"


def _one_seed(results: Results) -> str:
    """What a difference between single runs is worth."""
    summary = results.summary("words-data")
    if summary is None:
        return "One seed each."
    exact_T = 100 * summary.seed_TV[:, stats.NAMES.index("exact")]
    spread = f"between {exact_T.min():.1f} and {exact_T.max():.1f} % exact, {exact_T.mean():.1f} in the mean"
    return (
        f"One seed each, intervals over images alone. {len(exact_T)} seeds of words, the first of which "
        f"is in the first row, lie {spread}: lesser differences tell little."
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same table for README.md."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cost(jobs: list[study.Job], within: str = "") -> str:
    """On what, when, and for how long; of results in a folder of `study.RESULTS`."""
    tuned = [found for cell in study.cells() for found in study.tried(cell, within).values()]
    runs = [found for job in jobs if (found := study.result(job, within)) is not None]
    minutes = [sum(one["minutes"].values()) for one in runs + tuned]
    made = "; ".join(sorted({one["made"] for one in runs + tuned}))
    count = f"{len(minutes)} runs, {len(tuned)} of them to choose learning rates"
    return (
        f"{made}; {count}, in {sum(minutes) / 60:.1f} hours of one core; the longest took {max(minutes):.0f} minutes."
    )


def main(cifar: str, folder: Path = study.DATA) -> None:
    """Write the page, and the results in README.md.  Raises InputError."""
    results = Results(folder)
    _, photos = source.photographs(cifar)
    if not all(source.is_made(folder, name, each, photos) for name, each in source.TESTS.items()):
        raise InputError(f"{cifar} does not hold the photographs that the tests of {folder} were made with")
    every = list(itertools.islice(source.tests("contrast", photos, source.TESTS["contrast"]), 0, None, CEILING))
    scenes = {contrast: [one for one in every if one.contrast == contrast] for contrast in source.CONTRASTS}
    verdicts = [
        hypothesis(results, end)
        for end in _ENDS
        for hypothesis in (first, second)
        if hypothesis is second or end not in ("more", "half")  # not asked
    ]
    verdicts.append(alike(results))
    repeated = any((study.RESULTS / study.REPEATED).glob("*.json"))
    again = Results(folder, study.REPEATED)
    folds = {"": results} | ({", once more": again} if repeated else {})
    names, shares = fold_shares(folds, scenes)
    tables = {
        "Arms": arms_table(results),
        "Beside the hypotheses": beside_table(results),
        "By height": heights_table(results),
        "Ablations": ablation_table(results, scenes),
        "Few labels": labels_table(results),
    }
    notes = {
        "Arms": "Intervals of 95 %, over images and seeds; in them the height of a seed that is beyond "
        f"{HEIGHT_K[-1]:g} px counts as {HEIGHT_K[-1]:g}.",
        "Beside the hypotheses": f"Intervals of {100 * LEVEL:g} %, over images and seeds; ≤, ≥: one height is above "
        f"{HEIGHT_K[-1]:g} px, and the interval of the other bounds the difference. Seed by seed: runs of one seed see "
        "the images in the same order. Verdicts are of the column before that, with as many degrees of freedom as the "
        "cell of fewer seeds has.",
        "By height": f"Intervals of {100 * LEVEL:g} % each, over images and seeds; looked at afterwards: no verdict.",
        "Ablations": _one_seed(results),
        "Few labels": f"Exact matches after {max(study.LABELS):,} images, however many of them are different; one seed "
        "each, intervals over images alone. A run on all images may begin to read after more than these (LOG.md): "
        "shares near nothing tell of too little training, not of pretraining.",
    }
    if repeated:
        tables["Trained once more"] = repeated_table(results, again)
        notes["Trained once more"] = (
            "All runs without fresh seeds, from nothing, rates chosen anew (PROTOCOL.md, fifth addendum): without a "
            f"verdict. Intervals of differences are of {100 * LEVEL:g} %, all others of 95 %; of one seed, over images "
            f"alone. {_cost(study.repeated_jobs(), study.REPEATED)}"
        )
    data, matched = ([cell for cell in study.cells() if cell.endswith(end)] for end in ("data", "flops"))
    figures = {
        "images": (curves(results, data), f"After equal images; {_BARS}."),
        "flops": (curves(results, ["words-data", "vit8-data", *matched]), f"After equal FLOPs; {_BARS}."),
        "longer": (
            curves(results, [study.GUARD, "words-fifteen", "words-half", "vit8-fifteen", "vit16-seven"]),
            "After more images: 150,000, seven to fifteen seeds (words-half: pixels at a rate of 0.0005, twelve), "
            f"vit8-long 180,000, one seed; {_BARS}.",
        ),
        "fold": (fold_map(names, shares), _FOLD),
    }
    sheets = {cell: made for cell in study.COMPARED if (made := mistakes(results, cell)) is not None}
    cost = _cost(study.all_jobs())
    body = "".join(
        [
            *(f"<p><strong>{html.escape(text)}</strong></p>" for text in verdicts),
            "<p>See experiments/reading/PROTOCOL.md for what was fixed before.</p><div class='figures'>",
            *(page.drawn(figure, caption) for figure, caption in figures.values()),
            "</div>",
            *(f"<h2>{name}</h2><p>{notes[name]}</p>{page.table(rows)}" for name, rows in tables.items()),
            "<h2>Mistakes</h2>",
            *(page.picture(png, cell, caption) for cell, (png, caption) in sheets.items()),
            f"<h2>How it was made</h2><p>{html.escape(cost)}</p><pre>{html.escape(_COMMANDS)}</pre>",
        ]
    )
    study.RESULTS.with_suffix(".html").write_text(page.document("Does it read small text better than patches?", body))
    for name, (figure, _) in figures.items():
        figure.savefig(study.RESULTS / f"{name}.png", dpi=100, bbox_inches="tight")
    for name, (png, _) in sheets.items():
        (study.RESULTS / f"{name}.png").write_bytes(png)
    shown = [
        f"![{name}](../results/reading/{name}.png)\n{caption}" for name, (_, caption) in (figures | sheets).items()
    ]
    readme = Path(__file__).parent / "README.md"
    before, rest = readme.read_text().split(_MARKS[0])
    fresh = "\n\n".join(
        [
            *verdicts,
            *shown,
            *(f"### {name}\n\n{notes[name]}\n\n{markdown(rows)}" for name, rows in tables.items()),
            cost,
        ]
    )
    readme.write_text(f"{before}{_MARKS[0]}\n{fresh}\n{_MARKS[1]}{rest.split(_MARKS[1])[1]}")
    print("\n".join(verdicts))


if __name__ == "__main__":
    source.command(main, sys.argv)
