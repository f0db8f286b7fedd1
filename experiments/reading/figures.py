"""What is looked at: curves, the map of contrast and fold factor, and mistakes."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import arms
import ceiling
import source
import stats
from pixtok import page
from pixtok.data import images
from pixtok.files import progress_bar
from pixtok.sample import sheet
from results import HEIGHT_K, Results


def curves(results: Results, cells: Sequence[str]) -> Figure:
    """Share read exactly against height, with 95 % intervals and the function that was fitted."""
    figure, axes = page.axes("height of a digit, px", "read exactly")
    colours = matplotlib.colormaps["tab10"]
    fine = np.geomspace(HEIGHT_K[0], HEIGHT_K[-1], 100)
    for number, cell in enumerate(cells):
        summary = results.summary(cell)
        if summary is None:
            continue
        shares = [stats.estimate(summary, at) for at in range(len(HEIGHT_K))]
        ends = np.array([[one.value - one.low, one.high - one.value] for one in shares]).T
        axes.errorbar(HEIGHT_K, summary.curve, ends, fmt="o", ms=4, lw=1, alpha=0.7, color=colours(number))
        axes.plot(fine, stats.curve(fine, stats.fit(HEIGHT_K, summary.curve)), color=colours(number), label=cell)
    axes.axhline(0.9, color="grey", lw=0.8, ls="--")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    return figure


def mistakes(results: Results, cell: str) -> tuple[bytes, str] | None:
    """What a cell's first seed read wrongly: a PNG, and its caption.  None where it read all, or nothing yet."""
    found = results.results(cell)
    wrong = found[0]["tests"]["test"]["wrong"] if found else []
    if not wrong:
        return None
    pictures, texts = zip(*(results.image(number) for number, _ in wrong), strict=True)
    said = ", ".join(f"{text} as {read or 'nothing'}" for text, (_, read) in zip(texts, wrong, strict=True))
    return images.encode(np.asarray(sheet(list(pictures), columns=6))), f"Mistakes of {cell}, row by row: {said}."


def fold_shares(of: dict[str, Results], scenes: dict[int, list[source.Scene]]) -> tuple[list[str], np.ndarray]:
    """→ (rows: for each fold factor `of`, by what is added to its name, and the ceiling; shares read exactly).

    Shares are by row and contrast, NaN: not measured.
    """
    factors = sorted((*arms.FOLDS, 16))
    best_CF = np.zeros((len(source.CONTRASTS), len(factors)))
    with progress_bar("ideal reader") as bar:
        task = bar.add_task("", total=sum(map(len, scenes.values())), note="images")
        for best_F, contrast in zip(best_CF, source.CONTRASTS, strict=True):
            for one in scenes[contrast]:
                best_F += ceiling.exact(one, factors) / len(scenes[contrast])
                bar.advance(task)
    names, shares = [], []
    for at, factor in enumerate(factors):
        for name, results in of.items():
            arm = "words-data" if factor == 16 else f"fold{factor}"
            cells = [results.cell(arm, "contrast", contrast) for contrast in source.CONTRASTS]
            names.append(f"F = {factor}{name}")
            shares.append([np.nan if cell is None else float((cell.distance_TN[0] == 0).mean()) for cell in cells])
        names.append(f"F = {factor}, ideal reader")
        shares.append(best_CF[:, at])
    return names, np.array(shares)


def fold_map(names: Sequence[str], share_RC: np.ndarray) -> Figure:
    """Contrast against fold factor."""
    figure = Figure(figsize=(7, 1 + len(names) / 3))
    axes = figure.subplots()
    axes.imshow(share_RC, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(source.CONTRASTS)), [f"{contrast}" for contrast in source.CONTRASTS])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("contrast of ink, of 256")
    for (row, column), share in np.ndenumerate(share_RC):
        text = "?" if np.isnan(share) else f"{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color="white" if share <= 0.6 else "black", fontsize=8)
    return figure
