"""Every setting, once: frozen dataclasses, their checks, the presets, and JSON."""

import dataclasses
import importlib.util
import inspect
import math
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pixtok import fold
from pixtok.errors import InputError

Remat = Literal["none", "attention", "block"]


@dataclass(frozen=True)
class Stream:
    """One stack of transformer blocks."""

    width: int
    """Width E."""
    layers: int
    """Number of blocks; the pixel decoder may have none."""
    heads: int
    """Query heads H; the width of a head is E / H."""
    kv_heads: int
    """Key/value heads K, a divisor of H."""

    @property
    def head_width(self) -> int:
        """D."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the SwiGLU: 3·E, as in UPW."""
        return 3 * self.width


@dataclass(frozen=True)
class Model:
    """What the model is."""

    encoder: Stream
    """The pixel encoder."""
    trunk: Stream
    """The causal decoder over words and window summaries."""
    decoder: Stream
    """The pixel decoder, which predicts all pixels."""
    objective: Literal["full", "reference", "words"] = "full"
    """`full`: every word and every pixel is predicted. `reference`: words and the first pixel of each window, as in
    UPW. `words`: words alone. But for `full` there is no pixel decoder."""
    vocab_size: int = 262
    """Word ids V, special tokens included; 262 is the byte vocabulary."""
    fold_factor: int = 16
    """Fold factor F: a channel has 256 / F levels."""
    residual: bool = True
    """Predict, and look at, what folding leaves out (c mod F), so that all 8 bits of a pixel are scored. Without it
    the pixel decoder knows folded colours alone."""
    window: int = 16
    """Side of a window, in pixels."""
    halo: int = 1
    """Rows above and columns to the left of a window whose pixels its decoder sees exactly."""
    summaries: bool = True
    """The pixel decoder attends to the trunk: to words and to summaries of earlier windows."""
    transfer: bool = False
    """Initial weights, scales and learning rates of each matrix follow its shape, for one `train.learning_rate` at all
    widths and depths (see `transfer`)."""
    variant: Literal["pixtok", "upw", "patches"] = "pixtok"
    """`upw`: pixel positions are one running index, and the encoder's last norm is stored but not applied.
    `pixtok`: they are row and column, the norm is applied, and summaries know the place of their window.
    `patches`: no pixel has an embedding; a window is one vector of intensities, as in a ViT, for comparison."""
    stem: int = 0
    """Hidden width of a layer that makes a window's summary of all of it at once, a patch or the embeddings of its
    pixels. 0: its summary is the state of its last pixel, as in UPW."""


@dataclass(frozen=True)
class Data:
    """Which data set, and how its documents become rows."""

    path: str
    """A data set made by `pixtok data build`."""
    mix: tuple[str, ...] = ()
    """Further data sets, mixed with it: each row comes from one of them."""
    weights: tuple[float, ...] = ()
    """Rows from `path` and from each of `mix`, in proportion; none: as many as they have."""
    image_size: int | None = None
    """Bring images down to this long side, in pixels; None: as they are in the data set."""
    slots: int = 256
    """Slots S of a row: words and windows."""
    windows: int = 64
    """Window slots M of a row."""
    threads: int = 2
    """Threads that read ahead, one batch each."""
    workers: int = 0
    """Processes that read ahead; 0: none, only the threads."""
    max_bad: float = 0.01
    """Stop when more than this share of the documents cannot be decoded."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All its data sets."""
        return (self.path, *self.mix)


@dataclass(frozen=True)
class Train:
    """How the model is trained."""

    steps: int
    """Number of optimizer steps."""
    batch_size: int
    """Rows B of a global batch."""
    learning_rate: float = 3e-4
    """Peak learning rate.  With `model.transfer`, of a matrix with 128 inputs and of norms."""
    word_rate: float = 1.0
    """Of the table of words, in learning rates; for `model.transfer`."""
    pixel_rate: float = 1.0
    """Of the tables of pixels, in learning rates; for `model.transfer`."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    final_rate: float = 0.1
    """The cosine ends at this share of the peak learning rate."""
    weight_decay: float = 0.1
    """AdamW's, on matrices only: not on norms and embeddings."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""
    microbatches: int = 1
    """Accumulate the gradient over this many parts of a batch."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations; weights, optimizer and loss are float32."""
    remat: Remat = "block"
    """What of each block is computed again in the backward pass instead of being kept. `attention`: that, with its
    projections, and all that lies between products of matrices. `block`: everything."""
    seed: int = 0
    """Of the initial weights and of the order of the data."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 200
    """Steps between evaluations on the validation split; there is one before the first step and one at the end."""
    eval_batches: int = 8
    """Batches of such an evaluation."""


@dataclass(frozen=True)
class Checkpoint:
    """When the state is saved."""

    every: int = 500
    """Steps between checkpoints; there is always one at the end."""
    keep: int = 3
    """Keep the latest so many."""
    keep_every: int | None = None
    """Keep those of every so many steps for good; None: the latest alone."""


@dataclass(frozen=True)
class Mesh:
    """Devices along each mesh axis; −1: all that are left."""

    data: int = -1
    """Copies of the model, each with its share of the batch."""
    fsdp: int = 1
    """Like data, with the weights split as well."""
    window: int = 1
    """Windows of a row side by side."""
    tensor: int = 1
    """Heads, hidden widths and vocabulary split."""
    dcn_data: int = 1
    """Like data, between slices of TPUs that only the data centre's network connects: their number."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which a run ends with exit code 4 instead of hanging."""

    start: float = 900
    """Until all processes are there, and have looked at data and settings."""
    restore: float = 3600
    """For the initial state: made, or read from a checkpoint."""
    compile: float = 3600
    """For the first step, and for each evaluation."""
    step: float = 1800
    """For a step, and for the data of one."""
    save: float = 3600
    """For a checkpoint to be written."""
    peer: float = 120
    """For a process that is not heard of by the others."""


@dataclass(frozen=True)
class Profile:
    """Which steps are recorded, for xprof, in RUN/profile."""

    start: int = 3
    """The first of them; the first two of a start compile, and wait for data."""
    steps: int = 0
    """Their number."""


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on."""

    name: str
    """Runs go to runs/NAME unless --run_dir says otherwise."""
    model: Model
    data: Data
    train: Train
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    mesh: Mesh = field(default_factory=Mesh)
    deadline: Deadlines = field(default_factory=Deadlines)
    profile: Profile = field(default_factory=Profile)


UPW = Model(
    encoder=Stream(width=768, layers=5, heads=12, kv_heads=6),
    trunk=Stream(width=768, layers=12, heads=12, kv_heads=6),
    decoder=Stream(width=768, layers=0, heads=12, kv_heads=6),
    objective="reference",
    vocab_size=6,
    fold_factor=16,
    window=16,
    variant="upw",
)


def _require(holds: bool, name: str, wanted: str, got: Any) -> None:
    if not holds:
        raise InputError(f"{name} must be {wanted}; got {got}")


def family(width: int, *, window: int = 16, vocab_size: int = 262) -> Model:
    """Pixtok's own models, by one dial: the width of the trunk, a multiple of 64.  Raises InputError.

    Depth is 12 at 768 and grows with the power 0.6 of width: 4 at 128, 33 at 4096.  Heads of the trunk are 64 wide, two
    for each key/value head where they are even.  Encoder and decoder have a third of the depth, at least 2, heads of
    32, and the width at which one of them costs about what the trunk does: W·l·e² ≈ L·E², W = `window`².
    """
    _require(width >= 64 and width % 64 == 0, "the width of a family's trunk", "a multiple of 64", width)
    layers = round(12 * (width / 768) ** 0.6)
    heads = width // 64
    pixel_layers = max(2, round(layers / 3))
    pixel_heads = max(1, round(width / window * (layers / pixel_layers) ** 0.5 / 32))
    pixels = Stream(32 * pixel_heads, pixel_layers, pixel_heads, _kv_heads(pixel_heads))
    trunk = Stream(width, layers, heads, _kv_heads(heads))
    return Model(pixels, trunk, pixels, vocab_size=vocab_size, window=window, transfer=True)


def _kv_heads(heads: int) -> int:
    return heads // 2 if heads % 2 == 0 else 1


def family_train(width: int, steps: int) -> Train:
    """How a model of the family is trained: 256 rows at a width of 768, in proportion to width; one learning rate."""
    return Train(steps, max(8, round(width / 24) * 8), learning_rate=FAMILY_RATE, warmup_steps=steps // 50)


FAMILY = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
FAMILY_RATE = 2.0**-8
"""The best at trunks 64, 128 and 256 wide, and 2 and 8 deep (`experiments/transfer.py`)."""

PRESETS = {
    "upw-image": UPW,
    "upw-mixed": dataclasses.replace(UPW, vocab_size=32_000),
    "tiny": Model(
        encoder=Stream(width=48, layers=2, heads=2, kv_heads=1),
        trunk=Stream(width=128, layers=4, heads=4, kv_heads=2),
        decoder=Stream(width=48, layers=2, heads=2, kv_heads=1),
        fold_factor=32,
        window=8,
    ),
    **{f"family-{width}": family(width) for width in FAMILY},
}
"""Models by name: UPW's two (arXiv 2605.14028), one that a laptop trains in minutes, and pixtok's own family."""


def check_weights(weights: Sequence[float], sources: int) -> None:
    """Raises InputError when they are not the weights of a mixture of so many data sets."""
    _require(
        len(weights) == sources and all(0 < weight < math.inf for weight in weights),
        "data.weights",
        f"a positive and finite number for each data set, {sources} in all",
        ", ".join(map(str, weights)),
    )


def validate(experiment: Experiment) -> None:
    """Raises InputError, with the setting to change, when an experiment cannot be run."""
    model, data, train = experiment.model, experiment.data, experiment.train
    factor = model.fold_factor
    _require(factor in fold.FACTORS, "model.fold_factor", "a power of two from 1 to 256", factor)
    _require(model.vocab_size >= 6, "model.vocab_size", "at least 6, the special tokens", model.vocab_size)
    _require(model.window >= 1, "model.window", "at least 1", model.window)
    _require(0 <= model.halo <= model.window, "model.halo", f"from 0 to model.window = {model.window}", model.halo)
    _require(model.stem >= 0, "model.stem", "at least 0", model.stem)
    _require(model.stem == 0 or model.variant != "upw", "model.stem", "0 for model.variant = upw", model.stem)
    patches = model.variant == "patches"
    if patches:
        _require(model.stem >= 1, "model.stem", "at least 1 for patches", model.stem)
        _require(model.objective == "words", "model.objective", "words for model.variant = patches", model.objective)
    # With a stem, only what predicts pixels has a use for their states.
    blocks = model.stem == 0 or model.objective == "full"
    layers = model.encoder.layers
    _require(
        blocks or layers == 0, "model.encoder.layers", f"0 with a stem and model.objective = {model.objective}", layers
    )
    for name in ("encoder", "trunk", "decoder"):
        stream: Stream = getattr(model, name)
        for size in ("width", "layers", "heads", "kv_heads"):
            least = 0 if size == "layers" and (name == "decoder" or (name == "encoder" and not blocks)) else 1
            _require(getattr(stream, size) >= least, f"model.{name}.{size}", f"at least {least}", getattr(stream, size))
        width, heads, kv_heads = stream.width, stream.heads, stream.kv_heads
        _require(width % heads == 0, f"model.{name}.width", f"a multiple of model.{name}.heads = {heads}", width)
        _require(
            heads % kv_heads == 0,
            f"model.{name}.heads",
            f"a multiple of model.{name}.kv_heads = {kv_heads}",
            heads,
        )
        axial = name == "decoder" or (name == "encoder" and model.variant == "pixtok")
        turns = 4 if axial else 2
        _require(
            stream.head_width % turns == 0,
            f"model.{name}.width / heads",
            f"a multiple of {turns}, for the rotary positions",
            stream.head_width,
        )
    for name, value in (
        ("data.slots", data.slots - 1),  # a row must hold at least <s> </s>
        ("data.windows", data.windows),
        ("data.threads", data.threads),
        ("train.steps", train.steps),
        ("train.batch_size", train.batch_size),
        ("train.microbatches", train.microbatches),
        ("train.log_every", train.log_every),
        ("train.eval_every", train.eval_every),
        ("train.eval_batches", train.eval_batches),
        ("checkpoint.every", experiment.checkpoint.every),
        ("checkpoint.keep", experiment.checkpoint.keep),
        ("profile.start", experiment.profile.start),
    ):
        _require(
            value >= 1,
            name,
            "at least 2" if name == "data.slots" else "at least 1",
            value + (name == "data.slots"),
        )
    _require(data.image_size is None or data.image_size >= 1, "data.image_size", "at least 1", data.image_size)
    _require(data.workers >= 0, "data.workers", "at least 0", data.workers)
    _require(len(set(data.paths)) == len(data.paths), "data.mix", "other data sets, each once", ", ".join(data.mix))
    _require(bool(data.mix) or not data.weights, "data.weights", "left out without data.mix", data.weights)
    if data.weights:
        check_weights(data.weights, len(data.paths))
    _require(0 <= train.seed < 2**32, "train.seed", f"from 0 to {2**32 - 1}", train.seed)
    _require(
        0 <= train.warmup_steps < train.steps,
        "train.warmup_steps",
        f"from 0 to {train.steps - 1}, less than train.steps",
        train.warmup_steps,
    )
    _require(
        experiment.checkpoint.keep_every is None or experiment.checkpoint.keep_every >= 1,
        "checkpoint.keep_every",
        "at least 1",
        experiment.checkpoint.keep_every,
    )
    _require(
        (experiment.checkpoint.keep_every or 0) % experiment.checkpoint.every == 0,
        "checkpoint.keep_every",
        f"a multiple of checkpoint.every = {experiment.checkpoint.every}",
        experiment.checkpoint.keep_every,
    )
    most = train.steps + 1 - experiment.profile.start
    _require(
        experiment.profile.steps == 0 or 0 < experiment.profile.steps <= most,
        "profile.steps",
        f"from 0 to {max(0, most)}, for train.steps = {train.steps} and profile.start = {experiment.profile.start}",
        experiment.profile.steps,
    )
    for name, value in flatten(experiment.deadline, "deadline."):
        _require(1 <= value < math.inf, name, "at least 1 s", value)
    for name in ("learning_rate", "word_rate", "pixel_rate", "clip_norm"):
        value = getattr(train, name)
        _require(0 < value < math.inf, f"train.{name}", "positive and finite", value)
    _require(train.weight_decay >= 0, "train.weight_decay", "at least 0", train.weight_decay)
    for name, share in (("train.final_rate", train.final_rate), ("data.max_bad", data.max_bad)):
        _require(0 <= share <= 1, name, "a share from 0 to 1", share)
    _require(
        model.transfer or train.word_rate == train.pixel_rate == 1,
        "model.transfer",
        "on for train.word_rate and train.pixel_rate",
        "off",
    )
    _require(
        train.batch_size % train.microbatches == 0,
        "train.batch_size",
        f"a multiple of train.microbatches = {train.microbatches}",
        train.batch_size,
    )


_TAKEN = {"name", "run_dir", "init", "json", "topology", "search", "minutes", "help"}
"""Options of the verbs that take an experiment."""


class File:
    """An experiment file: Python that defines `config() -> Experiment`.

    Parameters of `config`, which all have defaults, are options of the command line.
    """

    def __init__(self, path: str | Path) -> None:
        """Runs the file.  Raises InputError when there is none, or when it fails."""
        self._path = Path(path)
        spec = importlib.util.spec_from_file_location(f"pixtok_experiment_{self._path.stem}", self._path)
        if not self._path.is_file() or spec is None or spec.loader is None:
            raise InputError(
                f"no experiment at {path}: give a Python file that defines config(), like experiments/demo.py"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        self._call(spec.loader.exec_module, module)
        made = getattr(module, "config", None)
        if not callable(made):
            raise InputError(f"{path} must define `def config() -> pixtok.config.Experiment`")
        self._config: Callable[..., Any] = made
        self.options: dict[str, Any] = {}
        """Names and defaults of the parameters of `config`."""
        for name, parameter in inspect.signature(self._config).parameters.items():
            if type(parameter.default) not in (str, int, float):
                raise InputError(f"{path}: parameter {name} of config must have a str, an int or a float as default")
            if name in _TAKEN:
                raise InputError(f"{path}: parameter {name} of config is an option of pixtok: call it something else")
            self.options[name] = parameter.default

    def make(self, **options: Any) -> Experiment:
        """The experiment.  Raises InputError when `config` fails."""
        made = self._call(self._config, **options)
        if not isinstance(made, Experiment):
            raise InputError(f"{self._path} must define `def config() -> pixtok.config.Experiment`")
        return made

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except InputError:
            raise
        except Exception as error:  # whatever is wrong with the file of the user
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if frame.filename == str(self._path)]
            line = error.lineno if isinstance(error, SyntaxError) else own[-1].lineno if own else 0
            message = error.msg if isinstance(error, SyntaxError) else error
            raise InputError(f"{self._path}:{line}: {type(error).__name__}: {message}") from error


def load(path: str | Path, **options: Any) -> Experiment:
    """The experiment of a file.  Raises InputError when there is none, or when it fails."""
    return File(path).make(**options)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all settings."""
    for item in dataclasses.fields(value):
        inner = getattr(value, item.name)
        if dataclasses.is_dataclass(inner):
            yield from flatten(inner, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, inner


def from_json(cls: Any, content: dict[str, Any]) -> Any:
    """The inverse of `dataclasses.asdict`, or of JSON.  Raises InputError when it was written under other settings.

    Settings that came later than it have their defaults, which do what was done before there was a choice.
    """
    types = typing.get_type_hints(cls)
    later = {
        item.name
        for item in dataclasses.fields(cls)
        if (item.default, item.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
    }
    if odd := (set(content) ^ set(types)) - (later - set(content)):
        raise InputError(
            f"{cls.__name__} was written by another version of pixtok: it differs in {', '.join(sorted(odd))}"
        )

    def restored(name: str, value: Any) -> Any:
        if dataclasses.is_dataclass(types[name]):
            return from_json(types[name], value)
        return tuple(value) if isinstance(value, list) else value

    return cls(**{name: restored(name, value) for name, value in content.items()})
