"""Block sizes of the TPU kernels: validated data, never fields of a model."""

import dataclasses

from pixtok_kernels.shapes import Case


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a call is cut for a core."""

    lanes: int = 256
    """Query pixels of a tile, at most: several small windows, one, or a part of a large one.  A multiple of 128."""
    rows: int = 1024
    """Query heads × lanes of a step, at most; a key head with its query heads always fits."""
    slots: int = 256
    """Slots looked at together, a multiple of 128."""
    fetch: int = 1 << 18
    """Slots × features of a step's key heads that are fetched at a time, at most, or one block of slots."""
    vmem: int = 6 << 20
    """Bytes that pixels and halo of a step's key heads may take, for more than one key head to be taken."""
    lag: int = 5
    """Products of scores that run ahead of their softmax."""

    def __post_init__(self) -> None:
        for name in ("lanes", "slots"):
            size = getattr(self, name)
            if size < 128 or size % 128:
                raise ValueError(f"{name} must be a positive multiple of 128; got {size}")
        if self.rows < 1 or self.fetch < 1 or not 0 <= self.lag <= 8:
            raise ValueError(f"rows and fetch must be positive, lag from 0 to 8; got {self}")


def blocks(case: Case, itemsize: int) -> Blocks:
    """What is known to be good for a call with numbers of `itemsize` bytes."""
    # Exact products of float32 take six passes each: less of them run ahead, or registers run out.
    return Blocks() if itemsize == 2 else Blocks(rows=512, fetch=1 << 17, lag=2)
