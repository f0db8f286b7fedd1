"""AdamW (arXiv 1711.05101) with warm-up, cosine decay and clipping."""

from operator import mul
from typing import Any

import jax
import optax

from pixtok.config import Train
from pixtok.transfer import rates

_NOT_DECAYED = ("scale", "table")  # norms and embeddings, by how their names begin


def schedule(train: Train) -> optax.Schedule:
    """Learning rate of step 0, 1, …: linear from peak / (warm-up + 1), then a cosine to its final share."""
    return optax.warmup_cosine_decay_schedule(
        init_value=train.learning_rate / (train.warmup_steps + 1),
        peak_value=train.learning_rate,
        warmup_steps=train.warmup_steps,
        decay_steps=train.steps,
        end_value=train.learning_rate * train.final_rate,
    )


def decay_mask(params: Any) -> Any:
    """True where weight decay applies."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = [key.key for key in path if hasattr(key, "key")]  # a box of logical axes has none
        return not names[-1].startswith(_NOT_DECAYED)

    return jax.tree_util.tree_map_with_path(decayed, params)


def optimizer(train: Train, transfer: bool) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW with β = (0.9, 0.95); `transfer`: each parameter at its own rate."""
    # Gradients fall with width: an ε that none of them comes near.
    steps = [optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-15 if transfer else 1e-8)]
    if transfer:
        steps.append(optax.stateless(lambda updates, params: jax.tree.map(mul, updates, rates(params, train))))
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.chain(
            *steps,
            optax.add_decayed_weights(train.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(schedule(train)),
        ),
    )
