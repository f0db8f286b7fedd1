"""A profile of some steps, for xprof: what devices and hosts do in them."""

import socket
import tempfile
from typing import Any

import jax
from etils import epath

from pixtok import cluster
from pixtok.config import Profile
from pixtok.files import write


class Trace:
    """Records the steps that `Profile` asks for into RUN/profile.  A context manager; leaving it ends a record."""

    def __init__(self, profile: Profile, run_dir: epath.Path) -> None:
        last = profile.start + profile.steps - 1
        self._start = profile.start
        self.turns = {profile.start, last + 1} if profile.steps else set()
        """Before these steps it begins and ends."""
        # Where TensorBoard looks; one folder for all processes, which may share a host.
        folder = run_dir / "profile" / "plugins" / "profile" / f"steps-{profile.start}-{last}"
        self._path = folder / f"{cluster.index()}-{socket.gethostname()}.xplane.pb"
        self._here: tempfile.TemporaryDirectory[str] | None = None

    def turn(self, step: int, state: Any) -> None:
        """Begin or end before this step.  Waits for `state`, the result of the step before.  Raises InputError."""
        jax.block_until_ready(state)
        if step == self._start:
            self._here = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._here.name)
        else:
            self.close()

    def close(self) -> None:
        """End, where it has begun, and write what was recorded.  Raises InputError."""
        if self._here is None:
            return
        here, self._here = self._here, None
        with here:
            jax.profiler.stop_trace()
            (file,) = epath.Path(here.name).glob("plugins/profile/*/*.xplane.pb")
            write(self._path, file.read_bytes())

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
