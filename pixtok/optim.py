"""AdamW (arXiv 1711.05101) with warm-up, cosine decay and clipping."""

from typing import Any

import jax
import optax

from pixtok.config import Train

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


def optimizer(train: Train) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW with β = (0.9, 0.95)."""
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(schedule(train), b1=0.9, b2=0.95, weight_decay=train.weight_decay, mask=decay_mask),
    )
