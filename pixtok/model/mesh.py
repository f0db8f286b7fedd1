"""The mesh that a program is being traced for."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pixtok.axes import BATCH
from pixtok_kernels import KEPT


def current() -> jax.sharding.AbstractMesh | None:
    """None where it is for one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def split(x_BSE: jax.Array) -> jax.Array:
    """Rows over the mesh axes of a batch, and what comes next, slots or windows, over `window`."""
    if current() is None:
        return x_BSE
    return jax.lax.with_sharding_constraint(x_BSE, PartitionSpec(BATCH, "window"))


def shard_map(
    function: Callable[..., Any], in_specs: Sequence[PartitionSpec], out_specs: Any, *arrays: jax.Array
) -> Any:
    """`function` of each device's own part of arrays: for what XLA cannot split, or would split worse.

    No array without elements goes in or out: the compiler of jax 0.11 for GPUs makes it a constant before it reads how
    arguments are split, and dies.
    """
    mesh = current()
    assert mesh is not None
    own = [NamedSharding(mesh, spec).shard_shape(a.shape) for a, spec in zip(arrays, in_specs, strict=True)]

    def of_own(*given: jax.Array) -> Any:
        left = iter(given)
        whole = (next(left) if a.size else jnp.zeros(shape, a.dtype) for a, shape in zip(arrays, own, strict=True))
        return function(*whole)

    # What a gradient needs beside the arguments is what has a name.  Without both of these, inside and out, jax takes
    # what depends on no argument out of the function, and where the function is in a loop, out of the loop.
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    keep = functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)
    given = [(a, spec) for a, spec in zip(arrays, in_specs, strict=True) if a.size]
    specs = tuple(spec for _, spec in given)
    # The kernels do not say along which axes their results vary.
    split = jax.shard_map(keep(of_own), in_specs=specs, out_specs=out_specs, check_vma=False)
    return keep(split)(*(a for a, _ in given))
