"""Hostile on purpose: several devices, and warnings are errors (pyproject.toml)."""

import os
from pathlib import Path

from helpers import QUICK, ROOT, save_image

# Tests compile much and compute little: compile fast, and once for all processes that run the same program.
os.environ["JAX_PLATFORMS"] = "cpu"
# Four devices may share one core with other work, where to wait long for each other is no error.
os.environ["XLA_FLAGS"] = (
    f"{QUICK} --xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # first calls compile
settings.load_profile("busy")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of 24 images of odd sizes in two sub-folders, some of them captioned."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        file = root / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        save_image(file, 5 + number % 7, 3 + number % 11, seed=number)
        if number % 3 == 0:
            file.with_suffix(".txt").write_text(f"number {number}, drawn with care " * (1 + number % 2))
    return root


@pytest.fixture(scope="session")
def dataset(photos, tmp_path_factory) -> Path:
    """`photos` as a data set."""
    from pixtok.data.build import Settings, build

    out = tmp_path_factory.mktemp("data") / "photos"
    build(str(photos), out, Settings(validation=0.2, test=0.1))
    return out
