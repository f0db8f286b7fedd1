"""Images of 4096 × 4096 pixels, one a row, their windows side by side on 16 chips.

pixtok data build photos datasets/megapixel
pixtok train experiments/megapixel.py

Windows of 64 × 64: of N = 16,777,216 pixels, each sees on average half of its own window and half of the summaries,
W / 2 + N / 2W keys, which is least at W = √N = 4096. A side of 32 makes it 2.1 times as much, of 16 eight times.

Compiled 2026-11-25 for v5e:4x4 with libtpu 0.0.42.1; no TPU was used: 87,311,424 parameters, a step takes 12.57 of the
15.75 GiB that a chip gives to a program. The largest all-gather brings 63.5 MiB, the borders of all 4,096 windows.
"""

from pixtok.config import Checkpoint, Data, Experiment, Mesh, Model, Stream, Train

SIZE, WINDOW, CHIPS = 4096, 64, 16


def config() -> Experiment:
    windows = (SIZE // WINDOW) ** 2
    return Experiment(
        name="megapixel",
        model=Model(
            encoder=Stream(width=96, layers=5, heads=3, kv_heads=1),
            trunk=Stream(width=768, layers=12, heads=12, kv_heads=6),
            decoder=Stream(width=96, layers=4, heads=3, kv_heads=1),
            window=WINDOW,
        ),
        # 256 words beside an image.
        data=Data(path="datasets/megapixel", image_size=SIZE, slots=windows + 256, windows=windows),
        train=Train(steps=20_000, batch_size=1, warmup_steps=500),
        checkpoint=Checkpoint(every=500),
        mesh=Mesh(data=1, window=CHIPS),
    )
