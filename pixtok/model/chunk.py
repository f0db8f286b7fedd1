"""Work along an axis in pieces, so that what it needs in between is never held all at once."""

from collections.abc import Callable

import jax
from jax import numpy as jnp


def chunked(function: Callable[..., jax.Array], chunks: int, axis: int, *arrays: jax.Array) -> jax.Array:
    """`function(*arrays)`, which acts on each position of `axis` alone, in so many pieces, one after the other.

    In the backward pass each piece is computed again.  One piece is a plain call.
    """
    size = arrays[0].shape[axis]
    length = -(-size // max(1, min(chunks, size)))
    count = -(-size // length)
    if count == 1:
        return function(*arrays)

    def cut(array: jax.Array) -> jax.Array:
        pad = [(0, 0)] * array.ndim
        pad[axis] = (0, count * length - size)
        shape = (*array.shape[:axis], count, length, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, pad).reshape(shape), axis, 0)

    pieces = jax.lax.map(lambda part: jax.checkpoint(function)(*part), tuple(map(cut, arrays)))
    joined = jnp.moveaxis(pieces, 0, axis)
    whole = joined.reshape(*joined.shape[:axis], count * length, *joined.shape[axis + 2 :])
    return jax.lax.slice_in_dim(whole, 0, size, axis=axis)
