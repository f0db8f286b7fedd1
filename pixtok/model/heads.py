"""From states to probabilities: of the next slot, and of one pixel, channel by channel."""

import flax.linen as nn
import jax
import optax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model
from pixtok.document import NO_TARGET
from pixtok.model.chunk import chunked
from pixtok.model.param import embedding, linear, matrix, neighbours, param


def parts(config: Model) -> tuple[int, ...]:
    """Sizes of the parts of a pixel that a chain predicts: levels of three channels, then their residuals."""
    full, factor = config.objective == "full", config.fold_factor
    if config.objective == "words":
        return ()
    levels = (fold.levels(factor),) * 3 if full or fold.by_channel(factor) else ()
    return levels + ((factor,) * 3 if full and config.residual and factor > 1 else ())


def outcomes(config: Model) -> int:
    """Number U of outcomes of the unified head: words, and a window, by its first colour where no chain tells that."""
    if config.objective == "words":
        return config.vocab_size
    return config.vocab_size + (1 if parts(config) else fold.colours(config.fold_factor))


class UnifiedHead(nn.Module):
    """y_BSE → float32 logits over U outcomes: V words, then that a window follows, unless words alone are predicted.

    UPW's objective has an outcome for each folded colour of that window's first pixel.  Where a `Chain` predicts
    pixels there is one for all windows, and the first pixel is predicted as all others are.
    """

    config: Model
    dtype: jnp.dtype

    def setup(self) -> None:
        E, V, U = self.config.trunk.width, self.config.vocab_size, outcomes(self.config)
        # Standard deviation 1/E: logits of order 1/√E, so that the first loss is ln U.
        init = nn.initializers.normal(stddev=1 / E)
        # Two matrices, since V divides by the devices of a mesh axis where U = V + 1 does not.
        self.word = param(self, "word", (E, V), ("embed", "vocab"), init)
        self.window = param(self, "window", (E, U - V), ("embed", "outcome"), init) if U > V else None

    def __call__(self, y_BSE: jax.Array) -> jax.Array:
        kernel_EU = self.word if self.window is None else jnp.concatenate([self.word, self.window], axis=1)
        return linear(y_BSE, kernel_EU, preferred_element_type=jnp.float32)

    def nats(self, y_BSE: jax.Array, target_BS: jax.Array) -> jax.Array:
        """−log p of each target that the objective has, (B, S) float32, else 0; never holds much more than y does."""
        E, V, U = y_BSE.shape[-1], self.config.vocab_size, outcomes(self.config)

        def some(y_BSE: jax.Array, target_BS: jax.Array) -> jax.Array:
            # Windows of all colours are the last outcome where it is the only one for them.
            nats_BS = optax.softmax_cross_entropy_with_integer_labels(self(y_BSE), jnp.clip(target_BS, 0, U - 1))
            given_BS = target_BS == NO_TARGET if U > V else (target_BS == NO_TARGET) | (target_BS >= V)
            return jnp.where(given_BS, 0, nats_BS)

        return chunked(some, -(-U // E), 1, y_BSE, target_BS)


class Chain(nn.Module):
    """p(v_1) p(v_2 | v_1) … of the C parts of one pixel, of `sizes` values each, given its state.

    The state, to which the embeddings of parts already known are added, goes through one residual layer for each part
    and is compared with the rows of a table of its values.  The same rows tell the decoder what the pixel before was
    (`embed`), so that to repeat it, or nearly, is the first thing that a model knows.
    """

    width: int
    sizes: tuple[int, ...]
    dtype: jnp.dtype
    transfer: bool = False

    def setup(self) -> None:
        E = self.width

        def make(name: str, sizes: tuple[tuple[int, int], ...], axes: tuple[str, str], init) -> list[jax.Array]:
            return [param(self, f"{name}_{part}", shape, axes, init) for part, shape in enumerate(sizes)]

        count, tables = len(self.sizes), tuple((size, E) for size in self.sizes)
        self.up = make("up", ((E, 2 * E),) * count, ("pixel_embed", "mlp"), matrix(E))
        self.down = make("down", ((2 * E, E),) * count, ("mlp", "pixel_embed"), matrix(2 * E, scale=0.1))
        self.value = make("table", tables, ("level", "pixel_embed"), neighbours())
        # Nothing depends on the last part.
        self.known = make("table_known", tables[:-1], ("level", "pixel_embed"), embedding())

    def embed(self, value_C: jax.Array) -> jax.Array:
        """Parts (…, C) of known pixels → the sum of their rows, (…, E)."""
        rows = (table[value_C[..., part]] for part, table in enumerate(self.value))
        return sum(rows, jnp.zeros((), jnp.float32)).astype(self.dtype)  # in this order, gradients add up in float32

    def logits(self, part: int, state_E: jax.Array) -> jax.Array:
        """Float32 logits (…, sizes[part]) of one part, from the state that knows the parts before."""
        state_E = state_E + linear(nn.silu(linear(state_E, self.up[part])), self.down[part])
        # Twice: so that before all training the value before counts for 2 or 3 nats.  What is learned of rows and
        # states alike grows with their width, not its root: with `transfer` they count as at a width of 48.
        scale = 2 * 48**0.5 / self.width if self.transfer else 2 * self.width**-0.5
        return scale * linear(state_E, self.value[part].T, preferred_element_type=jnp.float32)

    def tell(self, part: int, state_E: jax.Array, value: jax.Array) -> jax.Array:
        """The state, knowing one more part; the last tells nobody."""
        return state_E if part == len(self.known) else state_E + self.known[part][value].astype(self.dtype)

    def nats(self, state_BMWE: jax.Array, value_BMWC: jax.Array) -> jax.Array:
        """−log p of each part of each pixel, (B, M, W, C) in float32; holds some four times what the states do."""

        def some(state_BMWE: jax.Array, value_BMWC: jax.Array) -> jax.Array:
            out = []
            for part in range(len(self.sizes)):
                value_BMW = value_BMWC[..., part]
                logits = self.logits(part, state_BMWE)
                out.append(optax.softmax_cross_entropy_with_integer_labels(logits, value_BMW))
                state_BMWE = self.tell(part, state_BMWE, value_BMW)
            return jnp.stack(out, axis=-1)

        # A gradient needs all logits, and for each part its state and twice what is twice as wide.
        needed = sum(self.sizes) + 5 * self.width * len(self.sizes)
        return chunked(some, -(-needed // (4 * self.width)), 2, state_BMWE, value_BMWC)
