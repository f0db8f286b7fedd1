"""Devices as a mesh, and the one table that lays logical axes out on it."""

import math
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
from flax.linen.spmd import logical_to_mesh_sharding
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pixtok import config
from pixtok.axes import BATCH
from pixtok.document import Rows
from pixtok.errors import InputError

RULES: dict[str, str | None] = {
    "embed": "fsdp",
    "pixel_embed": None,
    "pixel_input": None,
    "patch": None,
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
_SETTING = {"heads": "heads", "kv_heads": "kv_heads", "mlp": "width", "vocab": "vocab_size", "embed": "width"}
"""What of the model to change when a dimension does not divide."""


AXES = ("dcn_data", "data", "fsdp", "window", "tensor")
"""Mesh axes, outermost first: neighbours along the last are neighbours in the network."""


def make_mesh(sizes: config.Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh of these devices, by default all.

    Raises InputError when the sizes do not multiply to their number, or dcn_data is not the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    asked = dict(config.flatten(sizes))
    shape = {name: asked[name] for name in AXES}
    free = [name for name, size in shape.items() if size == -1]
    known = math.prod(size for size in shape.values() if size != -1)
    if len(free) == 1 and known > 0 and len(devices) % known == 0:
        shape[free[0]] = len(devices) // known
    if math.prod(shape.values()) != len(devices) or min(shape.values()) < 1:
        listed = ", ".join(f"mesh.{name} = {value}" for name, value in asked.items())
        raise InputError(
            f"{listed} do not make {len(devices)} devices: the sizes must multiply to it, and one may be -1"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices not in (1, shape["dcn_data"]):
        raise InputError(
            f"mesh.dcn_data = {shape['dcn_data']}, and there are {slices} slices: set mesh.dcn_data to that"
        )
    inner = (1, *list(shape.values())[1:])
    # Slices must be told apart; within one, the mesh follows the torus of the chips.
    if slices > 1:
        outer = (shape["dcn_data"], *[1] * len(inner[1:]))
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parameter_shardings(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """A tree of parameters boxed with their logical axes → the same tree of shardings.

    Raises InputError when two dimensions of a parameter want one mesh axis, or one does not divide by its axis.
    """
    specs, shapes = nn.get_partition_spec(boxed), jax.tree_util.tree_leaves_with_path(nn.unbox(boxed))
    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
    for (path, leaf), logical in zip(shapes, jax.tree.leaves(specs, is_leaf=is_spec), strict=True):
        taken: dict[str, str] = {}
        for size, name in zip(leaf.shape, cast(PartitionSpec, logical), strict=False):
            axis = None if name is None else RULES[str(name)]
            if axis is None:
                continue
            where = f"of size {size} in {jax.tree_util.keystr(path, simple=True, separator='/')}"
            if axis in taken:
                raise InputError(
                    f"dimensions {taken[axis]} and {name} {where} both want mesh.{axis}: change sharding.RULES"
                )
            taken[axis] = str(name)
            if size % mesh.shape[axis]:
                raise InputError(
                    f"mesh.{axis} = {mesh.shape[axis]} does not divide dimension {name} {where}: make mesh.{axis} a "
                    f"divisor of {size}, or change the model's {_SETTING.get(str(name), 'width')}"
                )
    return logical_to_mesh_sharding(specs, mesh, list(RULES.items()))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def each_device(mesh: jax.sharding.Mesh) -> NamedSharding:
    """One element for each device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def row_shardings(mesh: jax.sharding.Mesh) -> Rows:
    """How a batch lies on the mesh: rows over dcn_data, data and fsdp, windows over window."""
    slots = NamedSharding(mesh, PartitionSpec(BATCH))
    windows = NamedSharding(mesh, PartitionSpec(BATCH, "window"))
    return Rows(
        *(windows if name.startswith(("window", "pixel", "shape", "place")) else slots for name in Rows._fields)
    )


def check_batch(experiment: config.Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError when rows or windows do not divide by their mesh axes."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH)
    rows = experiment.train.batch_size // experiment.train.microbatches
    if rows % ways:
        raise InputError(
            f"{' × '.join(f'mesh.{axis}' for axis in BATCH)} = {ways} does not divide "
            f"train.batch_size / train.microbatches = {rows}: "
            f"make train.batch_size a multiple of {ways * experiment.train.microbatches}"
        )
    if experiment.data.windows % mesh.shape["window"]:
        raise InputError(
            f"mesh.window = {mesh.shape['window']} does not divide data.windows = {experiment.data.windows}: "
            "change one of them"
        )
