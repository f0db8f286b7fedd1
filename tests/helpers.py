"""What several tests need."""

import os
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


def run_pixtok(*args: object, wait: bool = True):
    """Run `pixtok …` in a process of its own → the finished process; `wait=False` → the running one."""
    command = [sys.executable, "-m", "pixtok", *map(str, args)]
    env = os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    if wait:
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
