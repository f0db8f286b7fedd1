"""One HTML page that needs no other file: figures as SVG, tables, pictures."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem }
td, th { border-bottom: 1px solid #ddd; padding: 0.25rem 0.8rem 0.25rem 0; text-align: left; vertical-align: top }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 0 1rem }
figure { margin: 1rem 0 } figcaption { color: #555; font-size: 0.9rem } svg { max-width: 100%; height: auto }
.warning { background: #fff3cd; border-left: 4px solid #e0a800; padding: 0.4rem 0.8rem; margin: 0.4rem 0 }
code, pre { background: #f4f4f4; padding: 0.1rem 0.3rem } pre { padding: 0.6rem; overflow-x: auto }
img { image-rendering: pixelated; max-width: 100% }
"""


def axes(x: str, y: str, log: str = "") -> tuple[Figure, Any]:
    """A figure and its axes.  `log`: which of the two axes are logarithmic, like "xy"."""
    figure = Figure(figsize=(6.4, 4.2))
    plot = figure.subplots()
    plot.set(xlabel=x, ylabel=y)
    plot.grid(alpha=0.25)
    for name in log:
        plot.set(**{f"{name}scale": "log"})
        axis = getattr(plot, f"{name}axis")
        # Less than a decade, too, has numbers, and they do not run into each other.
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
        axis.set_minor_formatter(NullFormatter())
    return figure, plot


def drawn(figure: Figure, caption: str) -> str:
    """A figure with what it shows below it."""
    with matplotlib.rc_context({"svg.hashsalt": "pixtok", "svg.fonttype": "none"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    return f"<figure>{text[text.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"


def picture(png: bytes, name: str, caption: str) -> str:
    """A PNG, inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    shown = f'<img alt="{html.escape(name)}" src="{source}">'
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(rows: Sequence[Sequence[str]], head: bool = True) -> str:
    """Cells; the first row names the columns where there is a `head`."""
    tags = ["th" if head else "td", *["td"] * len(rows)]
    lines = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for row, tag in zip(rows, tags, strict=False)
    )
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def document(title: str, body: str) -> str:
    """The whole page."""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{body}
</body></html>
"""
