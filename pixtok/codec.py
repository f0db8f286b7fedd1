"""Lossless compression of images with the probabilities of a model, as proof that they are what they say.

A file is a msgpack map: what must be equal where it is decoded, and 32-bit words of a range coder (arithmetic coding,
Martin 1979; the coder is constriction's).  Encoder and decoder call the same compiled functions on the same shapes,
one part of one pixel after the other, so that their probabilities agree to the last bit; on another device, or under
another version of jax, they may not, and such a file is refused.
"""

import contextlib
import functools
import importlib.metadata
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import msgpack
import numpy as np
from etils import epath
from jax import numpy as jnp

from pixtok import document, fold, weights, windows
from pixtok.axes import Image
from pixtok.config import Model
from pixtok.data import images
from pixtok.document import Document, Rows
from pixtok.errors import InputError
from pixtok.extras import extra
from pixtok.files import progress_bar, write
from pixtok.run import Run
from pixtok.stepper import Stepper
from pixtok.words import NoWords

_MAGIC = "pixtok 1"
_DAMAGED = "the file is damaged, or was written on a processor that rounds differently from this one"


class _Coder(Protocol):
    def __call__(self, probability_U: np.ndarray, symbol: int | None) -> int:
        """Code one outcome; decoding, `symbol` is None and the outcome is returned."""
        ...


def _in_two(code: _Coder) -> _Coder:
    """Code an outcome as its group of about √U, and then its place there.

    The coder's probabilities are multiples of 2⁻²⁴, and models do give less to what then happens.  This way only
    an outcome whose whole group has less costs less than the model says.
    """

    def both(probability_U: np.ndarray, symbol: int | None) -> int:
        side = math.isqrt(len(probability_U) - 1) + 1 if len(probability_U) > 1 else 1
        table = np.pad(probability_U.astype(np.float64), (0, -len(probability_U) % side)).reshape(-1, side)
        known = (None, None) if symbol is None else divmod(symbol, side)
        group = code(table.sum(1), known[0])
        return group * side + code(table[group] + np.finfo(np.float32).tiny, known[1])

    return both


class _Program:
    """The compiled functions of a `Stepper` for one image of a given size."""

    def __init__(self, model: Model, params: Any, height: int, width: int) -> None:
        self.slots = document.tokenize(
            Document("", (np.zeros((height, width, 3), np.uint8),)),
            NoWords(),
            vocab_size=model.vocab_size,
            fold_factor=model.fold_factor,
            side=model.window,
        )
        empty = document.empty_row(len(self.slots.word_S), len(self.slots.window_slot_M), model.window)
        row = document.pack([self.slots], empty)
        self.stepper = stepper = Stepper(model, Rows(*(array[None] for array in row)))

        def head(params: Any, caches: Any, slot: jax.Array) -> jax.Array:
            return jax.nn.softmax(stepper.logits(params, caches, slot)[0])

        def part(params: Any, number: int, state_BE: jax.Array) -> jax.Array:
            return jax.nn.softmax(stepper.part_logits(params, number, state_BE)[0])

        def compiled(function: Any, **options: Any) -> Any:
            return functools.partial(jax.jit(function, **options), params)

        self.head = compiled(head)
        self.part, self.tell = (compiled(function, static_argnums=1) for function in (part, stepper.tell))
        self.word, self.begin, self.pixel, self.end = (
            compiled(method, donate_argnums=1) for method in (stepper.word, stepper.begin, stepper.pixel, stepper.end)
        )


def _range_coder() -> Any:
    return extra("constriction", "codec").stream


class Codec:
    """One set of weights as a compressor of images of any shape."""

    def __init__(self, model: Model, params: Any) -> None:
        """Raises InputError for a model that does not predict all 8 bits, or without constriction."""
        if model.objective != "full" or (not model.residual and model.fold_factor > 1):
            raise InputError(
                "this model does not predict all 8 bits of every pixel: only one trained with --model.objective full "
                "and --model.residual can compress"
            )
        self._stream = _range_coder()
        self._model, self._params = model, params
        self._programs: dict[tuple[int, int], _Program] = {}

    @functools.cached_property
    def _identity(self) -> dict[str, str]:
        """What must be equal where a file is decoded."""
        return {
            "weights": weights.fingerprint(self._params),
            "jax": " ".join(importlib.metadata.version(name) for name in ("jax", "jaxlib")),
            "device": jax.devices()[0].device_kind,
        }

    def _categorical(self, weight_U: np.ndarray) -> Any:
        return self._stream.model.Categorical(weight_U / weight_U.sum(), perfect=False)

    def compress(self, image: Image, label: str = "") -> bytes:
        """Image → file.  A progress bar has the label."""
        encoder = self._stream.queue.RangeEncoder()

        def encode(probability_U: np.ndarray, symbol: int | None) -> int:
            assert symbol is not None
            if len(probability_U) == 1:  # costs nothing, and the coder refuses it
                return 0
            encoder.encode(symbol, self._categorical(probability_U))
            return symbol

        height, width = image.shape[:2]
        pixel_MW = windows.split(fold.pack(image), self._model.window, fill=fold.PADDING)
        self._run(height, width, pixel_MW, _in_two(encode), label)
        header = {"format": _MAGIC, "height": height, "width": width, "crc": zlib.crc32(image.tobytes())}
        words = encoder.get_compressed().astype("<u4").tobytes()
        return msgpack.packb(header | self._identity | {"words": words})  # pyright: ignore[reportReturnType]

    def decompress(self, content: bytes, label: str = "") -> Image:
        """File → image, bit for bit.  Raises InputError for a file that is damaged or from elsewhere."""
        header = read_header(content)
        for name, here in self._identity.items():
            if header[name] != here:
                raise InputError(
                    f"the file was written with other weights ({header[name][:12]}…, these are {here[:12]}…)"
                    if name == "weights"
                    else f"the file was written with {name} {header[name]}, and here it is {here}: probabilities differ"
                )
        height, width = header["height"], header["width"]
        decoder = self._stream.queue.RangeDecoder(np.frombuffer(header["words"], "<u4").astype(np.uint32))

        def decode(probability_U: np.ndarray, symbol: int | None) -> int:
            return 0 if len(probability_U) == 1 else int(decoder.decode(self._categorical(probability_U)))

        rows, columns = windows.grid(height, width, self._model.window)
        pixel_MW = np.full((rows * columns, self._model.window**2), fold.PADDING, np.int32)
        try:
            self._run(height, width, pixel_MW, _in_two(decode), label, decoding=True)
        except AssertionError:  # the coder's, for words that no encoder writes
            raise InputError(_DAMAGED) from None
        image = fold.unpack(windows.join(pixel_MW, height, width))
        if zlib.crc32(image.tobytes()) != header["crc"] or not decoder.maybe_exhausted():
            raise InputError(_DAMAGED)
        return image

    def _run(
        self, height: int, width: int, pixel_MW: np.ndarray, code: _Coder, label: str, decoding: bool = False
    ) -> None:
        """Code all pixels in order, from and, when decoding, into `pixel_MW`."""
        model = self._model
        if (height, width) not in self._programs:
            self._programs[height, width] = _Program(model, self._params, height, width)
        program = self._programs[height, width]
        slots, stepper = program.slots, program.stepper
        caches = stepper.empty()
        for slot in range(2):
            caches = program.word(caches, jnp.int32(slot), jnp.asarray(slots.word_S[slot : slot + 1]))
        with progress_bar(label) as bar:
            task = bar.add_task("", total=height * width, note="pixels")
            for number, shape in enumerate(slots.shape_M2):
                caches, window = program.begin(caches, jnp.int32(number))
                state_BE, last_BE = window.state_BE, None
                # That a window follows is known, but it is part of the likelihood, which is what is to be shown.
                follows = model.vocab_size
                if code(np.asarray(program.head(caches, window.slot)), None if decoding else follows) != follows:
                    raise InputError(_DAMAGED)
                for i in range(int(shape.prod())):
                    colour_1 = pixel_MW[number, i : i + 1]
                    known = [None] * 6 if decoding else np.asarray(stepper.values(colour_1))[0].tolist()
                    value: list[int] = []
                    for p in range(len(stepper.parts)):
                        value.append(code(np.asarray(program.part(p, state_BE)), known[p]))
                        state_BE = program.tell(p, state_BE, np.array([value[p]], np.int32))
                    colour_1[:] = stepper.colour([np.array([v], np.int32) for v in value])
                    caches, last_BE, state_BE = program.pixel(caches, window, jnp.int32(i), jnp.asarray(colour_1))
                caches = program.end(caches, window, last_BE)
                bar.advance(task, int(shape.prod()))


def read_header(content: bytes) -> dict[str, Any]:
    """The map of a compressed file.  Raises InputError when it is none."""
    try:
        header = msgpack.unpackb(content)
    except (ValueError, msgpack.UnpackException):
        header = None
    if not isinstance(header, dict) or header.get("format") != _MAGIC:
        raise InputError("not a file that `pixtok compress` made")
    kinds = {"height": int, "width": int, "crc": int, "weights": str, "jax": str, "device": str, "words": bytes}
    if any(not isinstance(header.get(name), kind) for name, kind in kinds.items()) or len(header["words"]) % 4:
        raise InputError(_DAMAGED)
    if min(header["height"], header["width"]) < 1 or header["height"] * header["width"] > images.MAX_PIXELS:
        raise InputError(_DAMAGED)
    return header


def compress_file(run_dir: epath.PathLike, source: Path, out: Path, step: int | None = None) -> str:
    """Compress an image file with the weights of a run → what to say of it.

    Raises InputError, also for an image that 8-bit RGB cannot hold.
    """
    image = images.read(source, exact=True)
    content = _codec(run_dir, step).compress(image, "coding")
    write(out, content)
    height, width = image.shape[:2]
    return f"{out}: {len(content)} bytes, {8 * len(content) / image.size:.3f} bits/dim, {height} × {width} pixels"


def decompress_file(run_dir: epath.PathLike, source: Path, out: Path, step: int | None = None) -> str:
    """Write the image of a compressed file as PNG → what to say of it.  Raises InputError."""
    try:
        content = source.read_bytes()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from None
    if out.suffix.lower() != ".png":
        raise InputError(f"OUT must be a .png; got {out}")
    with _named(source):
        read_header(content)  # refuse what it is not before the weights are loaded
    codec = _codec(run_dir, step)
    with _named(source):
        image = codec.decompress(content, "decoding")
    write(out, images.encode(image))
    return f"{out}: {image.shape[0]} × {image.shape[1]} pixels"


@contextlib.contextmanager
def _named(source: Path) -> Iterator[None]:
    """What is wrong inside is wrong with this file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _codec(run_dir: epath.PathLike, step: int | None) -> Codec:
    _range_coder()  # before the weights are loaded
    run = Run(epath.Path(run_dir))
    return Codec(run.experiment.model, weights.load(run, step)[2])
