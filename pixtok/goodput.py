"""Where the time of a run went, over all its starts; goodput is the share that brought the training forward."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from pixtok.files import write

_SECONDS = 15
_IMPORTED = time.monotonic()


def age() -> float:
    """Seconds since this process was started; where that is not told, elsewhere than on Linux, since it got here."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - _IMPORTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5), starttime


class Ledger:
    """Seconds by kind, kept in RUN/goodput.json from start to start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Of this start."""
        self.steps = 0
        """Done in this start."""
        self._begin = self._written = time.monotonic()
        self._before: dict[str, Any] = {"starts": 0, "steps": 0, "lost_steps": 0, "wall": 0.0, "seconds": {}}

    def resume(self, run_dir: epath.Path, lost_steps: int) -> None:
        """Go on from what earlier starts wrote.  `lost_steps`: done by a killed one, and to be done again."""
        path = run_dir / "goodput.json"
        if path.exists():
            self._before = json.loads(path.read_text())
        self._before["lost_steps"] += lost_steps

    @contextlib.contextmanager
    def count(self, kind: str) -> Iterator[None]:
        """Time under the name `kind`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.monotonic() - begin

    def total(self) -> dict[str, Any]:
        """Over all starts: seconds by kind and in all (`wall`), steps done, steps lost, and

        goodput = seconds of steps · (1 − lost steps / steps done) / wall.  What a kill kept from being written, at
        most the last seconds of a start, is missing.
        """
        before = self._before
        kinds = before["seconds"].keys() | self.seconds.keys()
        seconds = {kind: before["seconds"].get(kind, 0.0) + self.seconds.get(kind, 0.0) for kind in sorted(kinds)}
        steps, wall = before["steps"] + self.steps, before["wall"] + time.monotonic() - self._begin
        kept = 1 - min(1.0, before["lost_steps"] / steps) if steps else 0.0
        return {
            "starts": before["starts"] + 1,
            "steps": steps,
            "lost_steps": before["lost_steps"],
            "wall": wall,
            "seconds": seconds,
            "goodput": seconds.get("step", 0.0) * kept / wall,
        }

    def write(self, run_dir: epath.Path, *, now: bool = False) -> None:
        """Keep it for the next start, every few seconds or `now`."""
        if now or time.monotonic() - self._written > _SECONDS:
            self._written = time.monotonic()
            write(run_dir / "goodput.json", (json.dumps(self.total(), indent=2) + "\n").encode())


def describe(total: dict[str, Any]) -> str:
    """`goodput 83 % of 2 min 5 s: step 104.1 s, compile 12.0 s, …; 3 steps lost`."""
    parts = sorted(total["seconds"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in parts if seconds >= 0.05)
    lost = f"; {total['lost_steps']} steps lost in {total['starts']} starts" if total["lost_steps"] else ""
    return f"goodput {100 * total['goodput']:.0f} % of {total['wall']:.0f} s: {listed}{lost}"
