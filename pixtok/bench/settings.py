"""What `pixtok bench train` measures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixtok.config import Remat


@dataclass(frozen=True)
class Settings:
    """Images, and how they are trained on."""

    rows: int = 1
    """Images in a batch, one in each row."""
    size: int = 224
    """Side of an image, in pixels."""
    steps: int = 5
    """Timed steps, after one that is not; the median counts."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Of activations; None: float32 on a CPU, else bfloat16."""
    remat: Remat = "block"
    """What of a block is computed again in the backward pass (see `train.remat`)."""
    peer: Literal["eager", "compiled"] | None = None
    """Beside it, taking turns: UPW's step in PyTorch, on the same batch and device, as it is written or compiled."""
    split: bool = False
    """Profile one more step, and tell what each part of the model takes of it."""
    keep: Path | None = None
    """Where that profile is kept (xplane, for TensorBoard and xprof)."""
