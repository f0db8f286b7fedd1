"""Our own ledger of parameters and FLOPs, by group, from the configuration and the shape of rows alone.

Matrix products only, 2 for each multiplication and addition.  *Useful* FLOPs: attention counts the pairs that are seen,
so a causal square of n counts n·(n+1)/2, whatever an implementation computes; what is computed a second time in the
backward pass counts nothing.  A training step costs three times its forward pass.  So that is what MFU divides by;
HFU counts what `remat` computes again as well.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Experiment, Model, Stream
from pixtok.document import Rows
from pixtok.model.embed import PLACE_SIZE
from pixtok.model.encoder import CHANNELS
from pixtok.model.halo import around, offsets
from pixtok.model.heads import outcomes, parts
from pixtok.model.stem import inputs


class Entry(NamedTuple):
    """One group."""

    parameters: int
    forward: Any
    """FLOPs."""


class Counts(NamedTuple):
    """All of some rows that their FLOPs depend on.  Integers, or float32 scalars on a device."""

    slots: Any
    """Filled ones."""
    windows: Any
    pixels: Any
    slot_pairs: Any
    """(slot, slot of its document up to it)."""
    pixel_pairs: Any
    """(pixel, pixel of its window up to it)."""
    halo_pairs: Any
    """(what predicts a pixel, visible pixel around its window); a window's beginning predicts its first pixel, and
    is a query beside all its pixels."""
    far_pairs: Any
    """(such a query, slot of its document before the window)."""


def full(experiment: Experiment) -> Counts:
    """Of one full row: S slots of one document, all M windows there with all W pixels and all P pixels around.

    A window sees half of the slots, on average.
    """
    data, model = experiment.data, experiment.model
    S, M, W = data.slots, data.windows, model.window**2
    P, T = len(offsets(model.halo, model.window)), 1 + W
    return Counts(S, M, M * W, S * (S + 1) // 2, M * W * (W + 1) // 2, M * T * P, M * T * S // 2)


def counts(rows: Rows, model: Model) -> Counts:
    """Of these rows of documents of any length, in float32: sums may pass what 32 bits hold."""
    rows = jax.tree.map(jnp.asarray, rows)
    filled_BS = (rows.segment_BS > 0).astype(jnp.float32)
    pixels_BM = rows.shape_BM2.prod(-1).astype(jnp.float32)
    here_BM = (pixels_BM > 0).astype(jnp.float32)
    halo_BM = around(rows.shape_BM2, rows.place_BM4, model.halo, model.window, 4).count_BM
    last = rows.word_BS.shape[1] - 1
    before_BM = jnp.take_along_axis(rows.position_BS, jnp.minimum(rows.window_slot_BM, last), axis=1)
    queries_BM = pixels_BM + here_BM
    return Counts(
        filled_BS.sum(),
        here_BM.sum(),
        pixels_BM.sum(),
        (filled_BS * (rows.position_BS + 1)).sum(),
        (pixels_BM * (pixels_BM + 1) / 2).sum(),
        (queries_BM * halo_BM).sum(),
        (queries_BM * before_BM).sum(),
    )


def _block(stream: Stream) -> tuple[int, int]:
    """(parameters of one block without its two norms, FLOPs of one token without attention's scores and values)."""
    E, H, K, D = stream.width, stream.heads, stream.kv_heads, stream.head_width
    weights = E * D * (2 * H + 2 * K) + 3 * E * stream.hidden
    return weights, 2 * weights


def _scores(stream: Stream, pairs: Any) -> Any:
    """FLOPs of scores and weighted values of so many (query, key) pairs in each of all blocks."""
    return stream.layers * 4 * pairs * stream.heads * stream.head_width


def ledger(model: Model, n: Counts) -> dict[str, Entry]:
    """Parameters, and FLOPs of one forward pass of such rows, by group; the groups are all of the model."""
    encoder, trunk, decoder = model.encoder, model.trunk, model.decoder
    is_full, sizes = model.objective == "full", parts(model)
    entries = _patches(model, n) if model.variant == "patches" else _pixels(model, n)

    weights, token = _block(trunk)
    own = trunk.layers * (weights + 2 * trunk.width) + trunk.width
    entries["trunk"] = Entry(own, trunk.layers * n.slots * token + _scores(trunk, n.slot_pairs))

    U = outcomes(model)
    entries["unified head"] = Entry(trunk.width * U, 2 * n.slots * trunk.width * U)

    if not sizes:
        return entries
    own, flops = trunk.width * decoder.width, 2 * n.windows * trunk.width * decoder.width
    if is_full:
        # What predicts the pixels of a window: its beginning, and they themselves.
        weights, token = _block(decoder)
        own += encoder.width * (1 + decoder.width) + decoder.layers * (weights + 2 * decoder.width) + decoder.width
        flops += 2 * n.pixels * encoder.width * decoder.width + decoder.layers * (n.pixels + n.windows) * token
        entries["decoder"] = Entry(own, flops)
        entries["GCA, exact"] = Entry(0, _scores(decoder, n.pixel_pairs + n.windows + n.halo_pairs))
        if model.summaries and decoder.layers:
            project = trunk.width * decoder.width
            keys = decoder.layers * 2 * decoder.width * decoder.kv_heads * decoder.head_width
            far = 2 * n.slots * (project + keys) + _scores(decoder, n.far_pairs)
            entries["GCA, approximate"] = Entry(project + keys, far)
    else:
        entries["decoder"] = Entry(own, flops)
    E = decoder.width
    tables = sum(sizes) * E
    own = len(sizes) * 4 * E * E + tables + sum(sizes[:-1]) * E
    predicted = n.pixels if is_full else n.windows
    entries["pixel head"] = Entry(own, 2 * predicted * (len(sizes) * 4 * E * E + tables))
    return entries


def _pixels(model: Model, n: Counts) -> dict[str, Entry]:
    """Tables, and the pixel encoder."""
    encoder, trunk, factor = model.encoder, model.trunk, model.fold_factor
    table = 3 * fold.levels(factor) if fold.by_channel(factor) else fold.colours(factor) + 1
    weights, token = _block(encoder)
    own = encoder.layers * (weights + 2 * encoder.width)
    whole = _whole(model)
    flops = whole.layers * n.pixels * token + _scores(whole, n.pixel_pairs)
    if whole is not encoder:  # keys and values of all pixels, all else of the last pixels of windows
        keys = 4 * encoder.width * encoder.kv_heads * encoder.head_width
        flops += n.pixels * (keys + 4 * encoder.width) + n.windows * (token - keys)
    if model.stem:
        stem, squeeze = _stem(model, CHANNELS), encoder.width * CHANNELS
        own += stem + squeeze + trunk.width
        flops += 2 * n.windows * stem + 2 * n.pixels * squeeze
    else:
        summary = encoder.width * trunk.width if encoder.width != trunk.width else 0
        own += encoder.width + summary
        flops += 2 * n.windows * summary
    if model.variant == "pixtok":
        own += PLACE_SIZE * trunk.width
        flops += 2 * n.windows * PLACE_SIZE * trunk.width
    tables = model.vocab_size * trunk.width + table * encoder.width
    return {"embeddings": Entry(tables, 0), "encoder": Entry(own, flops)}


def _whole(model: Model) -> Stream:
    """The blocks of the encoder that are done for all pixels: all, but for the last where words alone are predicted."""
    encoder = model.encoder
    few = model.objective == "words" and encoder.layers > 0
    return dataclasses.replace(encoder, layers=encoder.layers - 1) if few else encoder


def _patches(model: Model, n: Counts) -> dict[str, Entry]:
    """The table of words, and the patch encoder."""
    E = model.trunk.width
    weights = _stem(model, 3) + PLACE_SIZE * E
    return {"embeddings": Entry(model.vocab_size * E, 0), "encoder": Entry(weights + E, 2 * n.windows * weights)}


def _stem(model: Model, channels: int) -> int:
    """Weights of a stem without its norm."""
    return (inputs(model.window, channels) + model.trunk.width) * model.stem


def parameters(model: Model) -> int:
    """Of the whole model."""
    return sum(entry.parameters for entry in ledger(model, Counts(*[0] * len(Counts._fields))).values())


def multiplied(model: Model) -> int:
    """Parameters without the tables of embeddings, which no product of matrices uses: the N of scaling laws."""
    groups = ledger(model, Counts(*[0] * len(Counts._fields)))
    return sum(entry.parameters for name, entry in groups.items() if name != "embeddings")


def forward(model: Model, n: Counts) -> Any:
    """Useful FLOPs of one forward pass of such rows."""
    return sum(entry.forward for entry in ledger(model, n).values())


def of(rows: Rows, model: Model) -> jax.Array:
    """Useful FLOPs of one forward pass of these rows, float32."""
    # They are linear in the counts, and their factors may pass what 32 bits hold.
    units = (Counts(*(int(at == one) for at in range(len(Counts._fields)))) for one in range(len(Counts._fields)))
    return sum(
        (count * float(forward(model, unit)) for unit, count in zip(units, counts(rows, model), strict=True)),
        jnp.zeros(()),
    )


def training_step(experiment: Experiment) -> int:
    """Useful FLOPs of one optimizer step on full rows: three forward passes of all rows of a batch."""
    return 3 * experiment.train.batch_size * forward(experiment.model, full(experiment))


def again(experiment: Experiment) -> float:
    """HFU / MFU: what a training step computes, over what is useful of it, for full rows.

    Of blocks as `train.remat` says, but for the products that end them, which no gradient needs; and the heads, where
    they are computed in pieces (see `chunked`).
    """
    model, n, remat = experiment.model, full(experiment), experiment.train.remat
    groups = ledger(model, n)
    second = sum(groups[name].forward for name in _pieces(model) if name in groups)
    streams = [(_whole(model), n.pixels, n.pixel_pairs, 0), (model.trunk, n.slots, n.slot_pairs, 0)]
    if model.objective == "full":
        near = n.pixel_pairs + n.windows + n.halo_pairs
        far = n.far_pairs if model.summaries else 0
        keys = n.slots if model.summaries else 0
        streams.append((model.decoder, n.pixels + n.windows, near + far, keys))
    for stream, tokens, pairs, keys in streams if remat != "none" else ():
        E, H, K, D = stream.width, stream.heads, stream.kv_heads, stream.head_width
        weights = E * D * (H + 2 * K) + (E * H * D + 2 * E * stream.hidden if remat == "block" else 0)
        second += stream.layers * (tokens * 2 * weights + keys * 4 * E * K * D) + _scores(stream, pairs)
    return 1 + second / (3 * forward(model, n))


def _pieces(model: Model) -> list[str]:
    """Heads whose likelihood is computed in pieces, and again in the backward pass."""
    many = {"pixel head": model.objective == "full", "unified head": outcomes(model) > model.trunk.width}
    return [name for name, pieces in many.items() if pieces]


def facts(experiment: Experiment) -> dict[str, Any]:
    """The ledger of an experiment's full rows, as JSON."""
    model, n = experiment.model, full(experiment)
    return {
        "parameters": parameters(model),
        "forward": forward(model, n),
        "training_step": training_step(experiment),
        "hfu_over_mfu": again(experiment),
        "row": n._asdict(),
        "groups": {name: entry._asdict() for name, entry in ledger(model, n).items()},
    }


def table(experiment: Experiment) -> list[list[str]]:
    """The same for people."""
    known = facts(experiment)
    parameters, forward = known["parameters"], known["forward"]
    rows = [["group", "parameters", "", "GFLOP a row, forward", ""]]
    groups = {**known["groups"], "all": {"parameters": parameters, "forward": forward}}
    for name, entry in groups.items():
        own, flops = entry["parameters"], entry["forward"]
        rows.append([name, f"{own:,}", f"{own / parameters:.1%}", f"{flops / 1e9:,.3f}", f"{flops / forward:.1%}"])
    return rows


def remarks(experiment: Experiment) -> str:
    """What to know of the table."""
    known = facts(experiment)
    row, step = known["row"], known["training_step"] / 1e12
    return (
        f"a full row: {row['slots']:,} slots, {row['windows']:,} windows, {row['pixels']:,} pixels\n"
        f"a training step of {experiment.train.batch_size:,} rows: {step:,.4g} TFLOP of use, "
        f"{known['hfu_over_mfu']:.2f} times that with what is computed again"
    )
