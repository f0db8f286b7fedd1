"""What `pixtok plan` is asked for."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to plan."""

    dials: tuple[int, ...]
    """Sizes of models: values of the experiment's `dial`."""
    budget: float | None = None
    """Useful FLOPs of all runs together."""
    hours: float | None = None
    """Device-hours of all runs together, instead; with --speed."""
    speed: float | None = None
    """Useful FLOP/s of one device, as `pixtok bench train` measures; plans then tell hours too."""
    design: Literal["isoflop", "grid"] = "isoflop"
    """`isoflop`: all sizes at each of some budgets. `grid`: all sizes at each of some amounts of data."""
    levels: int = 5
    """Number of those budgets, or amounts."""
    decades: float = 1.5
    """Between the smallest of them and the largest."""
    seeds: int = 1
    """Runs of each size and level, that differ in train.seed alone."""
    vary: tuple[str, ...] = ()
    """Further axes, all crossed: model.fold_factor=8,16 model.halo=0,4."""
    least_steps: int = 50
    """Runs of fewer steps are left out."""
    most_epochs: float = 4.0
    """Runs that would see their data more often are left out."""
