"""UPW's mixed model (arXiv 2605.14028): words and images of 224² in rows of 1024 slots, 32,000 words.

pixtok data vocab SOURCE vocabulary.json --size 32000
pixtok data build SOURCE datasets/mixed --image_size 224 --vocabulary vocabulary.json
pixtok train experiments/upw_mixed.py --data.path datasets/mixed
"""

from pixtok.config import PRESETS, Checkpoint, Data, Experiment, Train


def config() -> Experiment:
    return Experiment(
        name="upw-mixed",
        model=PRESETS["upw-mixed"],
        data=Data(path="datasets/mixed", image_size=224, slots=1024, windows=784),
        train=Train(steps=100_000, batch_size=64, learning_rate=3e-4, warmup_steps=2_000),
        checkpoint=Checkpoint(every=1_000),
    )
