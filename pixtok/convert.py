"""Weights of other systems become a run, and those of a run a file that other systems read.

UPW's checkpoints (arXiv 2605.14028) hold, under `model`, one matrix a name, rows first: what each becomes is in
`_BLOCK` and `_WHOLE`, as one layout of its axes.  Rotary positions turn adjacent pairs of features there and halves
here, so the features of queries and keys change places.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange
from etils import epath
from flax.traverse_util import unflatten_dict

from pixtok import config, fold, weights, windows, words
from pixtok.checkpoint import Checkpoints
from pixtok.config import Data, Experiment, Model, Stream, Train
from pixtok.errors import InputError
from pixtok.extras import extra
from pixtok.files import location, write
from pixtok.run import Run, describe, write_json

# Axes: E width, H and K heads of R pairs of features, F hidden width, V words, C colours and padding, U outcomes.
_WHOLE = {
    "tok_embeddings.weight": ("trunk.embed.table", "V E -> V E"),
    "norm.weight": ("trunk.norm.scale", "E -> E"),
    "output.weight": ("head", "U E -> E U"),
    "imgblk.pix_emb.weight": ("encoder.embed.table", "C E -> C E"),
    "imgblk.norm.weight": ("encoder.norm.scale", "E -> E"),
}
_BLOCK = {
    "attention_norm.weight": ("attention_norm.scale", "E -> E"),
    "attention.wq.weight": ("attention.query", "(H R two) E -> E H (two R)"),
    "attention.wk.weight": ("attention.key", "(K R two) E -> E K (two R)"),
    "attention.wv.weight": ("attention.value", "(K D) E -> E K D"),
    "attention.wo.weight": ("attention.out", "E (H D) -> H D E"),
    "ffn_norm.weight": ("mlp_norm.scale", "E -> E"),
    "feed_forward.w1.weight": ("mlp.gate", "F E -> E F"),
    "feed_forward.w2.weight": ("mlp.down", "E F -> F E"),
    "feed_forward.w3.weight": ("mlp.up", "F E -> E F"),
}
_ADVICE = {
    "wk": "; change --heads or --kv_heads",
    "wv": "; change --heads or --kv_heads",
    "w1": "; pixtok's blocks have a hidden width of 3·E alone",
    "w2": "; pixtok's blocks have a hidden width of 3·E alone",
    "w3": "; pixtok's blocks have a hidden width of 3·E alone",
}


def read(source: Path) -> dict[str, np.ndarray]:
    """The weights of UPW's checkpoint, float32, by their names without `module.`.

    Nothing of the file is run.  Raises InputError when it is no such checkpoint, and where torch is not installed.
    """
    if not source.is_file():
        raise InputError(f"no checkpoint at {source}: give a .pth file")
    torch = extra("torch", "torch")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zip raise what they like
        raise InputError(
            f"{source} cannot be read ({type(error).__name__}): it is damaged, or holds more than tensors, which could "
            "run code and is not loaded; where you trust it, save its weights alone: "
            "torch.save({'model': model.state_dict()}, FILE)"
        ) from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise InputError(f"{source} holds no `model`: save it with torch.save({{'model': model.state_dict()}}, FILE)")
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise InputError(f"{source}: {name} is not a matrix of weights: take it out of `model`")
    return {name.removeprefix("module."): value.detach().float().numpy() for name, value in model.items()}


def upw_model(
    state: dict[str, np.ndarray], *, heads: int = 12, kv_heads: int = 6, fold_factor: int = 16, window: int = 16
) -> Model:
    """The model of UPW's weights; what their shapes do not tell is given.  Raises InputError when they do not fit."""
    for name in ("tok_embeddings.weight", "imgblk.pix_emb.weight"):
        if name not in state or state[name].ndim != 2:
            raise InputError(f"not a checkpoint of UPW's model: it has no matrix {name}")
    (vocab_size, width), pixels = state["tok_embeddings.weight"].shape, len(state["imgblk.pix_emb.weight"])
    if heads < 1 or width % (4 * heads):
        raise InputError(
            f"--heads {heads} does not divide the width {width} into heads of 4, 8, 12, … features: change it"
        )
    if kv_heads < 1 or heads % kv_heads:
        raise InputError(f"--kv_heads must divide --heads {heads}; got {kv_heads}")
    factors = [factor for factor in fold.FACTORS if not fold.by_channel(factor)]
    if fold_factor not in factors:
        raise InputError(f"--fold_factor must be one of {', '.join(map(str, factors))}; got {fold_factor}")
    if pixels != fold.colours(fold_factor) + 1:
        fitting = [factor for factor in factors if fold.colours(factor) + 1 == pixels]
        raise InputError(
            f"imgblk.pix_emb.weight has {pixels} rows, and --fold_factor {fold_factor} makes L³ + 1 = "
            f"{fold.colours(fold_factor) + 1}: "
            + (f"give --fold_factor {fitting[0]}" if fitting else "no fold factor makes that many")
        )
    trunk, encoder = (Stream(width, _layers(state, prefix), heads, kv_heads) for prefix in ("", "imgblk."))
    model = dataclasses.replace(
        config.UPW,
        encoder=encoder,
        trunk=trunk,
        decoder=dataclasses.replace(trunk, layers=0),
        vocab_size=vocab_size,
        fold_factor=fold_factor,
        window=window,
    )
    _check(state, model)
    return model


def upw_params(state: dict[str, np.ndarray], model: Model) -> dict[str, Any]:
    """UPW's weights → the parameters of `model`, as `upw_model` gives it.  float32."""
    flat = {}
    for names, ours, layout in _table(model):
        arrays = [rearrange(state[name], layout, **_axes(layout, model)) for name in names]
        # Blocks are scanned here: one array holds them all.
        flat[ours] = np.stack(arrays) if ".blocks." in ours else np.ascontiguousarray(arrays[0])
    kernel_EU, V = flat.pop("head"), model.vocab_size
    flat["head.word"], flat["head.window"] = map(np.ascontiguousarray, (kernel_EU[:, :V], kernel_EU[:, V:]))
    return unflatten_dict(flat, sep=".")


def _table(model: Model) -> list[tuple[list[str], str, str]]:
    """(UPW's names, one for each layer; ours; the layout)."""
    table = [([name], ours, layout) for name, (ours, layout) in _WHOLE.items()]
    for prefix, ours_of, stream in (("", "trunk", model.trunk), ("imgblk.", "encoder", model.encoder)):
        for name, (ours, layout) in _BLOCK.items():
            names = [f"{prefix}layers.{layer}.{name}" for layer in range(stream.layers)]
            table.append((names, f"{ours_of}.stack.blocks.{ours}", layout))
    return table


def _axes(layout: str, model: Model) -> dict[str, int]:
    """Sizes of the axes in a layout."""
    stream, colours = model.trunk, fold.colours(model.fold_factor)
    sizes = {"E": stream.width, "F": stream.hidden, "H": stream.heads, "K": stream.kv_heads, "D": stream.head_width}
    sizes |= {"R": stream.head_width // 2, "two": 2}
    sizes |= {"V": model.vocab_size, "C": colours + 1, "U": model.vocab_size + colours}
    return {axis: size for axis, size in sizes.items() if axis in re.findall(r"\w+", layout)}


def _layers(state: dict[str, np.ndarray], prefix: str) -> int:
    """Number of blocks, 1 where there is none, so that the first is missed."""
    numbers = [re.match(rf"{re.escape(prefix)}layers\.(\d+)\.", name) for name in state]
    return max((int(number[1]) + 1 for number in numbers if number), default=1)


def _check(state: dict[str, np.ndarray], model: Model) -> None:
    """Raises InputError unless these are the weights of the model, all of them and no others."""
    wanted = {}
    for names, _, layout in _table(model):
        axes, left = _axes(layout, model), layout.split(" -> ")[0]
        groups = re.findall(r"\(.*?\)|\w+", left)
        shape = tuple(math.prod(axes[axis] for axis in re.findall(r"\w+", group)) for group in groups)
        wanted |= dict.fromkeys(names, shape)
    for what, names in (("it has no", wanted.keys() - state.keys()), ("unknown is", state.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"not a checkpoint of UPW's model: {what} {min(names)}{more}")
    for name, shape in wanted.items():
        if state[name].shape != shape:
            advice = _ADVICE.get(name.split(".")[-2], "")
            raise InputError(f"{name} must be of shape {_times(shape)}; it is {_times(state[name].shape)}{advice}")


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def upw(
    source: Path,
    out: epath.PathLike,
    *,
    heads: int = 12,
    kv_heads: int = 6,
    fold_factor: int = 16,
    image_size: int = 224,
    window: int = 16,
    vocabulary: str = "none",
    command: Sequence[str] = (),
) -> str:
    """Make a run of UPW's checkpoint, with one checkpoint, of step 0 → what to say of it.

    `vocabulary`: `none`, `bytes`, or the path of the tokenizer.json that it was trained with.  All is checked before
    anything is written.  Raises InputError.
    """
    folder = location(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{out} is not empty: give a new folder")
    for name, value in (("--image_size", image_size), ("--window", window)):
        if value < 1:
            raise InputError(f"{name} must be at least 1; got {value}")
    spoken = words.load(vocabulary)
    state = read(source)
    try:
        model = upw_model(state, heads=heads, kv_heads=kv_heads, fold_factor=fold_factor, window=window)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    if spoken.size != model.vocab_size:
        raise InputError(
            f"{source} has {model.vocab_size} word ids, and the vocabulary {vocabulary} has {spoken.size}: give the "
            "tokenizer.json that it was trained with as --vocabulary"
        )
    # Rows as the presets have them: an image of 196 windows and four special tokens, or four with text in 1024 slots.
    cells = math.prod(windows.grid(image_size, image_size, window))
    count, text = (cells, 4) if vocabulary == "none" else (4 * cells, 240)
    data = Data("", image_size=image_size, slots=count + text, windows=count)
    experiment = Experiment(source.stem, model, data, Train(steps=1, batch_size=1, warmup_steps=0, dtype="float32"))
    config.validate(experiment)
    manifest = describe(experiment, [], command, spoken.fingerprint)
    params = upw_params(state, model)
    with Checkpoints(folder / "checkpoints", experiment.checkpoint) as checkpoints:
        checkpoints.save_params(0, params, manifest)
        checkpoints.latest()  # waits
    write_json(folder / "config.json", manifest)
    return f"{out}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters"


def safetensors(run_dir: epath.PathLike, out: Path, step: int | None = None) -> str:
    """Write the weights of a run to a .safetensors file → what to say of it.  Raises InputError.

    float32, by the dotted names of the parameter tree; the metadata hold `experiment`, as JSON, and `step`.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"OUT must be a .safetensors; got {out}")
    save = extra("safetensors.numpy", "safetensors").save
    run = Run(epath.Path(run_dir))
    _, step, params = weights.load(run, step)
    tensors = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.ascontiguousarray(jax.device_get(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    metadata = {"format": "pixtok", "step": str(step), "experiment": json.dumps(run.content["experiment"])}
    write(out, save(tensors, metadata))
    return f"{out}: {sum(tensor.size for tensor in tensors.values()):,} parameters of step {step}"
