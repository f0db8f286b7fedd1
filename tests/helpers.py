"""What several tests need."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
QUICK = "--xla_backend_optimization_level=0"
"""Tests compile much and compute little."""


def save_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    """A noisy image, lossless where the suffix allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, height, width]).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def run_pixtok(*args: object, wait: bool = True, **env: str):
    """Run `pixtok …` in a process of its own → the finished process; `wait=False` → the running one."""
    return run_python("-m", "pixtok", *args, wait=wait, **env)


def run_python(*args: object, wait: bool = True, cwd: Path | None = None, **env: str):
    """Run Python likewise."""
    command = [sys.executable, *map(str, args)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests")))
    all_env = os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": path} | env
    if wait:
        return subprocess.run(command, capture_output=True, text=True, env=all_env, cwd=cwd, timeout=300)
    return subprocess.Popen(command, env=all_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_cluster(processes: int, devices: int, *args: object) -> list[subprocess.Popen]:
    """Start `python …` in so many processes that form one job, each with so many CPU devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        run_python(
            *args,
            wait=False,
            JAX_NUM_CPU_DEVICES=str(devices),
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(processes),
            JAX_PROCESS_ID=str(index),
            # Process 0 alone would find its programs there, and wait for the others longer than gloo does.
            JAX_ENABLE_COMPILATION_CACHE="0",
        )
        for index in range(processes)
    ]


def finish(running: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Wait for all → (exit code, stdout, stderr) of each; none is left behind."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]
