"""Measurements, as ratios and rates of one run on this machine."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp
from PIL import Image

from pixtok import document
from pixtok.config import PRESETS, Data, Model
from pixtok.data import packing
from pixtok.data.build import Settings, build
from pixtok.data.index import Dataset
from pixtok.data.pipeline import Loader
from pixtok.document import Rows
from pixtok.model.heads import outcomes, parts
from pixtok.model.model import Nats, UnifiedModel


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


def data(path: str | None, seconds: float) -> list[dict[str, Any]]:
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


def memory(windows: int = 128) -> list[dict[str, Any]]:
    """What a gradient of the full objective needs beyond the states themselves, as the compiler counts it (MiB).

    The preset `tiny` in float32, one row of `windows` windows of 8², for fold factors and widths of the decoder.
    `logits` is what the logits of all pixels and slots would take, were they held at once.
    """
    out, tiny = [], PRESETS["tiny"]
    for factor, width in ((1, 48), (4, 48), (16, 48), (16, 96), (16, 192)):
        model = dataclasses.replace(tiny, fold_factor=factor, decoder=dataclasses.replace(tiny.decoder, width=width))
        slots = windows + 8
        row = document.empty_row(slots, windows, model.window)
        rows = Rows(*(jax.ShapeDtypeStruct((1, *array.shape), array.dtype) for array in row))
        net = UnifiedModel(model, remat="block")
        params = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), rows))

        def likelihood(params: Any, rows: Rows, net: UnifiedModel = net) -> jax.Array:
            nats = cast(Nats, net.apply(params, rows))
            return nats.slot_BS.sum() + nats.pixel_BMWC.sum()

        def states(params: Any, rows: Rows, net: UnifiedModel = net) -> jax.Array:
            found = cast(tuple[jax.Array, ...], net.apply(params, rows, method="states"))
            return sum((jnp.square(state).sum() for state in found), jnp.zeros(()))

        needed = {}
        for function in (states, likelihood):
            compiled = jax.jit(jax.grad(function)).lower(params, rows).compile()
            analysis: Any = compiled.memory_analysis()
            needed[function.__name__] = analysis.temp_size_in_bytes / 2**20
        pixels = windows * model.window**2
        logits = 4 * (pixels * sum(parts(model)) + slots * outcomes(model)) / 2**20
        more = needed["likelihood"] / needed["states"] - 1
        out.append({"fold_factor": factor, "decoder": width, **needed, "more_%": 100 * more, "logits": logits})
    return out
