"""FLOPs and bytes of programs whose counts are known by hand."""

import functools
import importlib.util

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pixtok import hlo
from pixtok_kernels import topology

WHOLE = PartitionSpec()


def cost(function, mesh, *arguments, out=WHOLE):
    """`arguments` are (shape, spec)."""
    abstract = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, p)) for s, p in arguments]
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    with topology.uncached():
        return hlo.Module(jitted.lower(*abstract).compile().as_text(), mesh.size).cost()


def grid(*shape, names=("a", "b"), devices=None):
    devices = np.array(jax.devices()[: int(np.prod(shape))] if devices is None else devices).reshape(shape)
    return jax.sharding.Mesh(devices, names[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_loops_count_as_often_as_they_turn():
    found = cost(scanned, grid(1), ((8, 16), PartitionSpec()), ((5, 16, 16), PartitionSpec()))
    assert found.flops == 5 * 2 * 8 * 16 * 16
    assert found.unknown_loops == 0
    assert found.collectives == {}

    def nested(x, weights):
        return jax.lax.fori_loop(0, 3, lambda _, x: scanned(x, weights), x)

    assert cost(nested, grid(1), ((8, 16), PartitionSpec()), ((5, 16, 16), PartitionSpec())).flops == 3 * found.flops


def test_all_reduce_of_a_split_contraction():
    # Rows of each weight on another device: every product is summed over four.
    found = cost(scanned, grid(4), ((8, 16), PartitionSpec(None, "a")), ((5, 16, 16), PartitionSpec(None, "a")))
    assert found.flops == 5 * 2 * 8 * 16 * 16 / 4
    (reduced,) = [item for item in found.collectives if item.kind == "all-reduce"]
    assert found.collectives[reduced] == 5
    assert reduced.bytes == 8 * 16 * 4
    assert found.moved([0] * 4)["all-reduce"] == (5 * 2 * 3 / 4 * 8 * 16 * 4, 0)


def test_all_gather_of_split_weights():
    # Rows of x on each device, columns of weights: each weight is gathered as it is needed.
    found = cost(
        lambda x, w: jax.lax.scan(
            lambda x, w: (
                jnp.tanh(x @ jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))),
                None,
            ),
            x,
            w,
        )[0],
        mesh := grid(4),
        ((64, 16), PartitionSpec("a")),
        ((5, 16, 16), PartitionSpec(None, None, "a")),
        out=PartitionSpec("a"),
    )
    gathered = found.moved([0] * 4)["all-gather"]
    assert gathered[0] == 5 * 3 / 4 * 16 * 16 * 4
    assert found.flops == 5 * 2 * 16 * 16 * 16


def test_groups_tell_what_leaves_a_node():
    function = functools.partial(jnp.einsum, "ij,jk->ik")
    mesh = grid(2, 2)
    inside = cost(function, mesh, ((8, 16), PartitionSpec(None, "b")), ((16, 4), PartitionSpec("b")))
    outside = cost(function, mesh, ((8, 16), PartitionSpec(None, "a")), ((16, 4), PartitionSpec("a")))
    both = cost(function, mesh, ((8, 16), PartitionSpec(None, ("a", "b"))), ((16, 4), PartitionSpec(("a", "b"))))
    size = 8 * 4 * 4
    nodes = [0, 0, 1, 1]
    assert inside.moved(nodes)["all-reduce"] == (size, 0)
    assert outside.moved(nodes)["all-reduce"] == (0, size)
    # Halves inside, and of one half the other node's share.
    assert both.moved(nodes)["all-reduce"] == (size, size / 2)
    assert both.moved([0] * 4)["all-reduce"] == (2 * 3 / 4 * size, 0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("replica_groups={{0,2},{1,3}}, x", ((0, 2), (1, 3))),
        ("replica_groups=[2,2]<=[4], x", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['x'=2,'y'=2] {'y'}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['x'=2,'y'=2] {'x'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['x'=4] {'x':(1)2}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['x'=4] {'x':(2)2}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=(0,3,1,2) {'y'}, x", ((0, 3), (1, 2))),
        ("replica_groups={}, x", ((0, 1, 2, 3),)),
        ("source_target_pairs={{0,1},{1,0}}, x", ((0, 1), (1, 0))),
    ],
)
def test_groups_in_all_their_forms(text, wanted):
    assert hlo._groups(text, 4) == wanted


def test_permutations_share_what_crosses():
    shift = hlo.Collective("collective-permute", 100, ((0, 1), (1, 2), (2, 3), (3, 0)))
    assert shift.moved([0, 0, 1, 1]) == (50, 50)
    assert shift.moved([0] * 4) == (100, 0)


def test_bytes_of_a_loop_are_the_slices_that_it_takes():
    rows, width, layers = 4, 256, 8
    found = cost(scanned, grid(1), ((rows, width), PartitionSpec()), ((layers, width, width), PartitionSpec()))
    weights = layers * width * width * 4
    # Each weight is read once, or cut out and then read: not the whole stack each time.
    assert weights <= found.bytes <= 4 * weights


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, which compiles for TPU, is not installed")
def test_loops_of_tpu_programs_count_too():
    mesh = grid(4, devices=topology.tpu("v5e").devices)
    found = cost(scanned, mesh, ((256, 512), PartitionSpec(None, "a")), ((5, 512, 512), PartitionSpec(None, "a")))
    assert found.unknown_loops == 0
    assert found.flops == 5 * 2 * 256 * 512 * 512 / 4
    # Each product leaves its columns where the next one's contraction wants them; the last is gathered.
    sent = found.moved([0] * 4)
    assert sent["reduce-scatter"] == (5 * 3 / 4 * 256 * 512 * 4, 0)
    assert sent["all-gather"] == (3 / 4 * 256 * 512 * 4, 0)
    assert sent["all-reduce"] == (0, 0)
