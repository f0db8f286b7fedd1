"""Rendered digits and words, small enough for a laptop: the smallest whole run.

pixtok data build glyphs datasets/glyphs
pixtok train experiments/demo.py

Under three minutes on 2 cores. Measured 2026-11-27: validation bits/dim 4.884 -> 3.293, words 5.584 -> 2.036 nats.
"""

from pixtok.config import PRESETS, Checkpoint, Data, Experiment, Train


def config() -> Experiment:
    return Experiment(
        name="demo",
        model=PRESETS["tiny"],
        data=Data(path="datasets/glyphs", slots=96, windows=64),
        train=Train(
            steps=120, batch_size=4, learning_rate=2e-3, warmup_steps=12, dtype="float32", eval_every=60, eval_batches=4
        ),
        checkpoint=Checkpoint(every=60),
    )
