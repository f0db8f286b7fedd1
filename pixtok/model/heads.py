"""From states to probabilities: of the next slot, and of one pixel, channel by channel."""

import flax.linen as nn
import jax
import optax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model
from pixtok.document import NO_TARGET
from pixtok.model.chunk import chunked
from pixtok.model.param import embedding, linear, matrix, param


class UnifiedHead(nn.Module):
    """y_BSE → float32 logits over U outcomes: V words, then the first folded colour of a window that follows.

    Where folded colours are too many there is one outcome for all windows, and a `Chain` tells the colour.
    """

    config: Model
    dtype: jnp.dtype

    def setup(self) -> None:
        E, U = self.config.trunk.width, self.config.vocab_size + fold.outcomes(self.config.fold_factor)
        # Standard deviation 1/E: logits of order 1/√E, so that the first loss is ln U.
        self.kernel = param(self, "kernel", (E, U), ("embed", "outcome"), nn.initializers.normal(stddev=1 / E))

    def __call__(self, y_BSE: jax.Array) -> jax.Array:
        return linear(y_BSE, self.kernel, preferred_element_type=jnp.float32)

    def nats(self, y_BSE: jax.Array, target_BS: jax.Array) -> jax.Array:
        """−log p of each target, (B, S) in float32, 0 where there is none; never holds much more than y does."""

        def some(y_BSE: jax.Array, target_BS: jax.Array) -> jax.Array:
            nats_BS = optax.softmax_cross_entropy_with_integer_labels(self(y_BSE), jnp.maximum(target_BS, 0))
            return jnp.where(target_BS == NO_TARGET, 0, nats_BS)

        E, U = self.kernel.shape
        return chunked(some, -(-U // E), 1, y_BSE, target_BS)


class Chain(nn.Module):
    """p(v_1) p(v_2 | v_1) … of the C parts of one pixel, of `sizes` values each, given its state.

    The state, to which the embeddings of parts already known are added, goes through one hidden layer for each part.
    """

    width: int
    sizes: tuple[int, ...]
    dtype: jnp.dtype

    def setup(self) -> None:
        E = self.width

        def make(name: str, index: int, *declared) -> jax.Array:
            return param(self, f"{name}_{index}", *declared)

        numbers = range(len(self.sizes))
        self.hidden = [make("hidden", c, (E, 2 * E), ("pixel_embed", "mlp"), matrix(E)) for c in numbers]
        # As for the unified head: the first loss is the logarithm of the size.
        out = nn.initializers.normal(stddev=1 / E)
        self.out = [make("out", c, (2 * E, size), ("mlp", "level"), out) for c, size in enumerate(self.sizes)]
        self.known = [
            make("table", c, (size, E), ("level", "pixel_embed"), embedding())
            for c, size in enumerate(self.sizes[:-1])  # nothing depends on the last
        ]

    def logits(self, part: int, state_E: jax.Array) -> jax.Array:
        """Float32 logits (…, sizes[part]) of one part, from the state that knows the parts before."""
        hidden = nn.silu(linear(state_E, self.hidden[part]))
        return linear(hidden, self.out[part], preferred_element_type=jnp.float32)

    def tell(self, part: int, state_E: jax.Array, value: jax.Array) -> jax.Array:
        """The state, knowing one more part; the last tells nobody."""
        return state_E if part == len(self.known) else state_E + self.known[part][value].astype(self.dtype)

    def nats(self, state_BMWE: jax.Array, value_BMWC: jax.Array) -> jax.Array:
        """−log p of each part of each pixel, (B, M, W, C) in float32; never holds much more than the states do."""

        def some(state_BMWE: jax.Array, value_BMWC: jax.Array) -> jax.Array:
            out = []
            for part in range(len(self.sizes)):
                value_BMW = value_BMWC[..., part]
                logits = self.logits(part, state_BMWE)
                out.append(optax.softmax_cross_entropy_with_integer_labels(logits, value_BMW))
                state_BMWE = self.tell(part, state_BMWE, value_BMW)
            return jnp.stack(out, axis=-1)

        return chunked(some, -(-sum(self.sizes) // self.width), 2, state_BMWE, value_BMWC)
