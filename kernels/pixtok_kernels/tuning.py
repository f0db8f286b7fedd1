"""Block sizes of the kernels: validated data, never fields of a model."""

import dataclasses
import functools
import json
from importlib import resources
from typing import TypeVar

import jax

from pixtok_kernels.shapes import Case

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a call is cut for a TPU core."""

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


def key(case: Case, itemsize: int) -> str:
    """What a tuned entry holds for: the rest of a case only says how much there is of it."""
    return f"W{case.W} P{case.P} D{case.D} G{case.H // case.K} bytes{itemsize}"


def file(device_kind: str) -> str:
    """Name of the file of tuned sizes for a kind of device, as jax calls it."""
    return f"{device_kind.lower().replace(' ', '-')}.json"


@functools.cache
def _read(device_kind: str) -> dict[str, dict[str, int]]:
    found = resources.files("pixtok_kernels") / "tuned" / file(device_kind)
    return json.loads(found.read_text()) if found.is_file() else {}


def tuned(kind: type[T], platforms: tuple[str, ...], case: Case, itemsize: int) -> T | None:
    """What was measured to be best on the device at hand, where it is one of these platforms.

    Raises TypeError or ValueError for a file that does not hold such blocks.
    """
    if jax.default_backend() not in platforms:
        return None
    sizes = _read(jax.devices()[0].device_kind).get(key(case, itemsize))
    return None if sizes is None else kind(**sizes)


def blocks(case: Case, itemsize: int) -> Blocks:
    """For a call with numbers of `itemsize` bytes: what was tuned, or else what is good on average."""
    found = tuned(Blocks, ("tpu",), case, itemsize)
    if found:
        return found
    # Exact products of float32 take six passes each: fewer of them run ahead, or registers run out.
    return Blocks() if itemsize == 2 else Blocks(rows=512, fetch=1 << 17, lag=2)
