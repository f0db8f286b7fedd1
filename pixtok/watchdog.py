"""Nothing hangs in silence: deadlines for every phase of a run, and for the processes it shares its work with."""

import contextlib
import faulthandler
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator

import jax
from etils import epath

from pixtok import cluster
from pixtok.config import Deadlines
from pixtok.errors import DeadlineError, ExitCode
from pixtok.files import write

_GRACE = 5.0
"""Seconds in which a process may end by itself, once another has said why it went."""


class Watchdog:
    """A thread that ends the process with exit code 4 when a phase takes too long, or another process is gone.

    Where that one told why it went, with its exit code.  Before, it writes the stacks of all threads to
    RUN/stacks-PROCESS.txt and says what was awaited, of whom.
    A context manager.
    """

    def __init__(self, deadlines: Deadlines, run_dir: epath.Path) -> None:
        self._deadlines, self._run_dir = deadlines, run_dir
        self._phase, self._step, self._end = "start", 0, time.monotonic() + deadlines.start
        self._interval = min(10.0, deadlines.peer / 6)
        self._heard: dict[int, tuple[str, float]] = {}
        self._answered = time.monotonic()
        self._over = threading.Event()
        # Talking may block, when process 0 is stopped: another thread looks at the clock.
        threads = (self._watch,) if cluster.count() == 1 else (self._watch, self._talk)
        self._threads = [threading.Thread(target=target, name="watchdog", daemon=True) for target in threads]

    def __enter__(self) -> "Watchdog":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and cluster.breaks_off(error):
            # The threads get the time to notice who is gone.
            reason = "".join(str(error).splitlines()[:1])  # what wraps an error may say nothing
            cluster.say(f"{type(error).__name__}: {reason}; looking whether another process is gone")
            time.sleep(self._deadlines.peer + 2 * self._interval)
        if isinstance(error, DeadlineError) and error.code == ExitCode.DEADLINE:
            cluster.say(f"stacks of all threads: {self._stacks()}")
        self._over.set()

    @contextlib.contextmanager
    def phase(self, name: str, seconds: float) -> Iterator[None]:
        """What is done now, and how long it may take."""
        before = self._phase, self._end
        self._phase, self._end = name, time.monotonic() + seconds
        try:
            yield
        finally:
            # What goes on has its whole time again.
            self._phase, self._end = before[0], max(before[1], time.monotonic() + self._deadlines.step)

    def at(self, step: int) -> None:
        """So many steps are done."""
        self._step = step

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            now = time.monotonic()
            if now > self._end:
                self._late()
            if cluster.count() > 1 and now - self._answered > self._deadlines.peer:
                self._exit("process 0, which all others depend on, does not answer", tell=False)

    def _talk(self) -> None:
        beat = 0
        while not self._over.wait(self._interval):
            beat += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # no answer: `_watch` waits for one
                self._beat(beat)
                self._answered = time.monotonic()

    def _beat(self, beat: int) -> None:
        """Say that this process lives, and hear of the others: process 0 of all, they of process 0."""
        own = json.dumps({"beat": beat, "phase": self._phase, "step": self._step})
        cluster.put(f"beat/{cluster.index()}", own)
        if (gone := cluster.told()) is not None:
            if not self._over.wait(_GRACE):
                self._exit(str(gone), gone.code, tell=False)
            return
        beats = cluster.all_of("beat") if cluster.lead() else {0: cluster.get("beat/0") or ""}
        now = time.monotonic()
        for process in range(cluster.count()) if cluster.lead() else (0,):
            said = beats.get(process, "")
            if process not in self._heard or self._heard[process][0] != said:
                self._heard[process] = said, now
            elif now - self._heard[process][1] > self._deadlines.peer:
                self._exit(
                    f"{cluster.name(process)} has not been heard of for {self._deadlines.peer:g} s; {_last(said)}"
                )

    def _late(self) -> None:
        reason = f"`{self._phase}` did not end within its deadline (after step {self._step}; --deadline.* sets it)"
        own = {"phase": self._phase, "step": self._step}
        if cluster.count() > 1 and time.monotonic() - self._answered < 2 * self._interval:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                for process, said in sorted(cluster.all_of("beat").items()):
                    if process != cluster.index() and json.loads(said) != own | {"beat": json.loads(said)["beat"]}:
                        reason += f"; {cluster.name(process)} is elsewhere: {_last(said)}"
        self._exit(reason)

    def _exit(self, reason: str, code: ExitCode = ExitCode.DEADLINE, *, tell: bool = True) -> None:
        # Telling the others may block as well.
        end = threading.Timer(2 * self._interval + 30, os._exit, (code,))
        end.daemon = True
        end.start()
        cluster.say(f"{reason}; stacks of all threads: {self._stacks()}")
        if cluster.count() > 1:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                if tell:
                    cluster.tell(f"{reason} (says process {cluster.index()})")
            if cluster.lead():
                time.sleep(2 * self._interval)  # the others read it here
        os._exit(code)

    def _stacks(self) -> str:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            content = file.read()
        path, written = self._run_dir / f"stacks-{cluster.index()}.txt", threading.Event()

        def save() -> None:
            write(path, content)
            written.set()

        # The file system may be what hangs.
        threading.Thread(target=save, daemon=True).start()
        if written.wait(10):
            return str(path)
        os.write(2, content)
        return "above"


def _last(said: str) -> str:
    if not said:
        return "it never said anything"
    state = json.loads(said)
    return f"last in `{state['phase']}` after step {state['step']}"
