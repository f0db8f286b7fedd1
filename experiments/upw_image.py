"""UPW's image model (arXiv 2605.14028): 126,653,184 parameters, images of 224², one image a row, no text.

pixtok data build SOURCE datasets/images --image_size 224 --vocabulary none
pixtok train experiments/upw_image.py --data.path datasets/images

The first loss, on a laptop, from one image and no training:

pixtok train experiments/upw_image.py --data.path datasets/images --train.batch_size 1 --train.steps 1 \
    --train.warmup_steps 0 --train.eval_batches 1

Measured 2026-11-24 on 2 cores: 8.315 nats a slot before the first step (ln 4102 = 8.319), within a minute; the
step itself takes minutes there. Training at this size: not measured.
"""

from pixtok.config import PRESETS, Checkpoint, Data, Experiment, Train


def config() -> Experiment:
    return Experiment(
        name="upw-image",
        model=PRESETS["upw-image"],
        data=Data(path="datasets/images", image_size=224, slots=200, windows=196),
        train=Train(steps=100_000, batch_size=256, learning_rate=3e-4, warmup_steps=2_000),
        checkpoint=Checkpoint(every=1_000),
    )
