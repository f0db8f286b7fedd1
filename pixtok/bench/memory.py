"""Memory of the full likelihood, as the compiler counts it."""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok import document
from pixtok.config import PRESETS
from pixtok.document import Rows
from pixtok.model.heads import outcomes, parts
from pixtok.model.model import Nats, UnifiedModel


def table(windows: int = 128) -> list[dict[str, Any]]:
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
