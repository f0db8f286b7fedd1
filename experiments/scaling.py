"""Does the loss of pixels follow a law?  Models of 33 to 462 thousand parameters on CIFAR's JPEG files.

pixtok data build CIFAR_FOLDER datasets/cifar10-pixels --vocabulary none
pixtok plan experiments/scaling.py runs/scaling --dials 12 16 24 32 40 48 --budget 2.2e13 --decades 1.52 --levels 7 \
    --least_steps 40 --most_epochs 1.1               # and the same to runs/scaling-1, with --train.seed 1
pixtok launch runs/scaling --parallel 2
pixtok launch runs/scaling-1 --parallel 2
pixtok report runs/scaling runs/scaling-1 --out experiments/results/scaling_seeds.html \
    --title "CIFAR-10 pixels: 29 runs of two seeds"
pixtok fit runs/scaling runs/scaling-1 --json --predict 211000:1.3e7 > experiments/results/scaling_seeds.json
pixtok train experiments/scaling.py --steps 1588     # what was predicted, 4.5 times the largest's compute; and seed 1

A larger sweep, of 26 runs of one seed: `--budget 5e13 --decades 1.6 --least_steps 40`, no `--levels`; predicted with
`211000:2.6e7`, which is `--steps 3177` (`results/scaling.json`, and its page).

The learning rate is that of `experiments/transfer.py`, whose models are these at dials 32, 64 and 128; tables of pixels
have four times that, which was best of 4 and 16 after 900 steps.  A step sees 8 images, and hardly one is seen twice.

With text, of the modules that come with Python, one law for pixels and one for words:

python experiments/scaling.py datasets/modules
pixtok data build CIFAR_FOLDER datasets/cifar10
pixtok plan experiments/scaling.py runs/mixed --dials 12 16 24 32 --budget 5e12 --levels 4 --least_steps 30 \
    --data datasets/cifar10 --words 262 --data.mix datasets/modules --data.weights 0.5 0.5 --data.slots 128
pixtok launch runs/mixed --parallel 2
pixtok report runs/mixed --loss bpd_8bit nats_word --out experiments/results/mixed_small.html \
    --title "CIFAR-10 pixels and Python modules: 14 runs"

Larger, 13 runs: `--budget 9e12 --least_steps 60` (`results/mixed.html`).
"""

import sys
import sysconfig
import tempfile
from pathlib import Path

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
            pixel_rate=4.0,
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


def modules(out: Path) -> None:
    """A data set of text: the source of each module of the standard library, without its tests."""
    from pixtok.data.build import Settings, build

    source = Path(sysconfig.get_path("stdlib"))
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(sorted(source.rglob("*.py"))):
            if not {"site-packages", "test", "tests"} & set(file.relative_to(source).parts):
                (Path(folder) / f"{number}.txt").write_bytes(file.read_bytes())
        build(folder, out, Settings())


if __name__ == "__main__":
    modules(Path(sys.argv[1]))
