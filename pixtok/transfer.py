"""Hyper-parameters that mean the same at every width and depth: `model.transfer`.

µP (arXiv 2203.03466) in width, CompleteP (arXiv 2505.01618) in depth.  Adam's steps have one size whatever the
gradient's, so what a step changes in the output of a matrix grows with its number of inputs n unless its rate falls as
1/n; and what L residual branches change together grows with L unless each counts 1/L.  Instead of a factor 1/L in front
of a branch, the matrices that end it start that much smaller and move that much slower, which is the same to Adam:

    parameter                            initial        rate
    matrix with n inputs                 1              r · 128 / n
    the same at the end of a branch      √(4 / L)       r · 128 / n · 4 / L
    norm                                 1              r
    table of words; of pixels            1              r · train.word_rate; r · train.pixel_rate
    matrix that takes whole windows      1              r · train.pixel_rate
    table of pixels for that             1              r · train.pixel_rate / 16

`initial` is a factor on what a model starts with otherwise: deviations 1/√n, 1/√(2·L·n) at the end of a branch, and 1/n
of the unified head.  Widths of heads do not change, so attention's 1/√D stays.  At 128 inputs and 4 blocks a matrix is
as it is without, but for Adam's ε, which gradients must not come near.  Weight decay is not part of the rate: it takes
r · `train.weight_decay` of all matrices.
"""

from typing import Any

import jax

from pixtok.config import Train

_WIDTH, _LAYERS = 128, 4
_ENDS = ("out", "down")
_STEADY = 16
"""A stem reads colours off embeddings: colours that are alike have to stay so while each takes steps of its own."""


def _names(path: tuple[Any, ...]) -> list[str]:
    """Of the modules that lead to a parameter, and its own; a box of logical axes has none."""
    return [key.key for key in path if hasattr(key, "key")]


def _ends(names: list[str]) -> bool:
    return "blocks" in names and names[-1] in _ENDS


def initial(params: Any) -> Any:
    """Initial weights, of a model that does without → with."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf * (_LAYERS / leaf.shape[0]) ** 0.5 if _ends(_names(path)) else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


def rates(params: Any, train: Train) -> Any:
    """The rate of each parameter, as a multiple of the learning rate: floats."""

    def rate(path: tuple[Any, ...], leaf: Any) -> float:
        names = _names(path)
        if names[-1].startswith("scale"):
            return 1.0
        if names[-2:] == ["stem", "up"]:  # its inputs do not grow with width
            return train.pixel_rate
        if names[-1].startswith("table"):
            if names[0] == "encoder" and "stem" in params["encoder"]:
                return train.pixel_rate / _STEADY
            return train.word_rate if names[0] == "trunk" else train.pixel_rate
        inner = leaf.shape[1:] if "blocks" in names else leaf.shape
        inputs = inner[0] * inner[1] if names[-1] == "out" else inner[0]
        return _WIDTH / inputs * (_LAYERS / leaf.shape[0] if _ends(names) else 1)

    return jax.tree_util.tree_map_with_path(rate, params)
