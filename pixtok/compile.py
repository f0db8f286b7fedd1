"""The training step, compiled for hardware that is not here: what it takes, and what it would cost there.

Nothing is run and no data set is read.  The compilers are the real ones: libtpu's for TPUs, XLA's and ptxas for H100s.
Times are a roofline: what the program computes, moves to and from memory and sends to other devices, each at the chip's
full rate (`hardware`), as if perfectly overlapped.  No run is faster; all are slower.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import SingleDeviceSharding

from pixtok import config, flops, hlo, sharding
from pixtok.axes import BATCH
from pixtok.config import Experiment
from pixtok.errors import InputError
from pixtok.hardware import CHIPS, GIB, Chip
from pixtok.step import Program
from pixtok_kernels import topology as absent

_FORM = re.compile(r"(?:(\d+)\*)?(\w+)(?::(\d+(?:x\d+)*))?")
_SLICES = {
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16"),
}
"""Topologies of 2D and 3D tori, smallest first."""
EXAMPLES = "v4:4x4x8, v5e:16x16, v5p:8x8x8, v6e:16x16, tpu7x:4x4x4, 2*v5e:16x16, h100:8, h100:16x8"
Say = Callable[[str], None]


class Target(NamedTuple):
    """What to compile for."""

    name: str
    chip: Chip | None
    """The share of one device; None: not known."""
    chips: int
    devices: list[Any]
    options: dict[str, Any]
    """Of the compiler."""
    available: float | None
    """Bytes that a program may take on a device; None: not known."""

    def place(self, mesh: jax.sharding.Mesh) -> list[int]:
        """The slice or node of each device of a mesh, in the program's order."""
        attribute = "process_index" if self.name.startswith("h100") else "slice_index"
        return [getattr(device, attribute, 0) or 0 for device in mesh.devices.flat]


def target(name: str) -> Target:
    """From `CHIP:TOPOLOGY`, `SLICES*CHIP:TOPOLOGY`, `h100:GPUS`, `h100:NODESxGPUS` or `cpu`, the devices of this machine.

    Raises InputError for what there is not, and when a compiler is not installed.
    """
    form = _FORM.fullmatch(name)
    slices, chip, shape = form.groups() if form else (None, "", None)
    if form is None or chip not in (*CHIPS, "cpu") or (shape is None) != (chip == "cpu"):
        raise InputError(f"--topology must be one of the form {EXAMPLES}, or cpu; got {name}")
    if not jax.config.jax_platforms:  # read-only devices need no backend, and looking for one may take a TPU
        jax.config.update("jax_platforms", "cpu")
    if chip == "cpu":
        return Target(name, None, jax.device_count(), jax.devices(), {}, None)
    try:
        if chip == "h100":
            sizes = [int(n) for n in str(shape).split("x")]
            if len(sizes) > 2 or slices:
                raise InputError(f"--topology h100 takes GPUs or NODESxGPUS, like h100:8 or h100:16x8; got {name}")
            devices = absent.h100(*(sizes if len(sizes) == 2 else (1, sizes[0]))).devices
            share = float(os.environ.get("XLA_CLIENT_MEM_FRACTION", _GPU_SHARE))
            return Target(name, CHIPS[chip], len(devices), devices, absent.H100_OPTIONS, share * CHIPS[chip].hbm)
        devices = absent.tpu(chip, shape, int(slices or 1)).devices
    except ValueError as error:
        raise InputError(f"--topology {name}: {error}".splitlines()[0]) from error
    except RuntimeError as error:
        raise InputError(f"--topology {name}: {error}") from error
    known = CHIPS[chip]
    return Target(name, known.device, len(devices) // known.devices, devices, {}, _available(devices[0]))


# jax takes this share of a GPU's memory at its start (docs.jax.dev, "GPU memory allocation"); XLA compiles what is larger.
_GPU_SHARE = 0.75
_EXCEEDS = re.compile(r"(?:Used ([\d.]+[KMGTP]?) of|\(([\d.]+[KMGTP]?)\) exceeds available HBM \()\s*([\d.]+[KMGTP]?)")


def _size(text: str) -> float:
    units = {letter: 1024**power for power, letter in enumerate("KMGTP", start=1)}
    return float(text.rstrip("KMGTP")) * units.get(text[-1], 1)


def _available(device: Any) -> float:
    """What the compiler for a TPU lets a program have: it says so when it refuses one."""
    huge = jax.ShapeDtypeStruct((2**24, 2**24), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := _EXCEEDS.search(str(error)):
            return _size(found[3])
    raise RuntimeError(f"the compiler does not say how much memory {device.device_kind} has")


@dataclass(frozen=True)
class Report:
    """One compiled step.  Bytes and FLOPs are those of one device and one step, unless said otherwise."""

    topology: str
    devices: int
    chips: int
    mesh: dict[str, int]
    batch_size: int
    microbatches: int
    remat: str
    parameters: int
    """Of the model."""
    fits: bool
    verdict: str
    """What the compiler says."""
    hbm: int | None
    available: float | None
    """What of it a program may take."""
    memory: dict[str, float]
    """By kind: parameters, optimizer, batch, temporaries, code, other (padding of layouts, metrics), and peak, all in
    all.  Where the compiler refused, the first three and peak: what it would need."""
    flops: dict[str, float]
    """ours: useful ones of the whole step (`flops`), on all devices; compiler: of its products, loops multiplied out,
    and of kernels; cost_analysis: as XLA counts, elementwise operations too, a loop's body once."""
    collectives: dict[str, dict[str, float]]
    """Bytes that a device sends, by kind: near (inside a slice or node) and far."""
    roofline: dict[str, Any]
    """compute_ms, memory_ms, network_ms; step_ms, the largest of them; bound, which that is; mfu; rows_per_s."""
    unknown_loops: int
    """Loops whose trip count could not be read; they count once."""
    compile_s: float

    @property
    def seconds_per_row(self) -> float:
        """Estimated; infinite where it does not fit or nothing is known of the chip."""
        return 1 / self.roofline["rows_per_s"] if self.fits and self.roofline else math.inf


def _share(tree: Any) -> float:
    """Bytes of a tree of abstract arrays on one device."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )


def compile_step(experiment: Experiment, where: Target) -> Report:
    """Compile an experiment's training step.  Raises InputError when the experiment does not fit the mesh."""
    mesh = sharding.make_mesh(experiment.mesh, where.devices)
    program = Program(experiment, mesh)
    begin = time.perf_counter()
    lowered = program.lower_train_step()
    rows = lowered.in_avals[0][1]
    ways = math.prod(mesh.shape[axis] for axis in BATCH)
    windows = mesh.shape["window"]
    batch = sum(
        leaf.size * leaf.dtype.itemsize / ways / (windows if name.startswith(("window", "pixel", "shape", "place")) else 1)
        for name, leaf in zip(rows._fields, rows, strict=True)
    )
    memory = {
        "parameters": _share(program.abstract.params),
        "optimizer": _share(program.abstract.optimizer),
        "batch": batch,
    }
    fits, verdict, counted, sent, analysis = True, "fits", None, {}, {}
    try:
        with _quiet():
            compiled = lowered.compile(where.options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fits, verdict = False, _verdict(str(error))
        if found := _EXCEEDS.search(str(error)):
            whole = bool(found[1])  # else temporaries alone: the compiler gives up before it has laid anything out
            memory["peak"] = _size(found[1]) if whole else sum(memory.values()) + _size(found[2])
    else:
        memory |= _memory(compiled.memory_analysis(), sum(memory.values()))
        counted = hlo.Module(compiled.as_text() or "", len(where.devices)).cost()
        sent = counted.moved(where.place(mesh))
        costs: Any = compiled.cost_analysis() or {}
        analysis = {"cost_analysis": float(costs.get("flops", 0))}
        if where.available is not None and memory["peak"] > where.available:
            fits = False
            verdict = f"needs {memory['peak'] / GIB:.2f} GiB of the {where.available / GIB:.2f} that jax takes"
    ours = flops.training_step(experiment)
    done = {"compiler": counted.flops, "kernels": counted.kernel_flops} if counted else {}
    return Report(
        topology=where.name,
        devices=len(where.devices),
        chips=where.chips,
        mesh={name: size for name, size in mesh.shape.items() if size > 1},
        batch_size=experiment.train.batch_size,
        microbatches=experiment.train.microbatches,
        remat=experiment.train.remat,
        parameters=program.parameters,
        fits=fits,
        verdict=verdict,
        hbm=where.chip.hbm if where.chip else None,
        available=where.available,
        memory=memory,
        flops={"ours": float(ours), **done, **analysis},
        collectives={kind: {"near": near, "far": far} for kind, (near, far) in sent.items()},
        roofline=_roofline(where, counted, sent, experiment) if where.chip and counted else {},
        unknown_loops=counted.unknown_loops if counted else 0,
        compile_s=time.perf_counter() - begin,
    )


def _memory(analysis: Any, known: float) -> dict[str, float]:
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    parts = {
        "temporaries": float(analysis.temp_size_in_bytes),
        "code": float(code),
        "other": max(0.0, analysis.argument_size_in_bytes - known) + outputs,
    }
    return parts | {"peak": analysis.argument_size_in_bytes + outputs + analysis.temp_size_in_bytes + float(code)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what a compiler writes to the standard error of the process when it refuses a program."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _verdict(message: str) -> str:
    """The first sentence of what the compiler says, on one line."""
    return re.split(r"\.\s", message.replace("\n", " ").removeprefix("RESOURCE_EXHAUSTED: "))[0][:300].rstrip(".")


def _roofline(
    where: Target, counted: hlo.Cost, sent: dict[str, tuple[float, float]], experiment: Experiment
) -> dict[str, Any]:
    chip = where.chip
    assert chip is not None
    near, far = (sum(pair[n] for pair in sent.values()) for n in (0, 1))
    times = {
        "compute": counted.flops / chip.peak,
        "memory": counted.bytes / chip.hbm_bandwidth,
        "network": max(near / chip.links, far / chip.network),
    }
    bound = max(times, key=lambda name: times[name])
    step = times[bound]
    mfu = flops.training_step(experiment) / (step * chip.peak * len(where.devices))
    return {
        **{f"{name}_ms": 1e3 * seconds for name, seconds in times.items()},
        "step_ms": 1e3 * step,
        "bound": bound,
        "mfu": mfu,
        "rows_per_s": experiment.train.batch_size / step,
    }


def flags(before: Experiment, after: Experiment, topology: str | None = None) -> str:
    """The options that make one experiment of another, and the topology where it changes."""
    old = dict(config.flatten(before))
    changed = [f"--{name} {value}" for name, value in config.flatten(after) if old[name] != value]
    return " ".join([*([f"--topology {topology}"] if topology else []), *changed])
