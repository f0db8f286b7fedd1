"""Devices that are not here, to compile for."""

import contextlib
import importlib.util
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

# What the compiler wants to know of an H100 SXM (NVIDIA's data sheet; CUDA programming guide, capability 9.0).
_H100 = """
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
}
"""
H100_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Compiler options for a machine without the device: autotuning would run candidates on it, and without that there are
products for which Triton has no blocks to start from."""


def h100(hosts: int = 1, devices_per_host: int = 8) -> topologies.TopologyDescription:
    """H100s to compile for on a machine that has none: shardings on its `.devices`, then `.compile(H100_OPTIONS)`.

    Raises RuntimeError, naming what is missing, when the wheels of CUDA's plugin or compiler are not installed.
    """
    missing = [
        wheel
        for wheel, found in (
            ("jax-cuda13-plugin", importlib.util.find_spec("jax_cuda13_plugin")),
            ("jax-cuda13-pjrt", importlib.util.find_spec("jax_plugins.xla_cuda13") if _plugins() else None),
            ("nvidia-cuda-nvcc and nvidia-nvvm, with ptxas on PATH", shutil.which("ptxas")),
        )
        if not found
    ]
    if missing:
        raise RuntimeError(f"compiling for the H100 needs {'; '.join(missing)}")
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology=f"1x{hosts}x{devices_per_host}", target_config=_H100
    )


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Compile without writing to jax's cache, from which programs for absent devices cannot be read back."""
    name = "jax_persistent_cache_min_compile_time_secs"
    kept = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, kept)


def _plugins() -> bool:
    return importlib.util.find_spec("jax_plugins") is not None


TPUS = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}
"""Chips, and the smallest topology of each that the compiler knows."""


def tpu(chip: str, topology: str | None = None, slices: int = 1) -> topologies.TopologyDescription:
    """TPUs to compile for on a machine that has none: shardings on its `.devices`, then `.compile()`.

    `topology`, of each slice, as in v5p:8x8x8 without the chip's name; None takes the smallest.  Raises ValueError for
    a chip or topology that is not known, and RuntimeError when libtpu, which holds the compiler, is not installed.
    """
    if chip not in TPUS:
        raise ValueError(f"chip must be one of {', '.join(TPUS)}; got {chip}")
    if not importlib.util.find_spec("libtpu"):
        raise RuntimeError("compiling for TPU needs libtpu: pip install libtpu")
    # Without these the compiler asks the network where it is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Compiling takes no chip, so several processes may.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chip == "v4":  # both cores of a chip as one device, as on the machines; libtpu's default is one for each
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(f"{chip}:{topology or TPUS[chip]}", "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{chip} has no topology {topology}: {error}") from error
