import dataclasses
import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import PartitionSpec

from pixtok import likelihood, optim, sharding
from pixtok.config import Data, Experiment, Mesh, Model, Stream, Train
from pixtok.data.pipeline import Loader
from pixtok.errors import InputError
from pixtok.model.mesh import shard_map
from pixtok.step import Program


@pytest.fixture(scope="module")
def experiment(dataset) -> Experiment:
    model = Model(
        encoder=Stream(width=16, layers=1, heads=2, kv_heads=2),
        trunk=Stream(width=32, layers=2, heads=4, kv_heads=2),
        decoder=Stream(width=16, layers=2, heads=4, kv_heads=2),
        vocab_size=264,
        fold_factor=32,
        window=4,
    )
    train = Train(steps=4, batch_size=8, learning_rate=1e-2, warmup_steps=1, dtype="float32")
    return Experiment("test", model, Data(str(dataset), slots=96, windows=24), train)


def trained(experiment: Experiment, steps: int = 4):
    """(losses, gradient norms, final weights)."""
    train = experiment.train
    loader = Loader(experiment.data, experiment.model, split="train", batch_size=train.batch_size, seed=0)
    program = Program(experiment, sharding.make_mesh(experiment.mesh))
    state, seen = program.init(), []
    for step in range(steps):
        state, metrics = program.train_step(state, program.put(loader.batch(step).rows))
        seen.append((float(likelihood.loss(metrics.sums, experiment.model)), float(metrics.grad_norm)))
    assert int(state.step) == steps
    return np.array(seen), jax.device_get(state.params)


def close(a, b) -> None:
    """Adam divides by the size of a gradient, so a weight whose gradient is all rounding may move by more."""
    np.testing.assert_allclose(a[0], b[0], rtol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), a[1], b[1])


@pytest.fixture(scope="module")
def one(experiment):
    return trained(experiment)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(Mesh(data=4), marks=pytest.mark.slow),
        pytest.param(Mesh(data=1, fsdp=4), marks=pytest.mark.slow),
        pytest.param(Mesh(data=1, window=4), marks=pytest.mark.slow),
        pytest.param(Mesh(data=2, tensor=2), marks=pytest.mark.slow),
        pytest.param(Mesh(data=1, fsdp=2, dcn_data=2), marks=pytest.mark.slow),
        pytest.param(Mesh(data=1, fsdp=2, window=2), marks=pytest.mark.slow),
        pytest.param(Mesh(data=1, window=2, tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sharded_is_unsharded(experiment, one, mesh):
    close(trained(dataclasses.replace(experiment, mesh=mesh)), one)


def test_weights_are_born_sharded(experiment):
    program = Program(dataclasses.replace(experiment, mesh=Mesh(data=1, fsdp=4)), sharding.make_mesh(Mesh(1, 4)))
    state = program.init()
    kernel = state.params["head"]["word"]
    assert kernel.addressable_shards[0].data.shape == (8, kernel.shape[1])
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == kernel.shape]
    assert len(moments) == 2
    assert all(leaf.sharding == kernel.sharding for leaf in moments)


def test_no_array_without_elements_goes_in_or_out_of_a_shard_map(experiment):
    """Of one the compiler of jax 0.11 for GPUs dies."""
    alone = dataclasses.replace(experiment.model, halo=0, summaries=False)
    made = dataclasses.replace(experiment, mesh=Mesh(data=2, window=2), model=alone)
    text = Program(made, sharding.make_mesh(made.mesh)).lower_train_step().as_text()
    assert text.count("sdy.manual_computation") > 4
    assert not empty_arguments(text)


def test_what_depends_on_nothing_is_not_taken_out_of_a_shard_map():
    def block(x, _):
        spec = PartitionSpec("data")
        return shard_map(lambda x: jnp.sin(jnp.concatenate([x, jnp.zeros(0)])), (spec,), spec, x), None

    def loss(x):
        return jax.lax.scan(block, x, length=3)[0].sum()

    with jax.set_mesh(sharding.make_mesh(Mesh(data=4))):
        text = jax.jit(jax.grad(loss)).lower(jnp.ones(8)).as_text()
    assert text.count("sdy.manual_computation") > 1
    assert not empty_arguments(text)


def empty_arguments(text: str) -> list[str]:
    """Types of arguments and results of shard_map that hold nothing."""
    found, depth = [], []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if "sdy.manual_computation" in line:
            depth.append(indent)
            found += re.findall(r"%arg\d+: (tensor<(?:\d+x)*0x\w+>)", line)
        elif depth and indent == depth[-1] and line.lstrip().startswith("} : ("):
            depth.pop()
            found += re.findall(r"tensor<(?:\d+x)*0x\w+>", line)
    return found


@pytest.mark.parametrize("parts", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_microbatches_change_nothing(experiment, one, parts):
    mesh = Mesh(data=1, window=4)
    train = dataclasses.replace(experiment.train, microbatches=parts)
    close(trained(dataclasses.replace(experiment, train=train, mesh=mesh)), one)


def test_loss_falls(one):
    losses = one[0][:, 0]
    assert losses[-1] < losses[0] - 0.3


def test_state_is_donated(experiment):
    program = Program(experiment, sharding.make_mesh(experiment.mesh))
    loader = Loader(experiment.data, experiment.model, split="train", batch_size=8, seed=0)
    state = program.init()
    program.train_step(state, program.put(loader.batch(0).rows))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_norms_and_embeddings_do_not_decay(experiment):
    params = Program(experiment, sharding.make_mesh(experiment.mesh)).abstract.params
    mask = jax.tree_util.tree_leaves_with_path(optim.decay_mask(params))
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): kept for path, kept in mask}
    assert {name for name, decays in names.items() if not decays} == {
        "chain/table_0",
        "chain/table_1",
        "chain/table_2",
        "chain/table_3",
        "chain/table_4",
        "chain/table_5",
        *(f"chain/table_known_{part}" for part in range(5)),
        "decoder/input_norm/scale",
        "decoder/norm/scale",
        "decoder/stack/blocks/attention_norm/scale",
        "decoder/stack/blocks/mlp_norm/scale",
        "encoder/embed/table",
        "encoder/norm/scale",
        "encoder/stack/blocks/attention_norm/scale",
        "encoder/stack/blocks/mlp_norm/scale",
        "trunk/embed/table",
        "trunk/norm/scale",
        "trunk/stack/blocks/attention_norm/scale",
        "trunk/stack/blocks/mlp_norm/scale",
    }


def test_schedule_warms_up_and_decays():
    rate = optim.Schedule.of(Train(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=9, final_rate=0.1))
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(9)) == pytest.approx(1.0)
    assert float(rate(100)) == pytest.approx(0.1)
    assert all(float(rate(t)) > float(rate(t + 1)) for t in range(9, 99))


def test_runs_of_other_lengths_and_rates_share_a_program(experiment):
    other = dataclasses.replace(
        experiment.train, steps=2 * experiment.train.steps, learning_rate=1.0, warmup_steps=0, final_rate=0.5
    )
    one, two = (
        Program(dataclasses.replace(experiment, train=train), sharding.make_mesh(Mesh())).lower_train_step().as_text()
        for train in (experiment.train, other)
    )
    assert one == two


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (Mesh(data=3), "do not make 4 devices"),
        (Mesh(data=-1, fsdp=-1), "do not make 4 devices"),
        (Mesh(data=0), "do not make 4 devices"),
        (Mesh(dcn_data=3), "do not make 4 devices"),
    ],
)
def test_meshes_that_do_not_fit_are_bad_input(mesh, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(mesh)


def test_dimensions_that_do_not_divide_are_bad_input(experiment):
    def program(**settings):
        changed = dataclasses.replace(experiment, **settings)
        return Program(changed, sharding.make_mesh(changed.mesh))

    with pytest.raises(InputError, match=r"make train.batch_size a multiple of 4"):
        program(train=dataclasses.replace(experiment.train, batch_size=6))
    with pytest.raises(InputError, match=r"mesh.window = 4 does not divide data.windows = 22"):
        program(mesh=Mesh(1, 1, 4), data=dataclasses.replace(experiment.data, windows=22))
    with pytest.raises(
        InputError,
        match=r"mesh.tensor = 4 does not divide dimension kv_heads of size 2 in .*make mesh.tensor a divisor of 2",
    ):
        program(mesh=Mesh(1, 1, 1, 4))


def test_an_axis_that_two_dimensions_want_is_refused(experiment, monkeypatch):
    monkeypatch.setitem(sharding.RULES, "mlp", "fsdp")
    with pytest.raises(InputError, match=r"dimensions mlp and embed .* in params/.*/mlp/down both want mesh.fsdp"):
        Program(experiment, sharding.make_mesh(Mesh(1, 4)))
