"""The processes of one job: how they find each other, wait for each other, and say why one is gone.

All goes through jax's coordination service, which lives in process 0.  A process that is alone needs none of it.
"""

import collections
import contextlib
import ctypes
import faulthandler
import functools
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # what jax.distributed has started is told nowhere else
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

from pixtok.errors import DeadlineError, ExitCode, InputError

_ENV = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_POLL = 0.1
_HANDLERS: list[Any] = []
"""What C may call must stay alive."""
_BARRIERS: collections.Counter[str] = collections.Counter()
"""How often each was passed."""
_STATUS = re.compile("(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")


def _client() -> Any:
    return distributed.global_state.client


def index() -> int:
    """Number of this process, from 0.  Touches no device."""
    return distributed.global_state.process_id


def count() -> int:
    """Number of processes of the job.  Touches no device."""
    return distributed.global_state.num_processes


def lead() -> bool:
    """Whether this is process 0, which alone writes what all have in common."""
    return index() == 0


def _wanted() -> dict[str, Any] | None:
    """What the environment says: arguments of `jax.distributed.initialize`, or None where the process is alone."""
    given = [name for name in _ENV if os.environ.get(name)]
    if given and len(given) < len(_ENV):
        raise InputError(f"{', '.join(given)} is set, but {', '.join(sorted(set(_ENV) - set(given)))} is not: set all")
    if given:
        address, number, own = (os.environ[name] for name in _ENV)
        if not (number.isdigit() and own.isdigit() and int(own) < int(number)):
            raise InputError(
                f"JAX_PROCESS_ID = {own} must be a number below JAX_NUM_PROCESSES = {number}, and both whole numbers"
            )
        return {"coordinator_address": address, "num_processes": int(number), "process_id": int(own)}
    # Inside `srun`; in a batch script without it there is one process, whatever the job has asked for.
    in_step = os.environ.get("SLURM_STEP_NODELIST") and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    return {} if in_step or os.environ.get("PIXTOK_DISTRIBUTED") == "1" else None


def join(start: float, peer: float) -> None:
    """Join the job that the environment tells of, if any.

    `start`: seconds until all processes must have come; `peer`: until one that says nothing counts as lost.
    Ends the process with exit code 4 when they do not come.  Raises InputError for an environment that is unusable.
    """
    wanted = _wanted()
    if wanted is None or _client() is not None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Processes agree on when to stop by themselves (see `Program.train_step`).
    jax.config.update("jax_enable_preemption_service", False)
    _on_abort(
        lambda: (
            f"not all processes of the job were there within {start:g} s; "
            + ("the lines above name those missing" if lead() else "process 0 says who is missing, if it came itself")
        )
    )
    service = _jax.get_distributed_runtime_service
    # The service must give up before its clients do, for it alone knows who has come.
    _jax.get_distributed_runtime_service = functools.partial(service, cluster_register_timeout=int(start))
    try:
        jax.distributed.initialize(
            **wanted,
            initialization_timeout=int(start) + 30,
            # Later than our own watch, which says what was going on.
            heartbeat_timeout_seconds=int(3 * peer) + 30,
            shutdown_timeout_seconds=60,
        )
    except ValueError as error:
        raise InputError(f"the job's environment is unusable: {error}") from None
    finally:
        _jax.get_distributed_runtime_service = service
    _on_abort(
        lambda: (
            "process 0, which all others depend on, was lost"
            if not lead()
            else "jax ended the job; the lines above name the processes that it lost"
        )
    )
    put(f"host/{index()}", socket.gethostname())


def _on_abort(reason: Callable[[], str]) -> None:
    """Exit with code 4, and say why, where jax would abort: it does when the job falls apart, from a thread of C++."""

    def ended(_: int) -> None:
        say(reason())
        faulthandler.dump_traceback(all_threads=True)
        os._exit(ExitCode.DEADLINE)

    _HANDLERS.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(ended))
    ctypes.CDLL(None).signal(signal.SIGABRT, _HANDLERS[-1])


def say(text: str) -> None:
    """One line on stderr, with the number of the process where there are several."""
    who = f" process {index()} of {count()}:" if count() > 1 else ""
    print(f"pixtok:{who} {text}", file=sys.stderr, flush=True)


def breaks_off(error: BaseException | None) -> bool:
    """Whether this is how jax says that another process is gone; it may be something else.

    What fails when it begins comes as a bare ValueError with a status, and libraries wrap it.
    """
    while error is not None and count() > 1:
        if isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error)):
            return "RESOURCE_EXHAUSTED" not in str(error)
        error = error.__cause__ or error.__context__
    return False


def put(key: str, value: str) -> None:
    """Let all processes know."""
    _client().key_value_set(f"pixtok/{key}", value, allow_overwrite=True)


def get(key: str) -> str | None:
    """What one process has `put`, None before it has."""
    try:
        return _client().key_value_try_get(f"pixtok/{key}")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def all_of(folder: str) -> dict[int, str]:
    """What processes have `put` under FOLDER/NUMBER."""
    return {int(key.rsplit("/", 1)[1]): value for key, value in _client().key_value_dir_get(f"pixtok/{folder}/")}


def name(process: int) -> str:
    """`process 3 (host)`."""
    host = get(f"host/{process}")
    return f"process {process}" + (f" ({host})" if host else "")


def tell(reason: str, code: ExitCode = ExitCode.DEADLINE) -> None:
    """Let all processes know why, and with which exit code, one leaves the job: the first to tell is the one heard."""
    if get("gone") is None:
        put("gone", json.dumps({"reason": reason, "code": code}))


def told() -> DeadlineError | None:
    """Why the job is over, where a process has told."""
    gone = get("gone")
    return None if gone is None else DeadlineError(json.loads(gone)["reason"], ExitCode(json.loads(gone)["code"]))


def barrier(label: str, seconds: float, brings: str = "") -> dict[int, str]:
    """Wait until all processes are here → what each `brings`.

    Raises DeadlineError, with who is missing, or why one has gone.
    """
    if count() == 1:
        return {0: brings}
    _BARRIERS[label] += 1
    key = f"{label}/{_BARRIERS[label]}"
    put(f"barrier/{key}/{index()}", brings)
    end = time.monotonic() + seconds
    while get(f"open/{key}") is None:
        here = all_of(f"barrier/{key}") if lead() or time.monotonic() > end else {}
        if len(here) == count():
            put(f"open/{key}", "")
            break
        if (gone := told()) is not None:
            raise gone
        if time.monotonic() > end:
            missing = ", ".join(name(process) for process in range(count()) if process not in here)
            raise DeadlineError(f"{missing} did not come to `{label}` within {seconds:g} s")
        time.sleep(_POLL)
    return all_of(f"barrier/{key}")


def leave(code: ExitCode, reason: str) -> None:
    """Before this process exits: wait for the others if all went well, else tell them why it goes, and go at once."""
    if count() == 1:
        return
    if not reason:
        try:
            barrier("end", 60)
            return
        except (DeadlineError, jax.errors.JaxRuntimeError) as error:
            say(f"all is done here, but {error}")
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be what is gone
        if reason:
            tell(f"{name(index())} stopped with exit code {int(code)}: {reason}", code)
    if lead():
        time.sleep(12)  # the others, who ask every 10 s, read it here
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # jax would wait for processes that do not come
