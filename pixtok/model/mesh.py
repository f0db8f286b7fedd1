"""The mesh that a program is being traced for."""

import jax
from jax.sharding import PartitionSpec

from pixtok.axes import BATCH


def current() -> jax.sharding.AbstractMesh | None:
    """None where it is for one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def split(x_BSE: jax.Array) -> jax.Array:
    """Rows over the mesh axes of a batch, and what comes next, slots or windows, over `window`."""
    if current() is None:
        return x_BSE
    return jax.lax.with_sharding_constraint(x_BSE, PartitionSpec(BATCH, "window"))
