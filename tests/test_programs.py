import os
import stat
import subprocess
import sys

import jax
import pytest

from helpers import ROOT
from pixtok import cluster, programs

COMPILE = """
import jax
from pixtok import programs

programs.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1.0)
"""


def compile_in(home, **env: str) -> list[str]:
    """What a process leaves that compiles something, and what it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    command = [sys.executable, "-W", "error", "-c", COMPILE]
    done = subprocess.run(
        command, env=clean | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(home)} | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_programs_are_kept_in_the_cache_of_the_user(tmp_path):
    folder = tmp_path / "pixtok" / "xla"
    assert compile_in(tmp_path) == []
    assert [file.name.startswith("jit__lambda") for file in folder.iterdir()] == [True]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("off", [{"JAX_ENABLE_COMPILATION_CACHE": "0"}, {"JAX_COMPILATION_CACHE_DIR": ""}])
def test_the_environment_switches_it_off(tmp_path, off):
    assert compile_in(tmp_path, **off) == []
    assert not list(tmp_path.iterdir())


def test_another_folder_is_taken_as_it_is(tmp_path):
    other = tmp_path / "other"
    assert compile_in(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(other)) == []
    assert list(other.iterdir())
    assert not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "pixtok").write_text("in the way")
    (line,) = compile_in(tmp_path)
    assert line.startswith("pixtok: compiled programs are not kept (")
    assert "JAX_COMPILATION_CACHE_DIR" in line


def test_several_processes_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "count", lambda: 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        programs.keep()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not list(tmp_path.iterdir())


def test_what_was_longest_not_read_goes(tmp_path):
    for number in range(4):
        file = tmp_path / f"{number}-cache"
        file.write_bytes(bytes(10))
        os.utime(file, (1000 + number % 3, 0))
    programs._prune(tmp_path, 25)
    assert {file.name for file in tmp_path.iterdir()} == {"1-cache", "2-cache"}
