"""The likelihood of words and pixels, as sums that are kept apart by modality until the end.

    −log p(document) = Σ_slots −log p(word or window | before) + Σ_windows Σ_i −log p(x_{m,i} | …) + residual terms

The unified head says whether a window follows, the pixel decoder gives its pixels.  It sums to one over all
documents, in which any slot may hold any word or a window.  The height and width of an image are given, and yet the
model pays for saying that each window follows; who knows them may spend less.  UPW's objective is the first sum and
the folded colours of first pixels, which its head gives at once: −log p(u_{s+1} | u_≤s).  Where words alone are
predicted, windows are given, and the sum is that of words given what comes before them.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from pixtok.config import Model
from pixtok.document import NO_TARGET, Rows
from pixtok.model.heads import parts
from pixtok.model.model import Nats


class Sums(NamedTuple):
    """Sums over something; never a mean of means.  Nats, or counts."""

    nats_word: Any
    """Σ −log p(word); special tokens are words."""
    words: Any
    nats_first_pixel: Any
    """Σ −log p(a window follows, and the folded colour of its first pixel)."""
    first_pixels: Any
    nats_fold: Any
    """Σ −log p(folded colour) of all other pixels."""
    nats_residual: Any
    """Σ −log p(what folding leaves out) of all pixels."""
    pixels: Any
    """Number of pixels; 0 when only first ones are predicted."""


def counts(rows: Rows, model: Model) -> dict[str, jax.Array]:
    """The counts among the `Sums` of whole rows."""
    target_BS = jnp.asarray(rows.target_BS)
    return {
        "words": jnp.sum((target_BS != NO_TARGET) & (target_BS < model.vocab_size), dtype=jnp.int32),
        "first_pixels": jnp.sum(_is_window(target_BS, model), dtype=jnp.int32),
        "pixels": jnp.sum(rows.shape_BM2.prod(-1), dtype=jnp.int32) if model.objective == "full" else jnp.int32(0),
    }


def _is_window(target_BS: jax.Array, model: Model) -> jax.Array:
    """Where the target is a window, and predicted."""
    return target_BS >= model.vocab_size if model.objective != "words" else jnp.zeros_like(target_BS, bool)


def by_slot(nats: Nats, rows: Rows, model: Model) -> Sums:
    """Sums for each slot, (B, S): float32 nats, int32 counts.  A slot's are those of what follows it."""
    rows = jax.tree.map(jnp.asarray, rows)
    target_BS = rows.target_BS
    is_word_BS = (target_BS != NO_TARGET) & (target_BS < model.vocab_size)
    is_window_BS = _is_window(target_BS, model)
    full = model.objective == "full"

    pixel_1W = jnp.arange(nats.pixel_BMWC.shape[2])[None, None]
    valid_BMW = pixel_1W < rows.shape_BM2.prod(-1)[:, :, None]
    fold_BMW = jnp.where(valid_BMW, nats.pixel_BMWC[..., :3].sum(-1), 0)
    residual_BMW = jnp.where(valid_BMW, nats.pixel_BMWC[..., 3:].sum(-1), 0)

    def put(window_BM: jax.Array) -> jax.Array:
        """What belongs to windows → to the slots before them."""
        zeros_BS = jnp.zeros(target_BS.shape, window_BM.dtype)
        before_BM = rows.window_slot_BM - 1  # S − 1 for an absent window, which adds 0
        return jax.vmap(lambda z_S, slot_M, x_M: z_S.at[slot_M].add(x_M))(zeros_BS, before_BM, window_BM)

    first_BS = jnp.where(is_window_BS, nats.slot_BS, 0)
    if parts(model):
        first_BS += put(fold_BMW[:, :, 0])
    count_BM = rows.shape_BM2.prod(-1) if full else jnp.zeros(rows.shape_BM2.shape[:2], jnp.int32)
    return Sums(
        jnp.where(is_word_BS, nats.slot_BS, 0),
        is_word_BS.astype(jnp.int32),
        first_BS,
        is_window_BS.astype(jnp.int32),
        put(fold_BMW[:, :, 1:].sum(-1)),
        put(residual_BMW.sum(-1)),
        put(count_BM),
    )


def total(sums: Sums) -> Sums:
    """Over all slots."""
    return jax.tree.map(jnp.sum, sums)


def loss(sums: Sums, model: Model) -> Any:
    """What training minimises.

    `full`: nats per word + nats per sub-pixel.  `reference`: nats per target, word or first pixel alike.  `words`:
    nats per word.
    """
    if model.objective != "full":
        targets = sums.words + sums.first_pixels
        return _ratio(sums.nats_word + sums.nats_first_pixel, targets)
    return _ratio(sums.nats_word, sums.words) + _ratio(
        sums.nats_first_pixel + sums.nats_fold + sums.nats_residual, 3 * sums.pixels
    )


def _ratio(nats: Any, count: Any) -> Any:
    """0 of nothing; for scalars and arrays of numpy and jax."""
    return nats / (count + (count == 0))


def figures(sums: Sums, model: Model) -> dict[str, Any]:
    """Sums → the figures that they define, of scalars or of arrays of any shape.

    `loss`; `nats_word`, `nats_first_pixel`: nats each; `bpd_fold`: bits per folded sub-pixel; `bpd_8bit`: bits per
    8-bit sub-pixel, where residuals are predicted or nothing is folded; `reference`: UPW's objective, nats per word or
    first pixel.
    """
    out = {"loss": loss(sums, model)}
    bits = 3 * math.log(2)
    for name, nats, count in (
        ("nats_word", sums.nats_word, sums.words),
        ("nats_first_pixel", sums.nats_first_pixel, sums.first_pixels),
        ("bpd_fold", sums.nats_first_pixel + sums.nats_fold, sums.pixels * bits),
        ("bpd_8bit", sums.nats_first_pixel + sums.nats_fold + sums.nats_residual, sums.pixels * bits),
        ("reference", sums.nats_word + sums.nats_first_pixel, sums.words + sums.first_pixels),
    ):
        defined = name != "bpd_8bit" or model.residual or model.fold_factor == 1
        defined &= name != "reference" or model.objective != "words"
        if defined and np.any(np.asarray(count) > 0):
            out[name] = _ratio(nats, count)
    return out
