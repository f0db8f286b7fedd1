"""Any file that Pillow opens, as 8-bit RGB."""

import io
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageOps

from pixtok.axes import Image
from pixtok.errors import InputError

MAX_PIXELS = 2**27
"""More pixels than this (134 million: 16,384 × 8,192) are refused as a decompression bomb."""

_EXACT = ("1", "L", "P", "RGB")
"""Modes of which RGB keeps every pixel."""


class ImageError(ValueError):
    """Not an image that can be used, and why."""


def fit(height: int, width: int, image_size: int | None) -> tuple[int, int]:
    """Height and width after the long side is brought down to `image_size`.

    The aspect ratio is kept, no side falls below 1, and nothing is ever enlarged.  None keeps every size.
    """
    if image_size is None or max(height, width) <= image_size:
        return height, width
    scale = image_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any mode → RGB: transparency over white, 16 bits scaled to 8, everything else by Pillow's conversion."""
    if image.mode.startswith("I"):  # 16-bit greys; Pillow opens some of them as 32-bit integers
        grey = np.asarray(image).astype(np.int64)
        return PIL.Image.fromarray((grey.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image))
        unit = grey if grey.size and grey.max() <= 1 else grey / 255
        return PIL.Image.fromarray((unit.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def decode(content: bytes, image_size: int | None = None, *, exact: bool = False) -> tuple[Image, bool]:
    """Encoded image → (its first frame, upright, RGB, at most `image_size` on its long side; whether it
    differs from what the file holds, pixel for pixel).

    Raises ImageError for a file that is empty, truncated, no image, or larger than MAX_PIXELS; with `exact`, also for
    one whose pixels are more than 8-bit RGB can hold.
    """
    if not content:
        raise ImageError("empty file")
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of large sizes; what matters here is decided below.
            warnings.simplefilter("ignore")
            with PIL.Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS}")
                upright = ImageOps.exif_transpose(image)
                if exact and (upright.has_transparency_data or upright.mode not in _EXACT):
                    raise ImageError(f"8-bit RGB cannot hold its pixels (mode {upright.mode}): convert it first")
                result = _rgb(upright)
                changed = image.mode != "RGB" or upright.size != image.size or image.getexif().get(0x112, 1) != 1
    except ImageError:
        raise
    except PIL.UnidentifiedImageError:
        raise ImageError("not an image that Pillow knows") from None
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(str(error)) from None
    except Exception as error:  # a damaged file can raise anything at all, struct.error and IndexError included
        raise ImageError(f"{type(error).__name__}: {error}") from None
    height, width = fit(result.height, result.width, image_size)
    if (height, width) != (result.height, result.width):
        result = result.resize((width, height), PIL.Image.Resampling.LANCZOS)
        changed = True
    return np.array(result), changed


def read(path: Path, image_size: int | None = None, *, exact: bool = False) -> Image:
    """An image file, decoded.  Raises InputError when it cannot be."""
    try:
        return decode(path.read_bytes(), image_size, exact=exact)[0]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise InputError(f"{path} is no image that can be used: {error}") from None


def encode(image: Image) -> bytes:
    """RGB pixels → a PNG file, without loss."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", compress_level=3)
    return file.getvalue()
