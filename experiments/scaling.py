"""Does the loss of pixels follow a law?  Models of 13 thousand to 1.4 million parameters on CIFAR's JPEG files.

pixtok data build CIFAR_FOLDER datasets/cifar10-pixels --vocabulary none
pixtok plan experiments/scaling.py runs/scaling --dials 16 24 32 48 64 96 --budget 2e14 --levels 5 --decades 1.6
pixtok launch runs/scaling --parallel 2
pixtok fit runs/scaling
pixtok report runs/scaling --out runs/scaling/report.html

The learning rate is that of `experiments/transfer.py`, whose models are these at dials 32, 64 and 128; a step sees 8
images, and no image is seen twice below an epoch of 46 million pixels.
"""

from pixtok.config import FAMILY_RATE, Checkpoint, Data, Experiment, Model, Stream, Train


def config(dial: int = 32, steps: int = 1000, data: str = "datasets/cifar10-pixels", words: int = 6) -> Experiment:
    """The width of pixels; the trunk is twice as wide. `words`: size of the vocabulary, 262 for bytes."""
    heads = dial // 8 if dial < 32 else dial // 16
    pixels, trunk = Stream(dial, 2, heads, heads), Stream(2 * dial, 2, heads, heads)
    return Experiment(
        f"scaling-{dial}",
        Model(pixels, trunk, pixels, vocab_size=words, fold_factor=16, window=8, transfer=True),
        Data(data, slots=40, windows=32),
        Train(
            steps,
            4,
            learning_rate=FAMILY_RATE,
            warmup_steps=max(10, steps // 20),
            final_rate=0.02,
            dtype="float32",
            remat="none",
            log_every=50,
            eval_every=steps,
            eval_batches=96,
        ),
        Checkpoint(every=min(steps, 2000), keep=1),
    )
