"""Does one learning rate serve all widths and depths?  µP in width, CompleteP in depth (`pixtok/transfer.py`).

pixtok data build CIFAR_FOLDER datasets/cifar10        # a folder of 32² JPEG files, a sub-folder for each class
python experiments/transfer.py                         # all runs that are not in results/transfer.jsonl, then the table
python experiments/transfer.py width/                  # those whose name begins so: start one for each core

Every model sees the same 150 batches of 4 images and their classes; what counts is the mean training loss of the last
30. Streams are 32 (pixels) and 64 (trunk) wide with 2 blocks each; `width` makes all of them 2 and 4 times as wide,
`depth` as deep, `pixel` and `word` change the rates of the tables of pixels and words alone, at both widths' ends.
`standard` is `width` without `model.transfer`: initial weights and rates as usual.

14 to 170 s a run on one core when nothing else runs (2026-11-27). With it the best rate is 2^-8 at all widths, and
2^-8, 2^-9 and 2^-8 with 2, 4 and 8 blocks; without it 2^-7 at width 1 and 2^-9 at width 4. Tables of pixels want 16
times the rate at both widths.
"""

import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
import optax
from jax import numpy as jnp

from pixtok import likelihood, optim, transfer
from pixtok.config import Data, Model, Stream, Train
from pixtok.data.pipeline import Loader
from pixtok.document import Rows, empty_row
from pixtok.model.model import Nats, UnifiedModel

STEPS, BATCH, LAST = 150, 4, 30
RATES = tuple(2.0**-n for n in (10, 9, 8, 7, 6))
BEST = 2.0**-8
RESULTS = Path(__file__).parent / "results" / "transfer.jsonl"


class Size(NamedTuple):
    """One model, and the rates of its tables."""

    wide: int = 1
    deep: int = 1
    transfer: bool = True
    pixel_rate: float = 1.0
    word_rate: float = 1.0

    @property
    def model(self) -> Model:
        """Heads stay 16 and 32 wide."""
        pixels = Stream(32 * self.wide, 2 * self.deep, 2 * self.wide, self.wide)
        trunk = Stream(64 * self.wide, 2 * self.deep, 2 * self.wide, self.wide)
        return Model(pixels, trunk, pixels, fold_factor=16, window=8, transfer=self.transfer)


def runs() -> Iterator[tuple[str, Size, float]]:
    """Name, model, learning rate."""
    for rate in RATES:
        for wide in (1, 2, 4):
            yield f"width/{wide}", Size(wide=wide), rate
        for deep in (2, 4):
            yield f"depth/{deep}", Size(deep=deep), rate
        for wide in (1, 4):
            yield f"standard/{wide}", Size(wide=wide, transfer=False), rate
    for table, factors in (("pixel", (0.25, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)), ("word", (0.25, 0.5, 2.0, 4.0))):
        for factor in factors:
            for wide in (1, 4):
                yield f"{table} x{factor}/{wide}", Size(wide=wide)._replace(**{f"{table}_rate": factor}), BEST


def train(size: Size) -> Train:
    return Train(
        STEPS,
        BATCH,
        learning_rate=1.0,  # updates are proportional to it, so that one program serves all rates
        warmup_steps=15,
        dtype="float32",
        pixel_rate=size.pixel_rate,
        word_rate=size.word_rate,
    )


@functools.cache
def program(size: Size) -> Any:
    """(initial state, step (state, rows, rate) → (state, loss))."""
    config, optimizer = size.model, optim.optimizer(train(size), size.transfer)
    model = UnifiedModel(config, remat="block")
    row = jax.tree.map(lambda array: array[None], empty_row(2, 1, config.window))

    @jax.jit
    def initial() -> Any:
        params = nn.unbox(model.init(jax.random.key(0), row))["params"]
        params = transfer.initial(params) if size.transfer else params
        return params, optimizer.init(params)

    def loss(params: Any, rows: Rows) -> jax.Array:
        nats = cast(Nats, model.apply({"params": params}, rows))
        return likelihood.loss(likelihood.total(likelihood.by_slot(nats, rows, config)), config)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, rows: Rows, rate: jax.Array) -> Any:
        params, inner = state
        value, grads = jax.value_and_grad(loss)(params, rows)
        updates, inner = optimizer.update(grads, inner, params)
        updates = jax.tree.map(lambda update: rate * update, updates)
        return (optax.apply_updates(params, updates), inner), value

    return initial, step


@functools.cache
def batches(model: Model) -> list[Rows]:
    loader = Loader(Data("datasets/cifar10", slots=40, windows=16), model, split="train", batch_size=BATCH, seed=0)
    return [loader.batch(step).rows for step in range(STEPS)]


def run(size: Size, rate: float) -> float:
    """Mean training loss of the last steps."""
    initial, step = program(size)
    state, losses = initial(), []
    for rows in batches(Size().model):
        state, value = step(state, rows, jnp.float32(rate))
        losses.append(value)
    return float(np.mean(jax.device_get(losses[-LAST:])))


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Losses by learning rate, the best of each model marked."""
    lines = [
        "| model | " + " | ".join(f"2^{round(np.log2(rate))}" for rate in RATES) + " |",
        "|---" * (1 + len(RATES)) + "|",
    ]
    names = dict.fromkeys(row["name"] for row in rows)
    for name in names:
        found = {row["rate"]: row["loss"] for row in rows if row["name"] == name}
        best = min(found.values())
        cells = (found.get(rate) for rate in RATES)
        shown = ("" if x is None else f"**{x:.3f}**" if x == best else f"{x:.3f}" for x in cells)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    known = {(row["name"], row["rate"]) for row in done()}
    for name, size, rate in sorted(runs(), key=lambda item: item[:2]):
        if not name.startswith(only) or (name, rate) in known:
            continue
        begin = time.perf_counter()
        loss = run(size, rate)
        line = {"name": name, "rate": rate, "loss": loss, "seconds": time.perf_counter() - begin}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), file=sys.stderr, flush=True)
    print(table(done()))


if __name__ == "__main__":
    main()
