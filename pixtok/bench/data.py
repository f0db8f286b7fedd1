"""Rates of the data loader on this machine."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixtok.config import PRESETS, Data, Model
from pixtok.data import packing
from pixtok.data.build import Settings, build
from pixtok.data.index import Dataset
from pixtok.data.pipeline import Loader


def _photos(folder: Path, count: int, side: int) -> None:
    """JPEG files with the spectrum of photographs: noise whose amplitude falls as 1 / frequency."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    fall = 1 / np.maximum(np.hypot(y, x), 1 / side)
    folder.mkdir()
    for number in range(count):
        wave = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) * fall, s=(side, side))
        pixels = np.clip(128 + 50 * wave / wave.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


def _measure(name: str, path: str, model: Model, seconds: float) -> dict[str, Any]:
    windows = max(196, packing.largest_image(Dataset(path).index, model.window, None))
    loader = Loader(Data(path, slots=windows + 60, windows=windows), model, split="train", batch_size=1, seed=0)
    loader.batch(0)  # opens files
    documents = pixels = step = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        rows = loader.batch(step).rows
        documents += int(rows.segment_BS.max(initial=0))
        pixels += int(rows.shape_BM2.prod(-1).sum())
        step += 1
    spent = time.perf_counter() - begin
    return {
        "data": name,
        "documents/s": documents / spent,
        "pixels/s": pixels / spent,
        "rows/s": step / spent,
    }


def rates(path: str | None, seconds: float) -> list[dict[str, Any]]:
    """Rates of the loader without read-ahead, so on one core: decode, fold, pack.

    224² JPEG with 16² windows and 32² JPEG with 8² windows, both made on the spot, and the data set at
    `path` where given.
    """
    rows = []
    tiny = PRESETS["tiny"]
    with tempfile.TemporaryDirectory() as folder:
        for side, window, count in ((224, 16, 256), (32, 8, 2048)):
            source, out = Path(folder) / f"{side}", Path(folder) / f"{side}-data"
            _photos(source, count, side)
            build(str(source), out, Settings())
            model = dataclasses.replace(tiny, window=window)
            rows.append(_measure(f"{side}² JPEG", str(out), model, seconds))
    if path is not None:
        rows.append(_measure(path, path, dataclasses.replace(tiny, window=16), seconds))
    return rows
