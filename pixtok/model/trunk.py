"""The trunk: the causal decoder over words and summaries of windows."""

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok.config import Model, Remat
from pixtok.document import Rows
from pixtok.model.attention import Cache, line_angles
from pixtok.model.block import RMSNorm, Stack
from pixtok.model.embed import WordEmbed
from pixtok.model.mesh import split


class Trunk(nn.Module):
    """Rows and summaries (B, M, E) → normalised states y_BSE; documents of one row do not see each other."""

    config: Model
    dtype: jnp.dtype
    remat: Remat

    def setup(self) -> None:
        stream = self.config.trunk
        self.embed = WordEmbed(self.config.vocab_size, stream.width, self.dtype)
        self.stack = Stack(stream, self.dtype, self.remat)
        self.norm = RMSNorm(self.dtype)

    def __call__(self, rows: Rows, summary_BME: jax.Array) -> jax.Array:
        x_BSE = self.embed(rows.word_BS)
        # An absent window has slot S, which is out of bounds and so dropped.
        put = jax.vmap(lambda x_SE, slot_M, summary_ME: x_SE.at[slot_M].set(summary_ME, mode="drop"))
        x_BSE = split(put(x_BSE, rows.window_slot_BM, summary_BME))
        angle_BSR = line_angles(jnp.asarray(rows.position_BS), self.config.trunk.head_width)
        return self.norm(self.stack(x_BSE, angle_BSR, jnp.asarray(rows.segment_BS)))

    def step(self, x_BE: jax.Array, cache: Cache, slot: jax.Array) -> tuple[jax.Array, Cache]:
        """The embedding of a word or a summary, at slot number `slot` of a document → y (B, E)."""
        angle_B1R = line_angles(jnp.broadcast_to(slot, (x_BE.shape[0], 1)), self.config.trunk.head_width)
        y_B1E, cache = self.stack.each("step", x_BE[:, None], cache, angle_B1R, slot)
        return self.norm(y_B1E)[:, 0], cache
