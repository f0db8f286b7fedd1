"""The unified model: windows and words in, the next word or first pixel out."""

from typing import Literal

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model
from pixtok.document import Rows
from pixtok.model.attention import line_angles
from pixtok.model.block import RMSNorm, Stack
from pixtok.model.embed import WordEmbed
from pixtok.model.encoder import PixelEncoder
from pixtok.model.param import linear, param


class Trunk(nn.Module):
    """The causal decoder over the slots of a row; documents of one row do not see each other."""

    config: Model
    dtype: jnp.dtype
    remat: Literal["none", "block"]

    @nn.compact
    def __call__(self, rows: Rows, summary_BME: jax.Array) -> jax.Array:
        """→ states y_BSE, normalised."""
        stream = self.config.trunk
        x_BSE = WordEmbed(self.config.vocab_size, stream.width, self.dtype, name="embed")(rows.word_BS)
        # An absent window has slot S, which is out of bounds and so dropped.
        put = jax.vmap(lambda x_SE, slot_M, summary_ME: x_SE.at[slot_M].set(summary_ME, mode="drop"))
        x_BSE = put(x_BSE, rows.window_slot_BM, summary_BME)
        angle_BSR = line_angles(jnp.asarray(rows.position_BS), stream.head_width)
        y_BSE = Stack(stream, self.dtype, self.remat, name="stack")(x_BSE, angle_BSR, jnp.asarray(rows.segment_BS))
        return RMSNorm(self.dtype, name="norm")(y_BSE)


class UnifiedHead(nn.Module):
    """y_BSE → float32 logits over U = V + L³ outcomes: words first, then the first pixel of a window."""

    config: Model
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, y_BSE: jax.Array) -> jax.Array:
        E, U = self.config.trunk.width, self.config.vocab_size + fold.colours(self.config.fold_factor)
        # Standard deviation 1/E: logits of order 1/√E, so that the first loss is ln U.
        kernel_EU = param(self, "kernel", (E, U), ("embed", "outcome"), nn.initializers.normal(stddev=1 / E))
        return linear(y_BSE, kernel_EU, preferred_element_type=jnp.float32)


class UnifiedModel(nn.Module):
    """Pixel encoder, trunk and unified head."""

    config: Model
    dtype: jnp.dtype = jnp.float32
    remat: Literal["none", "block"] = "none"

    @nn.compact
    def __call__(self, rows: Rows) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Rows → (logits (B, S, U), float32; the states `pixels` h_BMWE and `trunk` y_BSE)."""
        encoder = PixelEncoder(self.config, self.dtype, self.remat, name="encoder")
        h_BMWE, summary_BME = encoder(rows.pixel_BMW, rows.shape_BM2, rows.place_BM4)
        y_BSE = Trunk(self.config, self.dtype, self.remat, name="trunk")(rows, summary_BME)
        logits_BSU = UnifiedHead(self.config, self.dtype, name="head")(y_BSE)
        return logits_BSU, {"pixels": h_BMWE, "trunk": y_BSE}
