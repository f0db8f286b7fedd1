"""One image of 4096 × 4096 pixels, on 16 chips that are not here."""

import importlib.util
import math
import re

import pytest

from helpers import ROOT
from pixtok import config, sharding
from pixtok.step import Program
from pixtok_kernels import topology

USABLE = int(15.75 * 2**30)
"""Bytes of a v5e chip's 16 GB that its compiler gives to a program."""
SIZES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}


def gathered(text: str) -> list[int]:
    """Bytes of the result of each all-gather of a compiled program."""
    found = []
    for result in re.findall(r" = (\S.*?) all-gather(?:-start)?\(", text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        found.append(max(SIZES[kind] * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in arrays))
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_step_of_one_large_image_fits_sixteen_chips():
    experiment = config.load(ROOT / "experiments" / "megapixel.py")
    mesh = sharding.make_mesh(experiment.mesh, topology.tpu("v5e", "4x4").devices)
    step = Program(experiment, mesh).lower_train_step().compile()
    memory = step.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert taken - memory.alias_size_in_bytes < USABLE
    # Keys and values of all pixels, in bfloat16: no collective moves more than a few of them.
    model, windows = experiment.model, experiment.data.windows
    pixels = windows * model.window**2
    of_all_pixels = pixels * 2 * model.decoder.kv_heads * model.decoder.head_width * 2
    sizes = gathered(step.as_text())
    assert sizes
    assert max(sizes) < of_all_pixels / 8
