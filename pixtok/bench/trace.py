"""Where the time of a compiled step goes, by the modules of the model."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

GROUPS = {
    "encoder": "encoder",
    "trunk": "trunk",
    "unified head": "head",
    "decoder": "decoder",
    "pixel head": "chain",
}
"""Group → the module of the model that its operations lie in."""
REST = "optimizer and rest"
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?[\])}] ([\w\-]+)\((?:.*op_name=\"([^\"]*)\")?", re.MULTILINE
)
# They last as long as what is in them, which is there on its own.
_HOLDERS = {"while", "conditional", "call"}


def groups(hlo: str) -> dict[str, str]:
    """Instruction of an optimized HLO text → its group; those that only hold others are left out."""
    named = {module: group for group, module in GROUPS.items()}
    found = {}
    for name, opcode, path in _INSTRUCTION.findall(hlo):
        if opcode not in _HOLDERS:
            inside = (named[part] for part in re.split(r"[/().]", path) if part in named)
            found[name] = next(inside, REST)
    return found


def seconds(compiled: jax.stages.Compiled, call: Callable[[], Any], keep: Path | None = None) -> dict[str, float]:
    """Seconds of operations by group in one `call`, which runs `compiled`, on all its devices and threads together.

    `keep`: where the profile stays.  Operations that run side by side count each for itself, so that only the shares
    have a meaning.
    """
    of = groups(compiled.as_text() or "")
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        with jax.profiler.trace(str(folder)):
            jax.block_until_ready(call())
        profile = ProfileData.from_file(str(max(folder.rglob("*.xplane.pb"))))
    begun: dict[Any, tuple[str, float]] = {}
    spent: defaultdict[str, float] = defaultdict(float)
    ended: dict[Any, float] = {}
    for plane in profile.planes:
        for line in plane.lines:
            for number, event in enumerate(line.events):
                stats = dict(event.stats)
                if event.name.startswith("end: "):  # of an operation that went on in another thread
                    ended[stats.get("_c")] = event.end_ns
                elif (name := stats.get("hlo_op")) in of:
                    spent[of[name]] += event.duration_ns / 1e9
                    begun[stats.get("_p", (plane.name, line.name, number))] = of[name], event.end_ns
    for key, finish in ended.items():
        if key in begun:
            group, returned = begun[key]
            spent[group] += max(0.0, finish - returned) / 1e9
    return dict(spent)
