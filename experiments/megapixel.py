"""Images of 4096 × 4096 pixels, a row each: 16,777,216 pixels, their windows side by side on 16 chips.

pixtok data build photos datasets/megapixel
pixtok train experiments/megapixel.py

Windows of 64 × 64: a pixel sees W / 2 of its own window and half of the 4096² / W windows on average, which is least at
W = 4096 (design: W ≈ √N). Side 32 has 2.1 times as many pairs, side 16 has 8 times.

TODO
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
