"""Memory that is freed stays with the process, for the next step.

XLA on the CPU asks for the memory of each step anew.  glibc takes large pieces from the kernel and gives them back, and
the kernel clears every page again: up to a quarter of a step (experiments/LOG.md, "Fresh memory").
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
"""glibc's malloc.h."""


def keep() -> None:
    """From here on; before threads begin, which else have heaps of their own.

    With glibc, where jax has CPUs alone.  Who sets GLIBC_TUNABLES or MALLOC_… has chosen, and nothing changes.
    """
    chosen = any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc" or not _on_cpu():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)  # large pieces from the heap too
    mallopt(_TRIM_THRESHOLD, -1)  # never given back
    mallopt(_TOP_PAD, 2**26)
    mallopt(_ARENA_MAX, 1)  # heaps of threads hold 64 MiB at most, and go when they are empty


def _on_cpu() -> bool:
    """Before jax is imported: whether that is asked for, or nothing else is installed."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None
