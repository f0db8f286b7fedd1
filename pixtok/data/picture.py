"""What a data set holds, in words and as a picture."""

import numpy as np
from PIL import Image, ImageDraw

from pixtok import fold
from pixtok.data import images
from pixtok.data.index import SPLITS, Dataset
from pixtok.errors import InputError


def facts(dataset: Dataset) -> list[tuple[str, str]]:
    """Rows of a table: counts, sizes, settings."""
    manifest, sizes = dataset.manifest, dataset.index.part_T2
    image_T2 = sizes[sizes[:, 0] > 0].astype(np.int64)
    rows = [(split, f"{manifest.documents[split]:,} documents") for split in SPLITS]
    rows.append(("images", f"{len(image_T2):,}"))
    if len(image_T2):
        low, high = image_T2.min(0), image_T2.max(0)
        rows.append(("pixels", f"{image_T2.prod(1).sum():,}"))
        rows.append(("height × width", f"{low[0]} … {high[0]} × {low[1]} … {high[1]}"))
    rows.append(("text tokens", f"{manifest.text_tokens:,} ({manifest.vocabulary})"))
    rows.append(("image_size", str(manifest.image_size)))
    rows.append(("bad, skipped", f"{manifest.bad:,}"))
    rows.append(("source", manifest.source))
    return rows


def sheet(dataset: Dataset, fold_factor: int, columns: int = 6, rows: int = 3, cell: int = 144) -> Image.Image:
    """A contact sheet of training documents: the first image of each, the same folded, and the text.

    Raises InputError on a fold factor that is no power of two.
    """
    if fold_factor not in fold.FACTORS:
        raise InputError(f"--fold_factor must be one of {', '.join(map(str, fold.FACTORS))}; got {fold_factor}")
    margin, line = 8, 14
    drawn = []
    for item in dataset.read(np.flatnonzero(dataset.index.split_N == 0)[: columns * rows].tolist()):
        picture = next((part for part in item.parts if isinstance(part, bytes)), None)
        pixels = np.full((1, 1, 3), 255, np.uint8) if picture is None else images.decode(picture)[0]
        folded = fold.folded(pixels, fold_factor)
        text = " ".join(part for part in item.parts if isinstance(part, str))
        drawn.append((_scaled(pixels, cell), _scaled(folded, cell), text.replace("\n", " ")[: cell // 6]))
    tall = max(tile.height for tile, _, _ in drawn)
    step = 2 * tall + 2 + line + margin
    page = Image.new("RGB", (columns * (cell + margin) + margin, -(-len(drawn) // columns) * step + margin), "white")
    pen = ImageDraw.Draw(page)
    for number, (tile, folded, text) in enumerate(drawn):
        x, y = margin + number % columns * (cell + margin), margin + number // columns * step
        page.paste(tile, (x, y))
        page.paste(folded, (x, y + tall + 2))
        pen.text((x, y + 2 * tall + 2), text, "black")
    return page


def _scaled(pixels: np.ndarray, cell: int) -> Image.Image:
    """An image with a long side of `cell`."""
    tile = Image.fromarray(pixels)
    scale = cell / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    return tile.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
