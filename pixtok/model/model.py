"""The unified model: documents in, −log p of every word and pixel out."""

from typing import NamedTuple

import flax.linen as nn
import jax
from jax import numpy as jnp

from pixtok import fold
from pixtok.config import Model, Remat
from pixtok.document import Rows
from pixtok.model.decoder import PixelDecoder
from pixtok.model.encoder import PixelEncoder
from pixtok.model.heads import Chain, UnifiedHead, parts
from pixtok.model.patches import PatchEncoder
from pixtok.model.trunk import Trunk


class Nats(NamedTuple):
    """−log p, in nats, float32."""

    slot_BS: jax.Array
    """Of the target of each slot; 0 where there is none, or none that the objective predicts."""
    pixel_BMWC: jax.Array
    """Of the parts of each pixel that the chain predicts, in its order.  W is 1 when only first pixels are predicted.
    What stands at padding has no meaning."""


class UnifiedModel(nn.Module):
    """Rows → `Nats`.  Pixel or patch encoder, trunk, unified head, pixel decoder, chain."""

    config: Model
    dtype: jnp.dtype = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        config = self.config
        self.encoder = (
            PatchEncoder(config, self.dtype)
            if config.variant == "patches"
            else PixelEncoder(config, self.dtype, self.remat)
        )
        self.trunk = Trunk(config, self.dtype, self.remat)
        self.head = UnifiedHead(config, self.dtype)
        if parts(config):
            self.decoder = PixelDecoder(config, self.dtype, self.remat)
            self.chain = Chain(config.decoder.width, parts(config), self.dtype, config.transfer)

    def __call__(self, rows: Rows) -> Nats:
        y_BSE, state_BMWE = self.states(rows)
        slot_BS = self.head.nats(y_BSE, jnp.asarray(rows.target_BS))
        if state_BMWE is None:
            return Nats(slot_BS, jnp.zeros((*rows.window_slot_BM.shape, 1, 0), jnp.float32))
        colour_BMW = jnp.asarray(rows.pixel_BMW)[:, :, : state_BMWE.shape[2]]
        return Nats(slot_BS, self.chain.nats(state_BMWE, values(colour_BMW, self.config)))

    def states(self, rows: Rows) -> tuple[jax.Array, jax.Array | None]:
        """→ (the trunk's states y_BSE; the states (B, M, W, E) that predict pixels, None where nothing does).

        W is 1 when only first pixels are predicted.
        """
        h_BMWE, summary_BME = self.encoder(rows.pixel_BMW, rows.shape_BM2, rows.place_BM4)
        y_BSE = self.trunk(rows, summary_BME)
        if not parts(self.config):
            return y_BSE, None
        before_BM = jnp.clip(jnp.asarray(rows.window_slot_BM) - 1, 0, rows.word_BS.shape[1] - 1)
        first_BME = self.decoder.first(jnp.take_along_axis(y_BSE, before_BM[:, :, None], axis=1))
        if self.config.objective == "reference":
            return y_BSE, first_BME[:, :, None]
        assert h_BMWE is not None, "what predicts pixels has their states"
        embed = lambda colour: self.chain.embed(values(colour, self.config))  # noqa: E731
        return y_BSE, self.decoder(rows, h_BMWE, embed, y_BSE, first_BME)

    def logits(self, rows: Rows) -> jax.Array:
        """Logits (B, S, U) of the unified head, float32."""
        return self.head(self.states(rows)[0])


def values(colour: jax.Array, config: Model) -> jax.Array:
    """Packed colours → the parts (…, C) that the chain predicts."""
    both = fold.split(colour, config.fold_factor)
    return jnp.concatenate(both, axis=-1)[..., : len(parts(config))]
