"""AdamW (arXiv 1711.05101) with warm-up, cosine decay and clipping."""

from operator import mul
from typing import Any, NamedTuple

import jax
import optax
from jax import numpy as jnp

from pixtok.config import Train
from pixtok.transfer import rates

_NOT_DECAYED = ("scale", "table")  # norms and embeddings, by how their names begin


class Schedule(NamedTuple):
    """Linear from peak / (warm-up + 1), then a cosine to a share of the peak.

    Its numbers may be arguments of a compiled step, which optax's schedules do not allow: runs that differ in their
    length or rate then share one program.
    """

    peak: Any
    warmup_steps: Any
    steps: Any
    final_rate: Any

    @classmethod
    def of(cls, train: Train) -> "Schedule":
        """That of an experiment."""
        return cls(train.learning_rate, train.warmup_steps, train.steps, train.final_rate)

    def __call__(self, step: Any) -> jax.Array:
        """Learning rate of step 0, 1, …, a float32 scalar."""
        rise = (step + 1) / (self.warmup_steps + 1)
        way = jnp.clip((step - self.warmup_steps) / (self.steps - self.warmup_steps), 0, 1)
        fall = self.final_rate + (1 - self.final_rate) * (1 + jnp.cos(jnp.pi * way)) / 2
        return jnp.float32(self.peak * jnp.where(step < self.warmup_steps, rise, fall))


def decay_mask(params: Any) -> Any:
    """True where weight decay applies."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = [key.key for key in path if hasattr(key, "key")]  # a box of logical axes has none
        return not names[-1].startswith(_NOT_DECAYED)

    return jax.tree_util.tree_map_with_path(decayed, params)


def optimizer(train: Train, transfer: bool, schedule: optax.Schedule | None = None) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW with β = (0.9, 0.95); `transfer`: each parameter at its own rate.

    `schedule`: other than that of `train`.
    """
    # Gradients fall with width: an ε that none of them comes near.
    steps = [optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-15 if transfer else 1e-8)]
    if transfer:
        steps.append(optax.stateless(lambda updates, params: jax.tree.map(mul, updates, rates(params, train))))
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.chain(
            *steps,
            optax.add_decayed_weights(train.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(schedule or Schedule.of(train)),
        ),
    )
