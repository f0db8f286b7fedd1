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
    positions = np.flatnonzero(dataset.index.split_N == 0)[: columns * rows].tolist()
    margin, line = 8, 14
    height = 2 * cell + line
    page = Image.new("RGB", (columns * (cell + margin) + margin, rows * (height + margin) + margin), "white")
    pen = ImageDraw.Draw(page)
    for number, item in enumerate(dataset.read(positions)):
        x = margin + number % columns * (cell + margin)
        y = margin + number // columns * (height + margin)
        picture = next((part for part in item.parts if isinstance(part, bytes)), None)
        if picture is not None:
            pixels, _ = images.decode(picture)
            folded = fold.unfold(fold.fold(pixels, fold_factor)[0], fold_factor)
            for place, version in enumerate((pixels, folded)):
                tile = Image.fromarray(version)
                scale = cell / max(tile.size)
                size = (max(1, int(tile.width * scale)), max(1, int(tile.height * scale)))
                sampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
                page.paste(tile.resize(size, sampling), (x, y + place * (size[1] + 2)))
        text = " ".join(part for part in item.parts if isinstance(part, str))
        pen.text((x, y + 2 * cell), text.replace("\n", " ")[: cell // 6], "black")
    return page
