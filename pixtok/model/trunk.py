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
        x_BSE = split(self.slots(rows, summary_BME))
        angle_BSR = line_angles(jnp.asarray(rows.position_BS), self.config.trunk.head_width)
        return self.norm(self.stack(x_BSE, angle_BSR, jnp.asarray(rows.segment_BS)))

    def slots(self, rows: Rows, summary_BME: jax.Array) -> jax.Array:
        """What slots hold, embeddings of words and summaries of windows: x_BSE."""
        # An absent window has slot S, which is out of bounds and so dropped.
        put = jax.vmap(lambda x_SE, slot_M, summary_ME: x_SE.at[slot_M].set(summary_ME, mode="drop"))
        return put(self.embed(rows.word_BS), rows.window_slot_BM, summary_BME)

    def step(self, x_BTE: jax.Array, cache: Cache, slot: jax.Array) -> tuple[jax.Array, Cache]:
        """What T slots of a document hold, from number `slot` on → their states y_BTE."""
        B, T, _ = x_BTE.shape
        angle_BTR = line_angles(jnp.broadcast_to(slot + jnp.arange(T), (B, T)), self.config.trunk.head_width)
        y_BTE, cache = self.stack.each("step", x_BTE, cache, angle_BTR, slot)
        return self.norm(y_BTE), cache
