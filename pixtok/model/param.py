"""How parameters are declared: shape, logical axes and initializer in one place."""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp
from jax.nn import initializers

from pixtok.model import mesh


def matrix(fan_in: int, scale: float = 1.0) -> initializers.Initializer:
    """Normal of variance `scale` / fan_in, cut at two standard deviations."""
    return initializers.truncated_normal(stddev=(scale / fan_in) ** 0.5)


def embedding() -> initializers.Initializer:
    """Normal of standard deviation 0.1."""
    return initializers.normal(stddev=0.1)


def neighbours(alike: float = 8.0, deviation: float = 0.5) -> initializers.Initializer:
    """Rows of a table of ordered values, of which neighbours are alike.

    Each column is a stationary Gaussian process over the values, with correlation exp(−|v − v'| / (size / alike)).
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        value = np.arange(shape[0])
        correlation = np.exp(-np.abs(value[:, None] - value[None]) * alike / shape[0])
        root = jnp.asarray(deviation * np.linalg.cholesky(correlation), dtype)
        return root @ jax.random.normal(key, tuple(shape), dtype)

    return init


def param(
    module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str], init: initializers.Initializer
) -> jax.Array:
    """A float32 parameter with a logical name for each axis."""
    boxed = nn.with_logical_partitioning(init, tuple(axes))
    return cast(jax.Array, module.param(name, boxed, tuple(shape), jnp.float32))  # Flax unboxes it


def linear(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    """Contract the last axis of x (…, E) with the first of a kernel (E, …), in the dtype of x.

    As one product of two matrices: XLA's CPU backend is several times slower at the gradient of any other form.  But
    where rows and slots are both split over a mesh, merging them would gather them on all devices.
    """
    around = mesh.current()
    split = around is not None and around.shape["window"] > 1
    rows = x if split else x.reshape(-1, x.shape[-1])
    flat = jnp.matmul(rows, kernel.astype(x.dtype).reshape(kernel.shape[0], -1), **options)
    return flat.reshape(*x.shape[:-1], *kernel.shape[1:])


def outer(index: jax.Array, frequency_R: np.ndarray) -> jax.Array:
    """Products (…, R), float32, of integers (…) and frequencies.

    `jnp.multiply.outer` would merge the axes of the index, see `linear`.
    """
    return index.astype(jnp.float32)[..., None] * frequency_R.reshape(*[1] * index.ndim, -1)
