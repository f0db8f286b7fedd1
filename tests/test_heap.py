"""Memory that is freed is not given back to the kernel, where jax computes on CPUs."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from pixtok import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

heap.keep()
np.ones(2**23)
before = faults()
np.ones(2**23)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
@pytest.mark.parametrize(
    ("env", "kept"),
    [
        ({"JAX_PLATFORMS": "cpu"}, True),
        ({"JAX_PLATFORMS": "cuda"}, False),
        ({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.arena_test=2"}, False),
        ({"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"}, False),
    ],
)
def test_memory_is_kept_on_cpus_unless_the_user_chose(env, kept):
    # 64 MiB: 16,384 pages, 32 where the kernel makes them huge
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_TUNABLES", "MALLOC_"))}
    found = subprocess.run([sys.executable, "-c", SCRIPT], env=unset | env, capture_output=True, text=True)
    assert (int(found.stdout) < 8) == kept, found.stderr


def test_where_nothing_else_is_installed_jax_computes_on_cpus(monkeypatch):
    from pixtok import heap

    monkeypatch.delenv("JAX_PLATFORMS")
    for plugins, tpu, expected in ((), None, True), (("cuda",), None, False), ((), "libtpu", False):
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group, found=plugins: found)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=tpu: found)
        assert heap._on_cpu() == expected
