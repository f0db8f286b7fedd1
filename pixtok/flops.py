"""Our own ledger of parameters and FLOPs, by group, from the configuration and the shape of a row alone.

Matrix products only, 2 for each multiplication and addition.  *Useful* FLOPs: attention counts the pairs that are seen,
so a causal square of n counts n·(n+1)/2, whatever an implementation computes; what is computed a second time in the
backward pass counts nothing.  A training step costs three times its forward pass.  So that is what MFU divides by.

Rows are taken as full: S slots of one document, all M windows present with all W pixels and all P halo keys, and a
window that sees half of the slots on average.
"""

from typing import NamedTuple

from pixtok import fold
from pixtok.config import Experiment, Stream
from pixtok.model.embed import PLACE_SIZE
from pixtok.model.halo import offsets
from pixtok.model.heads import outcomes, parts


class Entry(NamedTuple):
    """One group."""

    parameters: int
    forward: int
    """FLOPs of one row."""


def _block(stream: Stream) -> tuple[int, int]:
    """(parameters of one block without its two norms, FLOPs of one token without attention's scores and values)."""
    E, H, K, D = stream.width, stream.heads, stream.kv_heads, stream.head_width
    weights = E * D * (2 * H + 2 * K) + 3 * E * stream.hidden
    return weights, 2 * weights


def _scores(stream: Stream, pairs: int) -> int:
    """FLOPs of scores and weighted values of so many (query, key) pairs in each of all blocks."""
    return stream.layers * 4 * pairs * stream.heads * stream.head_width


def ledger(experiment: Experiment) -> dict[str, Entry]:
    """Parameters, and FLOPs of one row's forward pass, by group; the groups are all of the model."""
    model, data = experiment.model, experiment.data
    S, M, W = data.slots, data.windows, model.window**2
    N = M * W
    encoder, trunk, decoder = model.encoder, model.trunk, model.decoder
    full, sizes = model.objective == "full", parts(model)

    table = (
        3 * fold.levels(model.fold_factor)
        if fold.by_channel(model.fold_factor)
        else fold.colours(model.fold_factor) + 1
    )
    entries = {"embeddings": Entry(model.vocab_size * trunk.width + table * encoder.width, 0)}

    weights, token = _block(encoder)
    own = encoder.layers * (weights + 2 * encoder.width) + encoder.width
    flops = encoder.layers * N * token + _scores(encoder, M * W * (W + 1) // 2)
    if encoder.width != trunk.width:
        own += encoder.width * trunk.width
        flops += 2 * M * encoder.width * trunk.width
    if model.variant == "pixtok":
        own += PLACE_SIZE * trunk.width
        flops += 2 * M * PLACE_SIZE * trunk.width
    entries["encoder"] = Entry(own, flops)

    weights, token = _block(trunk)
    own = trunk.layers * (weights + 2 * trunk.width) + trunk.width
    entries["trunk"] = Entry(own, trunk.layers * S * token + _scores(trunk, S * (S + 1) // 2))

    U = outcomes(model)
    entries["unified head"] = Entry(trunk.width * U, 2 * S * trunk.width * U)

    if not sizes:
        return entries
    own, flops = trunk.width * decoder.width, 2 * M * trunk.width * decoder.width
    if full:
        # What predicts the pixels of a window: its beginning, and they themselves.
        T, P = 1 + W, len(offsets(model.halo, model.window))
        weights, token = _block(decoder)
        own += encoder.width * (1 + decoder.width) + decoder.layers * (weights + 2 * decoder.width) + decoder.width
        flops += 2 * N * encoder.width * decoder.width + decoder.layers * M * T * token
        near = M * (W * (W + 1) // 2 + 1 + T * P)
        entries["decoder"] = Entry(own, flops)
        entries["GCA, exact"] = Entry(0, _scores(decoder, near))
        if model.summaries and decoder.layers:
            project = trunk.width * decoder.width
            keys = decoder.layers * 2 * decoder.width * decoder.kv_heads * decoder.head_width
            far = _scores(decoder, M * T * S // 2)
            entries["GCA, approximate"] = Entry(project + keys, 2 * S * (project + keys) + far)
    else:
        entries["decoder"] = Entry(own, flops)
    E = decoder.width
    pixels = N if full else M
    tables = sum(sizes) * E
    own = len(sizes) * 4 * E * E + tables + sum(sizes[:-1]) * E
    entries["pixel head"] = Entry(own, 2 * pixels * (len(sizes) * 4 * E * E + tables))
    return entries


def parameters(experiment: Experiment) -> int:
    """Of the whole model."""
    return sum(entry.parameters for entry in ledger(experiment).values())


def training_step(experiment: Experiment) -> int:
    """Useful FLOPs of one optimizer step: three forward passes of all rows of a batch."""
    return 3 * experiment.train.batch_size * sum(entry.forward for entry in ledger(experiment).values())
