"""Cost of global conditional attention against causal attention over all pixels, as ratios of one run.

python kernels/bench.py [--json OUT.json] [--largest 16384]

Forward and gradient of one layer, for N pixels in windows of W ≈ √N, one slot for each window and no halo: the score
pairs that the definition asks for, the FLOPs that the compiler counts, and seconds (median, taking turns).
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from jax import numpy as jnp

from pixtok_kernels import global_conditional_attention
from pixtok_kernels.api import IMPLEMENTATIONS

HEADS, KEY_HEADS, WIDTH = 2, 1, 32


def lanes(pixels: int, window: int):
    """Name → (function, arguments) of causal attention and of each implementation."""
    rng = np.random.default_rng(0)
    windows = pixels // window

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, k, v = normal(1, pixels, HEADS, WIDTH), normal(1, pixels, KEY_HEADS, WIDTH), normal(1, pixels, KEY_HEADS, WIDTH)
    slots = normal(1, windows, KEY_HEADS, WIDTH), normal(1, windows, KEY_HEADS, WIDTH)
    span = jnp.stack([jnp.zeros(windows, jnp.int32), jnp.arange(windows, dtype=jnp.int32)], -1)[None]
    split = tuple(array.reshape(1, windows, window, -1, WIDTH) for array in (q, k, v))
    yield "causal", functools.partial(jax.nn.dot_product_attention, is_causal=True), (q, k, v)
    for name in IMPLEMENTATIONS:
        yield (
            name,
            functools.partial(global_conditional_attention, implementation=name, span_BM2=span),
            (*split, *slots),
        )


def measure(pixels: int, window: int) -> list[dict]:
    """One row for each lane."""
    made = {}
    for name, function, arguments in lanes(pixels, window):

        def loss(*arguments, function=function):
            return (function(*arguments) ** 2).sum()

        compiled = jax.jit(jax.grad(loss, argnums=tuple(range(len(arguments))))).lower(*arguments).compile()
        jax.block_until_ready(compiled(*arguments))
        made[name] = compiled, arguments, []
    for _ in range(9 if pixels <= 4096 else 3):
        for compiled, arguments, seconds in made.values():
            begin = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds.append(time.perf_counter() - begin)
    windows = pixels // window
    pairs = {
        name: pixels * (pixels + 1) // 2
        if name == "causal"
        else windows * window * (window + 1) // 2 + window * windows * (windows - 1) // 2
        for name in made
    }
    base = statistics.median(made["causal"][2])
    return [
        {
            "pixels": pixels,
            "window": window,
            "attention": name,
            "score_pairs": pairs[name],
            "flops": compiled.cost_analysis()["flops"],
            "bytes": compiled.memory_analysis().temp_size_in_bytes,
            "seconds": statistics.median(seconds),
            "speed_up": base / statistics.median(seconds),
        }
        for name, (compiled, _, seconds) in made.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=16384, help="largest number of pixels")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    rows = []
    print(
        f"{'pixels':>8} {'window':>7} {'attention':>10} {'pairs':>14} {'GFLOP':>9} {'MiB':>8} {'ms':>9} {'speed-up':>9}"
    )
    for pixels, window in ((1024, 64), (4096, 64), (16384, 256), (65536, 256)):
        if pixels <= options.largest:
            for row in measure(pixels, window):
                rows.append(row)
                print(
                    f"{pixels:8} {window:7} {row['attention']:>10} {row['score_pairs']:14,} {row['flops'] / 1e9:9.2f} "
                    f"{row['bytes'] / 2**20:8.1f} {row['seconds'] * 1e3:9.1f} {row['speed_up']:9.2f}",
                    flush=True,
                )
    if options.json:
        device = jax.devices()[0].device_kind
        options.json.write_text(json.dumps({"device": device, "jax": jax.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
