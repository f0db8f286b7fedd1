"""What ends a run, and the exit code that says so."""

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of every `pixtok` verb."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2
    TOO_LARGE = 3
    DEADLINE = 4
    NOT_FINITE = 5
    PREEMPTED = 75
    INTERRUPTED = 130


class InputError(ValueError):
    """Bad input: one line that says what was wanted, what came, and what to do.  Exit code 2."""


class NotFiniteError(RuntimeError):
    """The loss or the gradient norm is not finite.  Exit code 5."""


class DeadlineError(RuntimeError):
    """Something did not come in time, or another process is gone.  Exit code 4, or `code`: with which that one left."""

    def __init__(self, reason: str, code: ExitCode = ExitCode.DEADLINE) -> None:
        super().__init__(reason)
        self.code = code


class TooLargeError(RuntimeError):
    """The training step does not fit the hardware.  Exit code 3."""
