"""The reference objective (UPW's): −log p of the next word, or of the first pixel of the next window."""

from typing import Any, NamedTuple

import jax
import optax
from jax import numpy as jnp

from pixtok.document import NO_TARGET


class Sums(NamedTuple):
    """Sums over a batch or many, kept apart by modality until the end: never a mean of means.  Scalars."""

    nats_word: Any
    """Σ −log p(word), in nats; special tokens are words."""
    words: Any
    nats_first_pixel: Any
    """Σ −log p(first pixel of a window), in nats."""
    first_pixels: Any


def reference(logits_BSU: jax.Array, target_BS: jax.Array, vocab_size: int) -> Sums:
    """Sums of the objective, float32, and int32 counts; slots without a target count nowhere."""
    nats_BS = optax.softmax_cross_entropy_with_integer_labels(logits_BSU, jnp.maximum(target_BS, 0))
    is_word_BS = (target_BS != NO_TARGET) & (target_BS < vocab_size)
    is_pixel_BS = target_BS >= vocab_size
    return Sums(
        jnp.sum(nats_BS, where=is_word_BS),
        jnp.sum(is_word_BS, dtype=jnp.int32),
        jnp.sum(nats_BS, where=is_pixel_BS),
        jnp.sum(is_pixel_BS, dtype=jnp.int32),
    )


def figures(sums: Sums) -> dict[str, float]:
    """Sums → `loss` (nats per target of either kind), `nats_word`, `nats_first_pixel`; absent without targets."""
    nats_word, words, nats_first_pixel, first_pixels = (float(value) for value in sums)
    out = {}
    if words + first_pixels:
        out["loss"] = (nats_word + nats_first_pixel) / (words + first_pixels)
    if words:
        out["nats_word"] = nats_word / words
    if first_pixels:
        out["nats_first_pixel"] = nats_first_pixel / first_pixels
    return out
