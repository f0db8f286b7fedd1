"""Compiled programs are kept on disk for the next process that runs them: jax's persistent compilation cache.

jax finds a program by its code, jax's version and flags, and the kind of device, of a CPU with all its features: a home
folder that different machines share does no harm.
"""

import os
import tempfile
from pathlib import Path

import jax

from pixtok import cluster

_LIMIT = 2 * 2**30
"""Bytes; what was longest not read goes first."""


def keep() -> None:
    """Keep programs in ~/.cache/pixtok/xla, or under XDG_CACHE_HOME; before the first one is compiled.

    JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing: what jax was told
    already stays as it is.
    """
    told = jax.config.values
    if told["jax_compilation_cache_dir"] is not None or not told["jax_enable_compilation_cache"]:
        return
    # Process 0 alone writes.  Where the others cannot read, it would find its program while they compile theirs, and
    # on GPUs, whose processes choose kernels together, wait for it: the user knows a folder that all of them see.
    if cluster.count() > 1:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pixtok" / "xla"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs that others could change would be run
        tempfile.TemporaryFile(dir=folder).close()
        _prune(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        cluster.say(
            f"compiled programs are not kept ({error}); JAX_COMPILATION_CACHE_DIR names another folder for them"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _prune(folder: Path, limit: int = _LIMIT) -> None:
    found = [(file.stat(), file) for file in folder.glob("*-cache")]
    held = 0
    for stat, file in sorted(found, key=lambda item: item[0].st_atime, reverse=True):
        held += stat.st_size
        if held > limit:
            file.unlink(missing_ok=True)
