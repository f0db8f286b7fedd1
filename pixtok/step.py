"""The jitted functions of one experiment on one mesh: initial state, training step, evaluation step."""

import bisect
import functools
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
import optax
from einops import rearrange
from flax import struct
from jax import numpy as jnp

from pixtok import flops, likelihood, optim, sharding, transfer
from pixtok.config import Experiment
from pixtok.document import Rows, empty_row
from pixtok.likelihood import Sums
from pixtok.model.model import Nats, UnifiedModel


class State(struct.PyTreeNode):
    """All that training carries.  `step`, the number of steps done, is also the position in the data."""

    step: Any
    params: Any
    optimizer: Any


class Metrics(NamedTuple):
    """Scalars of one training step, float32 but for the counts."""

    sums: Sums
    pixels: jax.Array
    """Number of pixels in the batch, predicted or not."""
    words: jax.Array
    """Number of slots that hold a word."""
    flops: jax.Array
    """Useful ones of the step (see `flops`)."""
    grad_norm: jax.Array
    """Global norm of the gradient before clipping."""
    learning_rate: jax.Array
    stop: jax.Array
    """The largest `stop` that a process gave."""


class Control(NamedTuple):
    """What a step is told besides its rows."""

    stop_N: Any
    """Exit code with which the process of each device wants to stop; 0: it does not."""
    schedule: Any
    """An `optim.Schedule`."""


class Program:
    """One experiment, compiled for one mesh."""

    def __init__(self, experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
        """Raises InputError when the experiment does not fit the mesh."""
        sharding.check_batch(experiment, mesh)
        self._mesh = mesh
        self._train, self._config, self._data = experiment.train, experiment.model, experiment.data
        self.batch_size = experiment.train.batch_size
        self._model = UnifiedModel(experiment.model, jnp.dtype(self._train.dtype), self._train.remat)
        self._rows = sharding.row_shardings(mesh)
        self._each, self._one = sharding.each_device(mesh), sharding.replicated(mesh)
        slots = self._rows.word_BS.addressable_devices_indices_map((self.batch_size, experiment.data.slots))
        self.positions = sorted({row for index in slots.values() for row in range(self.batch_size)[index[0]]})
        """Rows of the global batch that this process's devices hold, as a whole or in part."""
        # The smallest rows that have every part: parameters depend on no other shape.
        empty = empty_row(2, 1, experiment.model.window)
        self._example = jax.tree.map(lambda array: array[None], empty)

        boxed_state = self._boxed_state  # one object: jax traces it once, and each trace costs seconds
        boxed = jax.eval_shape(boxed_state, jax.random.key(0))
        shardings = sharding.parameter_shardings(boxed, mesh)
        self.abstract: State = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            nn.unbox(boxed),
            shardings,
        )
        """Shapes, dtypes and shardings of the state; holds no memory."""
        self._init = jax.jit(boxed_state, out_shardings=shardings)
        self._step = jax.jit(
            self._train_step,
            in_shardings=(shardings, self._rows, Control(self._each, self._one)),
            out_shardings=(shardings, self._one),
            donate_argnums=0,
        )
        self._score = jax.jit(self._by_slot, in_shardings=(shardings.params, self._rows), out_shardings=self._one)

    def _boxed_state(self, key: jax.Array) -> State:
        params = self._model.init(key, self._example)["params"]
        if self._config.transfer:
            params = transfer.initial(params)
        return State(jnp.zeros((), jnp.int32), params, self._optimizer(None).init(params))

    def _optimizer(self, schedule: optim.Schedule | None) -> optax.GradientTransformation:
        return optim.optimizer(self._train, self._config.transfer, schedule)

    def _by_slot(self, params: Any, rows: Rows) -> Sums:
        with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            nats = cast(Nats, self._model.apply({"params": params}, rows))
        return likelihood.by_slot(nats, rows, self._config)

    def _train_step(self, state: State, rows: Rows, control: Control) -> tuple[State, Metrics]:
        # Divide by the counts of the whole batch, so that microbatches change nothing but the memory.
        counts = likelihood.counts(rows, self._config)

        def loss(params: Any, part: Rows) -> tuple[jax.Array, Sums]:
            sums = likelihood.total(self._by_slot(params, part))
            return likelihood.loss(sums._replace(**counts), self._config), sums

        gradient = jax.grad(loss, has_aux=True)
        parts = self._train.microbatches
        if parts == 1:
            grads, sums = gradient(state.params, rows)
        else:
            # Every device keeps its own rows: they are dealt out one by one, not cut into runs.
            dealt = jax.tree.map(lambda array: rearrange(array, "(b a) ... -> a b ...", a=parts), rows)
            shape = jax.eval_shape(gradient, state.params, jax.tree.map(lambda array: array[0], dealt))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
            (grads, sums), _ = jax.lax.scan(
                lambda total, part: (jax.tree.map(jnp.add, total, gradient(state.params, part)), None),
                zeros,
                dealt,
            )
        updates, optimizer = self._optimizer(control.schedule).update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        held = jnp.sum(rows.segment_BS > 0, dtype=jnp.int32) - jnp.sum(rows.shape_BM2[..., 0] > 0, dtype=jnp.int32)
        metrics = Metrics(
            sums,
            pixels=jnp.sum(rows.shape_BM2.prod(-1), dtype=jnp.int32),
            words=held,
            flops=3 * flops.of(rows, self._config),
            grad_norm=optax.tree.norm(grads),
            learning_rate=control.schedule(state.step),
            stop=control.stop_N.max(),
        )
        return State(state.step + 1, params, optimizer), metrics

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))

    def init(self) -> State:
        """The state before the first step, born sharded."""
        return nn.unbox(self._init(jax.random.key(self._train.seed)))

    def put(self, rows: Rows) -> Rows:
        """The rows at `positions` → the global batch on the mesh."""

        def place(array: np.ndarray, where: jax.sharding.NamedSharding) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(self.batch_size)
                first = bisect.bisect_left(self.positions, start)
                return array[(slice(first, first + stop - start), *index[1:])]

            return jax.make_array_from_callback((self.batch_size, *array.shape[1:]), where, part)

        return jax.tree.map(place, rows, self._rows)

    def lower_train_step(self) -> jax.stages.Lowered:
        """The training step for a whole batch, lowered for the devices of the mesh, which need not be here."""
        data = self._data
        empty = empty_row(data.slots, data.windows, self._config.window)
        rows = jax.tree.map(
            lambda array, where: jax.ShapeDtypeStruct((self.batch_size, *array.shape), array.dtype, sharding=where),
            empty,
            self._rows,
        )
        stop_N = jax.ShapeDtypeStruct((self._mesh.size,), jnp.int32, sharding=self._each)
        number = jax.ShapeDtypeStruct((), jnp.float32, sharding=self._one)
        schedule = jax.tree.map(lambda _: number, optim.Schedule.of(self._train))
        return self._step.lower(self.abstract, rows, Control(stop_N, schedule))

    def train_step(self, state: State, rows: Rows, stop: int = 0) -> tuple[State, Metrics]:
        """One optimizer step.  `state` is donated: it is gone afterwards.

        All processes read the largest `stop` of any in the metrics, and so agree on when to stop without waiting for
        each other.
        """
        return self._step(state, rows, self.control(stop))

    def control(self, stop: int = 0) -> Control:
        """With `stop` of this process for each of its devices."""
        flag = np.full(1, stop, np.int32)
        return Control(jax.make_array_from_callback((self._mesh.size,), self._each, lambda _: flag), self._schedule)

    @functools.cached_property
    def _schedule(self) -> optim.Schedule:
        def number(value: float) -> jax.Array:
            return jax.make_array_from_callback((), self._one, lambda _: np.float32(value))

        return jax.tree.map(number, optim.Schedule.of(self._train))

    def score(self, params: Any, rows: Rows) -> Sums:
        """Sums for each slot of the global batch, (B, S), in float64 on the host; `rows` are those at `positions`."""
        return jax.tree.map(np.float64, jax.device_get(self._score(params, self.put(rows))))

    def evaluate(self, params: Any, batches: Any) -> Sums:
        """Sums over batches."""
        sums = Sums(*[0.0] * len(Sums._fields))
        for batch in batches:
            sums = jax.tree.map(lambda total, part: total + part.sum(), sums, self.score(params, batch.rows))
        return sums
