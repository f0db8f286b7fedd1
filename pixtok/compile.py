"""The training step, compiled for hardware that is not here: what it takes, and what it would cost there.

Nothing is run and no data set is read.  The compilers are the real ones: libtpu's for TPUs, XLA's and ptxas for H100s.
Times are a roofline: what the program computes, moves to and from memory and sends to other devices, each at the chip's
full rate (`hardware`), as if perfectly overlapped.  No run is faster; all are slower.
"""

import contextlib
import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """From `CHIP:TOPOLOGY`, `SLICES*CHIP:TOPOLOGY`, `h100:GPUS`, `h100:NODESxGPUS` or `cpu`, the devices here.

    Raises InputError for what there is not, and when a compiler is not installed.
    """
    form = _FORM.fullmatch(name)
    slices, chip, shape = form.groups() if form else (None, "", None)
    if form is None or chip not in (*CHIPS, "cpu") or (shape is None) != (chip == "cpu"):
        raise InputError(f"--topology must be one of the form {EXAMPLES}, or cpu; got {name}")
    if not os.environ.get("JAX_PLATFORMS"):  # absent devices need no backend, and to look for one may take a TPU
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


# jax takes this share of a GPU's memory at its start (docs.jax.dev, "GPU memory allocation").  XLA compiles all sizes.
_GPU_SHARE = 0.75
_REMATS: tuple[config.Remat, ...] = ("block", "attention", "none")
"""What takes least memory first."""
_EXCEEDS = re.compile(r"(?:Used ([\d.]+[KMGTP]?) of|\(([\d.]+[KMGTP]?)\) exceeds available HBM \()\s*([\d.]+[KMGTP]?)")


def _size(text: str) -> float:
    units = {letter: 1024**power for power, letter in enumerate("KMGTP", start=1)}
    return float(text.rstrip("KMGTP")) * units.get(text[-1], 1)


def _available(device: Any) -> float:
    """What the compiler for a TPU lets a program have: it says so when it refuses one."""
    huge = jax.ShapeDtypeStruct((2**24, 2**24), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        with _quiet():
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
    """Loops whose number of turns is data (the library's attention, over slots that are seen); they count once."""
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
        leaf.size
        * leaf.dtype.itemsize
        / ways
        / (windows if name.startswith(("window", "pixel", "shape", "place")) else 1)
        for name, leaf in zip(rows._fields, rows, strict=True)
    )
    memory = {
        "parameters": _share(program.abstract.params),
        "optimizer": _share(program.abstract.optimizer),
        "batch": batch,
    }
    fits, verdict, counted, sent, analysis = True, "fits", None, {}, {}
    try:
        with _quiet(), contextlib.nullcontext() if where.name == "cpu" else absent.uncached():
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


def _with(experiment: Experiment, mesh: config.Mesh | None = None, **train: Any) -> Experiment:
    """With another mesh and other settings of training."""
    return dataclasses.replace(
        experiment, mesh=mesh or experiment.mesh, train=dataclasses.replace(experiment.train, **train)
    )


def _fsdp(experiment: Experiment, devices: int) -> int:
    """The most ways in which weights can be split: it divides the devices of a slice, and all widths."""
    model = experiment.model
    widths = [stream.width for stream in (model.encoder, model.trunk, model.decoder)]
    return math.gcd(devices, *widths)


def _mesh(experiment: Experiment, where: Target, fsdp: int, window: int = 1, tensor: int = 1) -> config.Mesh | None:
    """With the rest of the devices along data; None where they do not divide."""
    slices = experiment.mesh.dcn_data
    data, left = divmod(len(where.devices), slices * fsdp * window * tensor)
    if left or experiment.data.windows % window:
        return None
    return config.Mesh(data=data, fsdp=fsdp, window=window, tensor=tensor, dcn_data=slices)


def _rows_ways(mesh: config.Mesh) -> int:
    return mesh.dcn_data * mesh.data * mesh.fsdp


class Tried(NamedTuple):
    """Settings, where they were compiled for, and what came of it."""

    experiment: Experiment
    report: Report


class _Clock(NamedTuple):
    """How long a search may go on."""

    end: float

    @classmethod
    def of(cls, minutes: float) -> "_Clock":
        return cls(time.monotonic() + 60 * minutes)

    @property
    def up(self) -> bool:
        return time.monotonic() > self.end


def line(tried: Tried) -> str:
    """One attempt, in one line."""
    report = tried.report
    mesh = " ".join(f"{name} {size}" for name, size in report.mesh.items()) or "one device"
    what = f"{report.topology}, {mesh}, batch {report.batch_size} in {report.microbatches}, remat {report.remat}"
    peak = f"{report.memory['peak'] / GIB:.2f} GiB" if "peak" in report.memory else "too large"
    roof = report.roofline
    how = f", {roof['step_ms']:.1f} ms a step ({roof['bound']}), MFU {roof['mfu']:.0%}" if report.fits and roof else ""
    return f"{what}: {peak}, {'fits' if report.fits else 'does not fit'}{how}"


def _try(experiment: Experiment, where: Target, say: Say) -> Tried | None:
    """Compile; None where the experiment does not fit the mesh."""
    try:
        tried = Tried(experiment, compile_step(experiment, where))
    except InputError:
        return None
    say(line(tried))
    return tried


def _changes(experiment: Experiment, where: Target) -> Iterator[tuple[Experiment, float]]:
    """Changes that may make an experiment fit, each with the share of rows on a device that it leaves at once."""
    train = experiment.train
    shape = sharding.make_mesh(experiment.mesh, where.devices).shape
    ways = math.prod(shape[axis] for axis in BATCH)
    for remat in _REMATS[: _REMATS.index(train.remat)][::-1]:
        yield _with(experiment, remat=remat), 0.0
    rows = train.batch_size // (train.microbatches * ways)
    for more in (n for n in range(2, rows + 1) if rows % n == 0):
        yield _with(experiment, microbatches=more * train.microbatches), 1 / more
    fewer = rows // 2
    while fewer:
        yield _with(experiment, batch_size=fewer * ways * train.microbatches), fewer / rows
        fewer //= 2
    most = _fsdp(experiment, len(where.devices) // experiment.mesh.dcn_data)
    if most > shape["fsdp"] and (mesh := _mesh(experiment, where, most, shape["window"], shape["tensor"])):
        yield _with(experiment, mesh), 0.0
    fsdp = max(most, shape["fsdp"])
    for window in (1, 2, 4, 8):
        if window > 1 and (mesh := _mesh(experiment, where, shape["fsdp"], window, shape["tensor"])):
            yield _with(experiment, mesh), 0.0
    # Several at once: the batch as it is, one row of a part of it on each device, then fewer windows there.
    for window in (1, 2, 4, 8):
        mesh = _mesh(experiment, where, math.gcd(fsdp, len(where.devices) // window), window, shape["tensor"])
        if mesh and train.batch_size % _rows_ways(mesh) == 0:
            yield _with(experiment, mesh, remat="block", microbatches=train.batch_size // _rows_ways(mesh)), 0.0


def larger(name: str) -> str | None:
    """The next larger topology of the same chip."""
    form = _FORM.fullmatch(name)
    slices, chip, shape = form.groups() if form else (None, "cpu", None)
    if chip == "cpu":
        return None
    if chip == "h100":
        nodes, _, each = str(shape).rpartition("x")
        return f"h100:{2 * int(nodes or 1)}x{each}"
    known = _SLICES["v5e" if chip in ("v5e", "v6e") else "v4"]
    after = known.index(shape) + 1 if shape in known else len(known)
    return None if after == len(known) else f"{slices + '*' if slices else ''}{chip}:{known[after]}"


def smallest_change(tried: Tried, where: Target, minutes: float, say: Say) -> Tried | None:
    """The first change that fits, compiled: remat, microbatches, batch, fsdp, window, several at once, more devices.

    None where none does, or none was found in time.
    """
    clock, experiment, report = _Clock.of(minutes), tried.experiment, tried.report
    available = where.available
    assert available is not None
    state = report.memory["parameters"] + report.memory["optimizer"]
    split = math.prod(report.mesh.get(axis, 1) for axis in ("fsdp", "tensor"))
    for changed, left in _changes(experiment, where):
        if clock.up:
            return None
        ways = changed.mesh.fsdp * changed.mesh.tensor if changed.mesh != experiment.mesh else split
        # Weights and moments alone, and what halving rows can leave at best.
        least = state * split / ways + left * max(0.0, report.memory.get("peak", 0) - state)
        if least <= available and (found := _try(changed, where, say)) and found.report.fits:
            return found
    name = larger(where.name)
    while name is not None and not clock.up:
        where = target(name)
        most = _mesh(experiment, where, _fsdp(experiment, len(where.devices) // experiment.mesh.dcn_data))
        for mesh in (experiment.mesh, most):
            if mesh is None:
                continue
            try:
                shape = sharding.make_mesh(mesh, where.devices).shape
            except InputError:
                continue
            if state * split / (shape["fsdp"] * shape["tensor"]) > available:
                continue
            rows_ways = math.prod(shape[axis] for axis in BATCH)
            for parts in (experiment.train.microbatches, experiment.train.batch_size // rows_ways):
                changed = _with(experiment, mesh, remat="block", microbatches=parts) if parts > 0 else experiment
                if (found := _try(changed, where, say)) and found.report.fits:
                    return found
        name = larger(name)
    return None


def search(experiment: Experiment, where: Target, minutes: float, say: Say) -> list[Tried]:
    """Batch, remat, microbatches and mesh: what was compiled, best first (fewest estimated seconds for a row).

    Two compiles, with one and two rows on a device, give what activations take for each row; with it, and the bytes of
    weights and moments, each mesh is compiled only at the largest batch that should fit, at most eight times the
    experiment's, and at half of it where that does not.  Microbatches are tried where the network bounds the best.
    """
    if where.chip is None or where.available is None:
        raise InputError(f"--search needs a chip whose limits are known, not {where.name}")
    clock, tried = _Clock.of(minutes), list[Tried]()
    bytes_ = 12 * flops.parameters(experiment.model)  # weights and two moments in float32
    per_slice = len(where.devices) // experiment.mesh.dcn_data
    most = _fsdp(experiment, per_slice)

    def attempt(mesh: config.Mesh, rows: int, remat: config.Remat, parts: int = 1) -> Tried | None:
        changed = _with(experiment, mesh, batch_size=rows * parts * _rows_ways(mesh), remat=remat, microbatches=parts)
        found = _try(changed, where, say)
        if found:
            tried.append(found)
        return found

    meshes = [
        mesh
        for window, tensor in ((1, 1), (2, 1), (1, 2))
        for fsdp in sorted({1, math.gcd(most, 8), most}, reverse=True)
        if (mesh := _mesh(experiment, where, fsdp, window, tensor))
    ]
    for mesh in [mesh for mesh in meshes if bytes_ / (mesh.fsdp * mesh.tensor) > where.available]:
        say(f"not compiled, weights and moments alone do not fit: {flags(experiment, _with(experiment, mesh))}")
        meshes.remove(mesh)
    # Per row on a device, by remat; a constant beside.
    slope: dict[str, float] = {}
    constant = 0.0
    if meshes and (one := attempt(meshes[0], 1, "block")) and one.report.fits:
        two = attempt(meshes[0], 2, "block")
        temporaries = one.report.memory["temporaries"]
        more = two.report.memory["temporaries"] - temporaries if two and two.report.fits else temporaries
        slope["block"] = max(more, 1.0)
        constant = max(0.0, temporaries - more) + one.report.memory["code"]
    for mesh in meshes:
        for remat in _REMATS:
            if clock.up:
                say("out of time: --minutes")
                return _ranked(tried)
            if remat != "block" and remat not in slope:
                first = attempt(mesh, 1, remat)
                if not (first and first.report.fits):
                    slope[remat] = math.inf
                    continue
                slope[remat] = max(1.0, first.report.memory["temporaries"] + first.report.memory["code"] - constant)
            room = where.available - bytes_ / (mesh.fsdp * mesh.tensor) - constant
            rows = room / slope.get(remat, math.inf) * mesh.window
            rows = min(rows, 8 * experiment.train.batch_size / _rows_ways(mesh))
            rows = 2 ** int(math.log2(rows)) if rows >= 1 else 1
            while rows >= 1 and not clock.up:
                known = any(
                    _rows_ways(mesh) * rows == t.report.batch_size
                    and (mesh, remat) == (t.experiment.mesh, t.report.remat)
                    for t in tried
                )
                if known or ((found := attempt(mesh, rows, remat)) and found.report.fits):
                    break
                rows //= 2
    best = _ranked(tried)[:1]
    for parts in (2, 4):
        if best and best[0].report.fits and best[0].report.roofline["bound"] == "network" and not clock.up:
            mesh, train = best[0].experiment.mesh, best[0].experiment.train
            attempt(mesh, train.batch_size // _rows_ways(mesh), train.remat, parts)
    return _ranked(tried)


class Outcome(NamedTuple):
    """Of a call of `run`."""

    tried: list[Tried]
    """What was compiled, best first."""
    change: Tried | None
    """Where that does not fit: the smallest change with which it does, if one was found."""
    where: str

    @property
    def best(self) -> Tried:
        """The first."""
        return self.tried[0]

    def change_flags(self, before: Experiment) -> str | None:
        """As options after an experiment file's own settings."""
        if self.change is None:
            return None
        name = self.change.report.topology
        return flags(before, self.change.experiment, None if name == self.where else name)

    def advice(self, before: Experiment) -> str:
        """One line for what does not fit."""
        report = self.best.report
        line = f"does not fit {report.topology}: {report.verdict}; "
        if self.change is None:
            return line + "no change that fits was found (--minutes gives more time)"
        peak, limit = self.change.report.memory["peak"], self.change.report.available or 0
        return line + f"with {self.change_flags(before)} it takes {peak / GIB:.2f} of {limit / GIB:.2f} GiB"

    def as_json(self, before: Experiment) -> dict[str, Any]:
        """The best report; `tried` with flags, where there are several; `change` with flags."""

        def one(item: Tried) -> dict[str, Any]:
            return {"flags": flags(before, item.experiment), **dataclasses.asdict(item.report)}

        change = self.change and {**one(self.change), "flags": self.change_flags(before)}
        several = {"tried": [one(item) for item in self.tried]} if len(self.tried) > 1 else {}
        return {**one(self.best), **several, "change": change}


def run(experiment: Experiment, where: Target, look: bool, minutes: float, say: Say) -> Outcome:
    """Compile an experiment, or search; where nothing fits, find a change with which it does.

    Raises InputError when the experiment does not fit the mesh.
    """
    tried = search(experiment, where, minutes, say) if look else []
    if not tried or not tried[0].report.fits:
        say(f"compiling for {where.name}, {len(where.devices)} devices")
        tried.insert(0, Tried(experiment, compile_step(experiment, where)))
    best = tried[0]
    change = None if best.report.fits else smallest_change(best, where, minutes, say)
    return Outcome(tried, change, where.name)


def _ranked(tried: list[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda item: item.report.seconds_per_row)


def _amount(value: float) -> str:
    return f"{value / GIB:,.3f} GiB" if value >= GIB / 100 else f"{value / 2**20:,.3f} MiB"


def _count(value: float) -> str:
    """With three digits, whatever its size."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(report: Report) -> list[tuple[str, str]]:
    """What a report says, as rows of two columns."""
    mesh = ", ".join(f"{name} {size}" for name, size in report.mesh.items()) or "one device"
    chips = (
        f" on {report.chips} chips, {report.devices // report.chips} a chip" if report.devices != report.chips else ""
    )
    rows = [
        ("topology", f"{report.topology}: {report.devices} devices{chips}"),
        ("mesh", mesh),
        ("batch", f"{report.batch_size} rows in {report.microbatches}, remat {report.remat}"),
        ("model", f"{report.parameters:,} parameters"),
    ]
    limit = report.available
    for name, value in report.memory.items():
        share = f"  {value / limit:.1%} of the {limit / GIB:.2f} GiB that a program may take" if limit else ""
        rows.append((f"a device: {name}", _amount(value) + (share if name == "peak" else "")))
    rows.append(("verdict", report.verdict))
    rows.append(("useful FLOPs of a step", f"{_count(report.flops['ours'] / 1e12)} TFLOP"))
    if "compiler" in report.flops:
        total = report.flops["compiler"] * report.devices / 1e12
        rows.append(
            ("computed, as compiled", f"{_count(total)} TFLOP on all devices, recomputation and masked pairs too")
        )
    for kind, sent in report.collectives.items():
        if sent["near"] or sent["far"]:
            far = f", {_amount(sent['far'])} to other slices or nodes" if sent["far"] else ""
            rows.append((f"a device sends, {kind}", _amount(sent["near"]) + far))
    if report.unknown_loops:
        rows.append(("loops whose length is data", f"{report.unknown_loops}, counted once"))
    if roof := report.roofline:
        times = ", ".join(f"{name} {_count(roof[f'{name}_ms'])}" for name in ("compute", "memory", "network"))
        rows.append(("at best, ms a step", f"{times}; bound by {roof['bound']}"))
        rows.append(("at best", f"{_count(roof['rows_per_s'])} rows/s, MFU {roof['mfu']:.1%}"))
    rows.append(("compiled in", f"{report.compile_s:.1f} s"))
    return rows
