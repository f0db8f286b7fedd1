"""What is compared: one trunk, and what looks at pixels for it.

pixtok train experiments/reading/arms.py --arm words --images 90000 --rate 0.001 --seed 1    # study.py does it for all

One trunk (128 wide, 4 blocks), one data set, optimizer, batch and schedule.  `words`: pixels as tokens, a stem over
the embeddings of each window of 8, loss of words alone; `window16` and `window4`: the same with other windows; `last`:
the state of the last pixel of a window as its summary, as in UPW.  `full`: the likelihood of all pixels as well;
`local`: its pixel decoder does not see the trunk's states of other windows.  `upw`: as the paper has it, pixels
as wide as the trunk, windows of 16, the first pixel of each predicted.  `vit8`, `vit16`, `vit16f`: patches, with as
many parameters as `words`, and, of the last, with a stem as wide as a patch has numbers.  `fold1` … `fold32`: `words`
with other fold factors.
"""

import dataclasses
from typing import Any, Literal

from pixtok import flops
from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train, family
from pixtok.errors import InputError

IMAGES = 90_000
"""That arms are trained on, where data are matched; FLOPs are matched to `words` on so many."""
BATCH = 8
FOLDS = (1, 2, 4, 8, 32)
"""Other fold factors than that of all arms, 16."""
_STEMS = {"vit8": (8, 1232), "vit16": (16, 448), "vit16f": (16, 768)}
_LAST = dataclasses.replace(family(128, window=8), objective="words")


def _pixels(window: int, stem: int = 1024, objective: Literal["full", "words"] = "words", **changes: Any) -> Model:
    model = dataclasses.replace(family(128, window=window), stem=stem, objective=objective, **changes)
    layers = model.encoder.layers if objective == "full" else 0
    return dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, layers=layers))


def _patches(side: int, stem: int) -> Model:
    none = Stream(_LAST.trunk.width, 0, 1, 1)
    return dataclasses.replace(_LAST, variant="patches", window=side, stem=stem, encoder=none)


def _upw() -> Model:
    trunk, pixels = _LAST.trunk, _LAST.encoder
    wide = Stream(trunk.width, pixels.layers, trunk.heads, trunk.kv_heads)
    changes = {"encoder": wide, "decoder": wide, "window": 16, "objective": "reference", "variant": "upw"}
    return dataclasses.replace(_LAST, transfer=False, **changes)


MODELS = {
    "words": _pixels(8),
    "last": _LAST,
    "window16": _pixels(16, stem=384),
    "window4": _pixels(4),
    "full": _pixels(8, objective="full"),
    "local": _pixels(8, objective="full", summaries=False),
    "upw": _upw(),
    **{name: _patches(*sizes) for name, sizes in _STEMS.items()},
    **{f"fold{factor}": _pixels(8, fold_factor=factor) for factor in FOLDS},
}


def config(
    arm: str = "words", images: int = IMAGES, rate: float = 1e-3, seed: int = 0, data: str = "datasets/reading/train"
) -> Experiment:
    """One arm, trained on so many images."""
    if arm not in MODELS:
        raise InputError(f"--arm must be one of {', '.join(MODELS)}; got {arm}")
    model, steps = MODELS[arm], images // BATCH
    windows = 32 * 64 // model.window**2
    train = Train(
        steps,
        BATCH,
        learning_rate=rate,
        pixel_rate=4.0 if model.transfer else 1.0,
        warmup_steps=min(200, steps // 10),
        final_rate=0.02,
        dtype="float32",
        remat="none",
        seed=seed,
        log_every=50,
        eval_every=steps,
        eval_batches=100,
    )
    # <s> <|image|> windows <|/image|> 123 </s>
    loaded = Data(data, slots=windows + 7, windows=windows)
    return Experiment(f"reading-{arm}", model, loaded, train, Checkpoint(every=max(1, steps // 4), keep=1))


def gflop(arm: str) -> float:
    """Of training, for one image."""
    return flops.training_step(config(arm)) / BATCH / 1e9


def matched(arm: str) -> int:
    """Images that cost an arm what `IMAGES` cost `words`, in whole batches."""
    return round(IMAGES * gflop("words") / gflop(arm) / BATCH) * BATCH
