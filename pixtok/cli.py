"""The command line: each verb parses and calls; everything it does can be imported."""

import importlib.metadata
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from pixtok import config, heap
from pixtok.arguments import experiment, parse, table
from pixtok.bench.settings import Settings as BenchSettings
from pixtok.data.build import Settings
from pixtok.draw import Draw
from pixtok.errors import DeadlineError, ExitCode, InputError, NotFiniteError, TooLargeError
from pixtok.files import write
from pixtok.scaling import verbs as scaling


@dataclass(frozen=True)
class _Train:
    experiment: Annotated[config.Experiment, tyro.conf.arg(name="")]
    run_dir: str | None = None
    """Where the run goes, and is resumed from; runs/NAME by default, gs://BUCKET/NAME too."""
    init: str | None = None
    """Begin a new run with the weights of this one."""


def train(args: Sequence[str]) -> ExitCode:
    """EXPERIMENT.py [--a.b VALUE …] [--run_dir DIR] [--init RUN]: train; resumes by itself"""
    found = experiment("train", train, args)
    if found is None:
        return ExitCode.DONE
    loaded, settings = found
    parsed = parse(_Train, settings, f"pixtok train {args[0]}", default=_Train(loaded))
    from pixtok import cluster
    from pixtok.files import location
    from pixtok.train import Trainer

    run_dir = parsed.run_dir or f"runs/{parsed.experiment.name}"
    command = ["pixtok", "train", *args]
    code = Trainer(parsed.experiment, run_dir, init=parsed.init, command=command).run()
    if cluster.lead():
        print(f"{run_dir}: {', '.join(sorted(path.name for path in location(run_dir).iterdir()))}")
    return code


@dataclass(frozen=True)
class _Compile:
    experiment: Annotated[config.Experiment, tyro.conf.arg(name="")]
    topology: str
    """What to compile for: v4:4x4x8, v5e:16x16, v5p:8x8x8, v6e:16x16, tpu7x:4x4x4, 2*v5e:16x16 (two slices), h100:8,
    h100:16x8 (nodes x GPUs), or cpu, the devices here."""
    search: bool = False
    """Look for the batch, remat, microbatches and mesh with the fewest estimated seconds for a row."""
    minutes: float = 30.0
    """How long to look for them, or, where the step does not fit, for a change with which it does."""
    json: bool = False
    """Print JSON instead of a table."""


def compile_(args: Sequence[str]) -> ExitCode:
    """EXPERIMENT.py --topology T [--a.b VALUE …] [--search] [--json]: the training step, for hardware not here"""
    found = experiment("compile", compile_, args)
    if found is None:
        return ExitCode.DONE
    loaded, settings = found
    parsed = parse(_Compile, settings, f"pixtok compile {args[0]}", default=_Compile(loaded, tyro.MISSING))
    if parsed.minutes <= 0:
        raise InputError(f"--minutes must be positive; got {parsed.minutes}")
    config.validate(parsed.experiment)
    from pixtok import compile as compiler

    outcome = compiler.run(
        parsed.experiment,
        compiler.target(parsed.topology),
        look=parsed.search,
        minutes=parsed.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if parsed.json:
        print(json.dumps(outcome.as_json(loaded), indent=2))
    else:
        print(table(compiler.table(outcome.best.report)))
        if parsed.search:
            print(
                "\n".join(["", *map(compiler.line, outcome.tried), "", compiler.flags(loaded, outcome.best.experiment)])
            )
    if not outcome.best.report.fits:
        raise TooLargeError(outcome.advice(loaded))
    return ExitCode.DONE


@dataclass(frozen=True)
class _Eval:
    run: Positional[str]
    """A run directory."""
    data: str | None = None
    """Another data set than the run's own."""
    split: str = "validation"
    """train, validation or test."""
    step: int | None = None
    """Another checkpoint than the latest."""


def evaluate(args: Sequence[str]) -> ExitCode:
    """RUN [--data PATH] [--split S] [--step N]: score a data set, as one JSON object"""
    parsed = parse(_Eval, args, "pixtok eval")
    from pixtok.evaluate import evaluate as score

    print(json.dumps(score(parsed.run, data=parsed.data, split=parsed.split, step=parsed.step), indent=2))
    return ExitCode.DONE


@dataclass(frozen=True)
class _Sample:
    run: Positional[str]
    """A run directory."""
    size: str | None = None
    """Height and width of images to draw, like 32x48; None: the most common size of the run's data set."""
    prompt: str = ""
    """Text before the image."""
    complete: Path | None = None
    """Draw the rest of this image, below its first --keep_rows rows of pixels."""
    keep_rows: int | None = None
    """Rows of pixels of --complete that stay."""
    edit: Path | None = None
    """Draw parts of this image anew: where --mask is light."""
    mask: Path | None = None
    """An image of the size of --edit."""
    read: Path | None = None
    """Write the text that follows this image, instead of drawing one."""
    n: int = 1
    """How many to draw, side by side."""
    out: str | None = None
    """Where the files go; RUN/samples by default."""
    step: int | None = None
    """Another checkpoint than the latest."""
    draw: Annotated[Draw, tyro.conf.arg(name="")] = field(default_factory=Draw)


def sample(args: Sequence[str]) -> ExitCode:
    """RUN [--size HxW] [--prompt TEXT | --complete IMG --keep_rows K | --edit IMG --mask IMG | --read IMG]: draw"""
    parsed = parse(_Sample, args, "pixtok sample")
    how, n = parsed.draw, parsed.n
    for name, holds in (
        ("--n must be at least 1", n >= 1),
        ("--temperature must be at least 0", how.temperature >= 0),
        (f"--seed must be from 0 to {2**32 - 1}", 0 <= how.seed < 2**32),
        ("--top_k must be at least 0", how.top_k >= 0),
        ("--top_p must be from 0 to 1", 0 <= how.top_p <= 1),
        ("--edit and --mask belong together", (parsed.edit is None) == (parsed.mask is None)),
        ("--complete and --keep_rows belong together", (parsed.complete is None) == (parsed.keep_rows is None)),
        (
            "give one of --complete, --edit, --read, and --size or --prompt",
            sum(map(bool, (parsed.complete, parsed.edit, parsed.read, parsed.size or parsed.prompt))) <= 1,
        ),
    ):
        if not holds:
            raise InputError(f"pixtok sample: {name}")
    size = None if parsed.size is None else re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", parsed.size)
    if parsed.size is not None and size is None:
        raise InputError(f"--size must be HxW, height and width in pixels, like 32x48; got {parsed.size}")
    from pixtok.sample import Sampler

    sampler = Sampler(parsed.run, step=parsed.step, out=parsed.out)
    if parsed.complete is not None and parsed.keep_rows is not None:
        files = sampler.complete(parsed.complete, parsed.keep_rows, n, how)
    elif parsed.edit is not None and parsed.mask is not None:
        files = sampler.edit(parsed.edit, parsed.mask, n, how)
    elif parsed.read is not None:
        files = sampler.read(parsed.read, n, how)
    else:
        files = sampler.new(None if size is None else (int(size[1]), int(size[2])), n, how, parsed.prompt)
    print("\n".join(map(str, files)))
    return ExitCode.DONE


@dataclass(frozen=True)
class _Code:
    run: Positional[str]
    """A run directory; its weights are the key to the file."""
    source: Positional[Path]
    """What to read."""
    out: Positional[Path]
    """What to write."""
    step: int | None = None
    """Another checkpoint than the latest."""


def compress(args: Sequence[str]) -> ExitCode:
    """RUN IMAGE OUT: code the pixels of an image without loss, with the model's probabilities"""
    parsed = parse(_Code, args, "pixtok compress")
    from pixtok.codec import compress_file

    print(compress_file(parsed.run, parsed.source, parsed.out, parsed.step))
    return ExitCode.DONE


def decompress(args: Sequence[str]) -> ExitCode:
    """RUN IN OUT.png: the image of a file that `pixtok compress` made"""
    parsed = parse(_Code, args, "pixtok decompress")
    from pixtok.codec import decompress_file

    print(decompress_file(parsed.run, parsed.source, parsed.out, parsed.step))
    return ExitCode.DONE


@dataclass(frozen=True)
class _Build:
    source: Positional[str]
    """A folder of images, a tar of image/.txt/.json triples, a folder of mixed text files, the name of a TFDS
    data set, or `glyphs`."""
    out: Positional[Path]
    """Where the data set goes."""
    settings: Annotated[Settings, tyro.conf.arg(name="")]


def data_build(args: Sequence[str]) -> ExitCode:
    """SOURCE OUT: make a data set from images, documents, TFDS, or `glyphs`"""
    parsed = parse(_Build, args, "pixtok data build")
    from pixtok.data.build import build

    manifest = build(parsed.source, parsed.out, parsed.settings)
    counts = ", ".join(f"{count} {split}" for split, count in manifest.documents.items())
    print(f"{parsed.out}: {counts}; {manifest.images} images, {manifest.text_tokens} text tokens, {manifest.bad} bad")
    return ExitCode.DONE


@dataclass(frozen=True)
class _Info:
    path: Positional[Path]
    """A data set."""
    picture: Path | None = None
    """Draw some of its documents, as they are and colour-folded, into this PNG."""
    fold_factor: int = 16
    """Fold factor of the picture."""


def data_info(args: Sequence[str]) -> ExitCode:
    """PATH [--picture PNG]: what a data set holds"""
    parsed = parse(_Info, args, "pixtok data info")
    import numpy as np

    from pixtok.data import images, picture
    from pixtok.data.index import Dataset

    dataset = Dataset(parsed.path)
    if parsed.picture is not None:
        if parsed.picture.suffix.lower() != ".png":
            raise InputError(f"--picture must be a .png; got {parsed.picture}")
        write(parsed.picture, images.encode(np.asarray(picture.sheet(dataset, parsed.fold_factor))))
    print(table(picture.facts(dataset)))
    if parsed.picture is not None:
        print(parsed.picture)
    return ExitCode.DONE


@dataclass(frozen=True)
class _Vocab:
    source: Positional[str]
    """Any source of `pixtok data build`."""
    out: Positional[Path]
    """Where the tokenizer.json goes."""
    size: int = 4096
    """Number of ids, the six special ones included."""


def data_vocab(args: Sequence[str]) -> ExitCode:
    """SOURCE OUT.json [--size N]: train a byte-level BPE vocabulary on the text of a source"""
    parsed = parse(_Vocab, args, "pixtok data vocab")
    from pixtok.data.build import train_vocabulary

    size = train_vocabulary(parsed.source, parsed.out, parsed.size)
    print(f"{parsed.out}: {size} ids")
    return ExitCode.DONE


@dataclass(frozen=True)
class _ConvertUpw:
    checkpoint: Positional[Path]
    """A .pth file whose `model` holds the weights; nothing in it is run."""
    out: Positional[str]
    """Where the run goes."""
    heads: int = 12
    """Query heads."""
    kv_heads: int = 6
    """Key/value heads."""
    fold_factor: int = 16
    """Fold factor of its colours."""
    image_size: int = 224
    """Long side of the images that it was trained on."""
    window: int = 16
    """Side of a window, in pixels."""
    vocabulary: str = "none"
    """`none`, `bytes`, or the tokenizer.json that it was trained with."""


def convert_upw(args: Sequence[str]) -> ExitCode:
    """CKPT.pth OUT [--vocabulary TOKENIZER.json]: a run with the weights of a checkpoint of UPW's PyTorch code"""
    parsed = parse(_ConvertUpw, args, "pixtok convert upw")
    from pixtok.convert import upw

    settings = {name: value for name, value in vars(parsed).items() if name not in ("checkpoint", "out")}
    print(upw(parsed.checkpoint, parsed.out, **settings, command=["pixtok", "convert", "upw", *args]))
    return ExitCode.DONE


@dataclass(frozen=True)
class _ConvertSafetensors:
    run: Positional[str]
    """A run directory."""
    out: Positional[Path]
    """The file to write."""
    step: int | None = None
    """Another checkpoint than the latest."""


def convert_safetensors(args: Sequence[str]) -> ExitCode:
    """RUN OUT.safetensors [--step N]: the weights of a run as a file that other systems read"""
    parsed = parse(_ConvertSafetensors, args, "pixtok convert safetensors")
    from pixtok.convert import safetensors

    print(safetensors(parsed.run, parsed.out, parsed.step))
    return ExitCode.DONE


@dataclass(frozen=True)
class _BenchData:
    path: str | None = None
    """Measure this data set too."""
    seconds: float = 5.0
    """Time for each row of the table."""
    json: bool = False
    """Print JSON instead of a table."""


def bench_data(args: Sequence[str]) -> ExitCode:
    """[--path DATA] [--json]: documents/s and pixels/s of the loader on one core"""
    parsed = parse(_BenchData, args, "pixtok bench data")
    from pixtok.bench import data

    if parsed.seconds <= 0:
        raise InputError(f"--seconds must be positive; got {parsed.seconds}")
    _print(data.rates(parsed.path, parsed.seconds), parsed.json)
    return ExitCode.DONE


@dataclass(frozen=True)
class _BenchMemory:
    json: bool = False
    """Print JSON instead of a table."""


def bench_memory(args: Sequence[str]) -> ExitCode:
    """[--json]: memory of the full likelihood against that of the states alone, for several fold factors"""
    parsed = parse(_BenchMemory, args, "pixtok bench memory")
    from pixtok.bench import memory

    _print(memory.table(), parsed.json)
    return ExitCode.DONE


@dataclass(frozen=True)
class _BenchTrain:
    presets: Positional[tuple[str, ...]]
    """Models by name: upw-image, family-256, …"""
    settings: Annotated[BenchSettings, tyro.conf.arg(name="")] = field(default_factory=BenchSettings)
    json: bool = False
    """Print JSON instead of a table."""


def bench_train(args: Sequence[str]) -> ExitCode:
    """PRESET… [--rows B] [--split] [--peer eager] [--json]: time, MFU and memory of the training step"""
    parsed = parse(_BenchTrain, args, "pixtok bench train")
    for name in ("rows", "size", "steps"):
        if getattr(parsed.settings, name) < 1:
            raise InputError(f"--{name} must be at least 1; got {getattr(parsed.settings, name)}")
    from pixtok.bench import train

    found = [train.measure(name, parsed.settings) for name in parsed.presets]
    print(json.dumps(found, indent=2) if parsed.json else table(train.table(found)))
    return ExitCode.DONE


@dataclass(frozen=True)
class _ModelInfo:
    experiment: Annotated[config.Experiment, tyro.conf.arg(name="")]
    json: bool = False
    """Print JSON instead of a table."""


def info(args: Sequence[str]) -> ExitCode:
    """EXPERIMENT.py [--a.b VALUE …] [--json]: parameters and FLOPs of its model, by group"""
    found = experiment("info", info, args)
    if found is None:
        return ExitCode.DONE
    loaded, settings = found
    parsed = parse(_ModelInfo, settings, f"pixtok info {args[0]}", default=_ModelInfo(loaded))
    config.validate(parsed.experiment)
    from pixtok import flops

    if parsed.json:
        print(json.dumps(flops.facts(parsed.experiment), indent=2))
    else:
        print(f"{table(flops.table(parsed.experiment))}\n\n{flops.remarks(parsed.experiment)}")
    return ExitCode.DONE


def _print(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    cells = ([f"{v:,.0f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)
    print(json.dumps(rows, indent=2) if as_json else table([list(rows[0]), *cells]))


VERBS: dict[str, Callable[[Sequence[str]], ExitCode]] = {
    "train": train,
    "info": info,
    "compile": compile_,
    "eval": evaluate,
    "sample": sample,
    "compress": compress,
    "decompress": decompress,
    "data build": data_build,
    "data info": data_info,
    "data vocab": data_vocab,
    "plan": scaling.plan,
    "launch": scaling.launch,
    "fit": scaling.fit,
    "report": scaling.report,
    "convert upw": convert_upw,
    "convert safetensors": convert_safetensors,
    "bench data": bench_data,
    "bench memory": bench_memory,
    "bench train": bench_train,
}


def _usage(group: str = "") -> str:
    lines = [f"  pixtok {verb} {function.__doc__}" for verb, function in VERBS.items() if verb.startswith(group)]
    return "\n".join(["usage: pixtok VERB …  (`pixtok VERB --help` lists its options)", "", *lines])


def run(args: Sequence[str]) -> ExitCode:
    """Run one verb.  Raises InputError, NotFiniteError."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return ExitCode.DONE
    if args[0] == "--version":
        print(importlib.metadata.version("pixtok"))
        return ExitCode.DONE
    if len(args) > 1 and args[1] in ("-h", "--help", "help") and any(verb.startswith(f"{args[0]} ") for verb in VERBS):
        print(_usage(args[0]))
        return ExitCode.DONE
    if args[0] in {verb.split()[0] for verb in VERBS if " " in verb} and len(args) == 1:
        raise InputError(f"pixtok {args[0]}: {', '.join(verb for verb in VERBS if verb.startswith(args[0] + ' '))}?")
    for words in (2, 1):
        if verb := VERBS.get(" ".join(args[:words])):
            return verb(args[words:])
    raise InputError(f"pixtok has no verb `{' '.join(args[:2])}`; it has {', '.join(VERBS)}")


def main() -> None:
    """Entry point of the command `pixtok`."""
    heap.keep()
    import absl.logging

    # Libraries log their every step as information; what users need, pixtok says itself.
    absl.logging.set_verbosity(absl.logging.WARNING)
    code, reason = ExitCode.BUG, ""
    try:
        code = run(sys.argv[1:])
    except InputError as error:
        code, reason = ExitCode.BAD_INPUT, str(error)
    except TooLargeError as error:
        code, reason = ExitCode.TOO_LARGE, str(error)
    except NotFiniteError as error:
        code, reason = ExitCode.NOT_FINITE, str(error)
    except DeadlineError as error:
        code, reason = error.code, str(error)
    except KeyboardInterrupt:
        code, reason = ExitCode.INTERRUPTED, "interrupted"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    cluster = sys.modules.get("pixtok.cluster")  # else nothing was begun that others might share
    who = f" process {cluster.index()} of {cluster.count()}:" if cluster and cluster.count() > 1 else ""
    if reason and code != ExitCode.BUG:
        print(reason if reason.startswith("pixtok ") else f"pixtok:{who} {reason}", file=sys.stderr)
    if cluster:
        cluster.leave(code, reason)
    sys.exit(int(code))
