"""Ctrl-C, SIGTERM and Slurm's warning as a request to stop at the next step."""

import signal
from types import FrameType
from typing import ClassVar

from pixtok.errors import ExitCode


class StopRequest:
    """While entered: the first SIGINT, SIGTERM or SIGUSR1 is noted, a second SIGINT interrupts at once.

    SIGTERM is also what TPU maintenance and Kubernetes send, SIGUSR1 what `sbatch --signal` asks for.  Only in the main
    thread.
    """

    _CODES: ClassVar = {
        signal.SIGINT: ExitCode.INTERRUPTED,
        signal.SIGTERM: ExitCode.PREEMPTED,
        signal.SIGUSR1: ExitCode.PREEMPTED,
    }

    def __init__(self) -> None:
        self.code = ExitCode.DONE
        """What to exit with, once a stop is asked for; until then 0."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = self._CODES[signal.Signals(number)]

    def __enter__(self) -> "StopRequest":
        self._old = {number: signal.signal(number, self._note) for number in self._CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
