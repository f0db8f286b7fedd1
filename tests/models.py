"""Small models and rows for tests."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp

from pixtok import document, words
from pixtok.config import Model, Stream
from pixtok.document import Document, Rows
from pixtok.model.model import UnifiedModel

SMALL = Model(
    encoder=Stream(width=16, layers=2, heads=2, kv_heads=1),
    trunk=Stream(width=24, layers=2, heads=2, kv_heads=2),
    decoder=Stream(width=16, layers=2, heads=2, kv_heads=1),
    fold_factor=64,
    window=3,
    halo=2,
)

STEM = dataclasses.replace(SMALL, stem=20)
READING = dataclasses.replace(SMALL, objective="words")
PATCHES = dataclasses.replace(READING, variant="patches", stem=20, encoder=dataclasses.replace(SMALL.encoder, layers=0))


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([height, width, seed]).integers(256, size=(height, width, 3), dtype=np.uint8)


def batch(*documents, config: Model = SMALL, slots: int = 40, windows: int = 16) -> Rows:
    """One row of these documents."""
    pieces = [
        document.tokenize(
            Document("", tuple(parts)),
            words.Bytes(),
            vocab_size=config.vocab_size,
            fold_factor=config.fold_factor,
            side=config.window,
        )
        for parts in documents
    ]
    row = document.pack(pieces, document.empty_row(slots, windows, config.window))
    return Rows(*(array[None] for array in row))


def stack(rows) -> Rows:
    """Batches → one batch."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


@functools.cache
def compiled(config: Model, method: str | None = None, dtype: str = "float32"):
    """A method of a model, jitted: (variables, …) → its result."""
    return jax.jit(functools.partial(UnifiedModel(config, jnp.dtype(dtype)).apply, method=method))


@functools.cache
def variables(config: Model, scale: float = 1.0):
    """Initial weights; a `scale` above 1 makes predictions differ much."""
    model, rows = UnifiedModel(config), batch(("", image(2, 2)), config=config)
    params = jax.jit(lambda: nn.unbox(model.init(jax.random.key(0), rows)))()
    return jax.tree.map(lambda leaf: leaf * scale, params)
