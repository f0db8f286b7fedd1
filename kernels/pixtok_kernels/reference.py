"""Plain jnp: the definition, the oracle of the tests, and the fallback."""

import jax
from einops import rearrange
from jax import numpy as jnp

from pixtok_kernels.shapes import Arguments


def global_conditional_attention(a: Arguments, scale: float) -> jax.Array:
    """See `pixtok_kernels.api`.  Holds all N·(P + W + S) scores of a head at once."""
    q_BMWHD, k_BMPWKD, v_BMPWKD, slot_k_BSKD, slot_v_BSKD, span_BM2, slot_bias_BS, halo_count_BM = a
    W, K = q_BMWHD.shape[2], k_BMPWKD.shape[3]
    near, far = k_BMPWKD.shape[2], slot_k_BSKD.shape[1]
    q_BMWKGD = rearrange(q_BMWHD, "B M W (K G) D -> B M W K G D", K=K)

    def scores(equation: str, keys: jax.Array) -> jax.Array:
        return scale * jnp.einsum(equation, q_BMWKGD, keys, preferred_element_type=jnp.float32)

    near_BMKGWP = scores("BMWKGD, BMPKD -> BMKGWP", k_BMPWKD)
    far_BMKGWS = scores("BMWKGD, BSKD -> BMKGWS", slot_k_BSKD)
    if slot_bias_BS is not None:
        far_BMKGWS += slot_bias_BS.astype(jnp.float32)[:, None, None, None, None, :]

    key_1P, pixel_W1 = jnp.arange(near)[None, :], jnp.arange(W)[:, None]
    own_WP = (key_1P >= near - W) & (key_1P - (near - W) <= pixel_W1)
    halo_WP = jnp.broadcast_to(key_1P < near - W, own_WP.shape)
    counted_BM1P = key_1P[None, None] < halo_count_BM[:, :, None, None]
    near_mask = (own_WP[None, None] | (halo_WP[None, None] & counted_BM1P))[:, :, None, None]
    slot_S = jnp.arange(far)[None, None]
    far_mask_BMS = (span_BM2[:, :, :1] <= slot_S) & (slot_S < span_BM2[:, :, 1:])

    # A pixel always sees itself, so there is no empty softmax.
    score = jnp.concatenate(
        [
            jnp.where(near_mask, near_BMKGWP, -jnp.inf),
            jnp.where(far_mask_BMS[:, :, None, None, None, :], far_BMKGWS, -jnp.inf),
        ],
        axis=-1,
    )
    weight = jax.nn.softmax(score, axis=-1).astype(q_BMWHD.dtype)
    o_BMWKGD = jnp.einsum("BMKGWP, BMPKD -> BMWKGD", weight[..., :near], v_BMPWKD)
    o_BMWKGD += jnp.einsum("BMKGWS, BSKD -> BMWKGD", weight[..., near:], slot_v_BSKD)
    return rearrange(o_BMWKGD, "B M W K G D -> B M W (K G) D")
