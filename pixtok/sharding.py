"""Devices as a mesh, and the one table that lays logical axes out on it."""

import math
from typing import Any

import flax.linen as nn
import jax
from flax.linen.spmd import logical_to_mesh_sharding
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pixtok import config
from pixtok.axes import BATCH
from pixtok.document import Rows
from pixtok.errors import InputError

RULES: dict[str, str | None] = {
    "embed": "fsdp",
    "pixel_embed": None,
    "pixel_input": None,
    "level": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "outcome": None,
    "colour": None,
    "wave": None,
    "norm": None,
    "layers": None,
}
"""Logical axis of a parameter → mesh axis."""


def make_mesh(sizes: config.Mesh) -> jax.sharding.Mesh:
    """A mesh of all devices.  Raises InputError when the sizes do not multiply to their number."""
    shape = {name: int(value) for name, value in config.flatten(sizes)}
    devices = jax.device_count()
    free = [name for name, size in shape.items() if size == -1]
    known = math.prod(size for size in shape.values() if size != -1)
    if len(free) == 1 and known > 0 and devices % known == 0:
        shape[free[0]] = devices // known
    if math.prod(shape.values()) != devices or min(shape.values()) < 1:
        asked = ", ".join(f"mesh.{name} = {value}" for name, value in config.flatten(sizes))
        raise InputError(f"{asked} do not make {devices} devices: the sizes must multiply to it, and one may be -1")
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def parameter_shardings(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """A tree of parameters boxed with their logical axes → the same tree of shardings.

    Raises InputError when a dimension does not divide by its mesh axis.
    """
    shardings = logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, list(RULES.items()))
    shapes = jax.tree_util.tree_leaves_with_path(nn.unbox(boxed))
    for (path, leaf), sharding in zip(shapes, jax.tree.leaves(shardings), strict=True):
        for size, axis in zip(leaf.shape, sharding.spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"mesh.{axis} = {mesh.shape[axis]} does not divide a dimension of {size} in "
                    f"{jax.tree_util.keystr(path)}: change mesh.{axis} or the model's width"
                )
    return shardings


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_shardings(mesh: jax.sharding.Mesh) -> Rows:
    """How a batch lies on the mesh: rows over data and fsdp, windows over window."""
    slots = NamedSharding(mesh, PartitionSpec(BATCH))
    windows = NamedSharding(mesh, PartitionSpec(BATCH, "window"))
    return Rows(
        *(windows if name.startswith(("window", "pixel", "shape", "place")) else slots for name in Rows._fields)
    )


def check_batch(experiment: config.Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError when rows or windows do not divide by their mesh axes."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = experiment.train.batch_size // experiment.train.microbatches
    if rows % ways:
        raise InputError(
            f"mesh.data × mesh.fsdp = {ways} does not divide train.batch_size / train.microbatches = {rows}: "
            f"make train.batch_size a multiple of {ways * experiment.train.microbatches}"
        )
    if experiment.data.windows % mesh.shape["window"]:
        raise InputError(
            f"mesh.window = {mesh.shape['window']} does not divide data.windows = {experiment.data.windows}: "
            "change one of them"
        )
