import dataclasses
import functools

import msgpack
import numpy as np
import pytest
from models import SMALL, STEM, batch, compiled, image, variables

from pixtok.codec import Codec, read_header
from pixtok.errors import InputError

BY_CHANNEL = dataclasses.replace(SMALL, fold_factor=1)
ONE_LEVEL = dataclasses.replace(SMALL, fold_factor=256)


@functools.cache
def codec(config, scale=1.5) -> Codec:
    return Codec(config, variables(config, scale)["params"])


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        pytest.param(SMALL, 1.5, id="residual"),
        pytest.param(STEM, 1.5, id="stem", marks=pytest.mark.slow),
        pytest.param(BY_CHANNEL, 1.5, id="by-channel", marks=pytest.mark.slow),
        pytest.param(ONE_LEVEL, 1.5, id="one-level", marks=pytest.mark.slow),
        pytest.param(BY_CHANNEL, 2.0, id="overconfident", marks=pytest.mark.slow),
    ],
)
def test_what_comes_out_is_what_went_in_and_as_long_as_its_likelihood(config, scale):
    made = codec(config, scale)
    for height, width in ((7, 8), (1, 1), (1, 13)):
        picture = image(height, width)
        content = made.compress(picture)
        np.testing.assert_array_equal(made.decompress(content), picture)
        rows = batch((picture,), config=config, slots=16, windows=9)
        nats = compiled(config)(variables(config, scale), rows)
        valid = np.arange(config.window**2) < rows.shape_BM2.prod(-1)[..., None]
        parts = np.where(valid[..., None], nats.pixel_BMWC, 0).astype(np.float64)
        follows = np.float64(nats.slot_BS)[rows.target_BS >= config.vocab_size].sum()
        bits = (parts.sum() + follows) / np.log(2)
        words = len(read_header(content)["words"]) * 8
        assert bits - 1 <= words <= 1.001 * bits + 64


def test_a_file_of_other_weights_is_refused():
    content = codec(SMALL).compress(image(3, 3))
    with pytest.raises(InputError, match="written with other weights"):
        codec(SMALL, 1.25).decompress(content)


def test_files_that_are_not_ours_or_are_damaged_are_refused():
    content = codec(SMALL).compress(image(4, 4))
    for other in (b"", b"PNG", content[:-20], msgpack.packb([1]), msgpack.packb({"format": "pixtok 0"})):
        with pytest.raises(InputError, match="not a file that `pixtok compress` made"):
            codec(SMALL).decompress(other)
    header = msgpack.unpackb(content)
    words = bytes(header["words"][:4]) + bytes(byte ^ 255 for byte in header["words"][4:])
    with pytest.raises(InputError, match="damaged"):
        codec(SMALL).decompress(msgpack.packb(header | {"words": words}))
    for words in (b"\xff" * 64, header["words"] + bytes(400)):
        with pytest.raises(InputError, match="damaged"):
            codec(SMALL).decompress(msgpack.packb(header | {"words": words}))
    for change in ({"height": 0}, {"width": 1 << 40}, {"words": b"123"}, {"crc": None}):
        with pytest.raises(InputError, match="damaged"):
            codec(SMALL).decompress(msgpack.packb(header | change))
    with pytest.raises(InputError, match=r"was written with jax 0.1"):
        codec(SMALL).decompress(msgpack.packb(header | {"jax": "0.1"}))


def test_a_model_without_residuals_cannot_compress():
    with pytest.raises(InputError, match="does not predict all 8 bits"):
        Codec(dataclasses.replace(SMALL, residual=False), {})
