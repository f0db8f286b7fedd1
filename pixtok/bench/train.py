"""The training step of presets on this machine, and that of UPW in PyTorch beside it."""

import multiprocessing
import os
import resource
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pixtok import document, flops, sharding
from pixtok.bench import trace
from pixtok.bench.settings import Settings
from pixtok.config import PRESETS, Data, Experiment, Mesh, Model, Train
from pixtok.document import Document, Rows
from pixtok.errors import InputError
from pixtok.hardware import peak
from pixtok.step import Program
from pixtok.words import NoWords

_SMALLER = "take fewer --rows, or a smaller --size"


def experiment(model: Model, settings: Settings) -> Experiment:
    """Rows that hold one square image each, and nothing else."""
    windows = (-(-settings.size // model.window)) ** 2
    dtype = settings.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    train = Train(1000, settings.rows, dtype=dtype, remat=settings.remat)
    return Experiment("bench", model, Data("none", slots=windows + 4, windows=windows), train)


def batch(made: Experiment, images: np.ndarray) -> Rows:
    """Images (N, height, width, 3) in the rows of a batch, as many in each: without text, and without a data set."""
    model, data, count = made.model, made.data, made.train.batch_size

    def row(images: np.ndarray) -> Rows:
        slots = [
            document.tokenize(
                Document("", (image,)),
                NoWords(),
                vocab_size=model.vocab_size,
                fold_factor=model.fold_factor,
                side=model.window,
            )
            for image in images
        ]
        return document.pack(slots, document.empty_row(data.slots, data.windows, model.window))

    return jax.tree.map(lambda *arrays: np.stack(arrays), *(row(part) for part in np.split(images, count)))


def images(made: Experiment, size: int) -> Rows:
    """A batch of images of noise."""
    rng = np.random.default_rng(0)
    return batch(made, rng.integers(256, size=(made.train.batch_size, size, size, 3), dtype=np.uint8))


class _Side(NamedTuple):
    """One program in a process of its own."""

    step: Callable[[], None]
    """Runs one step to its end."""
    facts: Callable[[], dict[str, Any]]
    """What else is to be told, after the last step."""


def _ours(model: Model, settings: Settings) -> _Side:
    # PyTorch wants some of the memory too, and does not round what it multiplies in float32.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    jax.config.update("jax_default_matmul_precision", "highest" if settings.dtype == "float32" else None)
    made = experiment(model, settings)
    program = Program(made, sharding.make_mesh(Mesh(), jax.devices()[:1]))
    rows = images(made, settings.size)
    begin = time.perf_counter()
    compiled = program.lower_train_step().compile()
    compile_s = time.perf_counter() - begin
    state = program.init()
    control = program.control()

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, program.put(rows), control)
        jax.block_until_ready(metrics)

    def facts() -> dict[str, Any]:
        stats = jax.devices()[0].memory_stats() or {}
        found = {
            "device": jax.devices()[0].device_kind,
            "dtype": made.train.dtype,
            "remat": made.train.remat,
            "parameters": program.parameters,
            "compile_s": compile_s,
            "TFLOP": 3 * float(flops.of(rows, model)) / 1e12,
            "again": flops.again(made),
            "peak": peak(jax.devices()[0].device_kind),
            "bytes": stats.get("peak_bytes_in_use", _resident()),
        }
        if settings.split:
            spent = trace.seconds(compiled, step, settings.keep)
            whole = sum(spent.values())
            found["split"] = {name: spent.get(name, 0.0) / whole for name in (*trace.GROUPS, trace.REST) if whole}
        return found

    return _Side(step, facts)


def _theirs(model: Model, settings: Settings) -> _Side:
    """UPW's step in PyTorch: gradient, clipping, AdamW."""
    from pixtok.extras import extra
    from pixtok.peer import peer

    torch = extra("torch", "torch")
    made = experiment(model, settings)
    on_gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    torch.manual_seed(0)
    net = peer(model, made.data.slots, made.data.windows).to("cuda" if on_gpu else "cpu")
    if settings.peer == "compiled":
        net.compile()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    batch = net.batch(images(made, settings.size))
    half = torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=made.train.dtype == "bfloat16")

    def step() -> None:
        with half:
            loss = net(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        if on_gpu:
            torch.cuda.synchronize()

    def facts() -> dict[str, Any]:
        return {"bytes": torch.cuda.max_memory_allocated() if on_gpu else _resident()}

    return _Side(step, facts)


def _resident() -> int:
    """The most bytes that this process has held in memory so far."""
    try:  # of a process that was forked, rusage would tell the most of its parent
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _serve(pipe: Any, make: Callable[[Model, Settings], _Side], model: Model, settings: Settings) -> None:
    """Steps when told to, in a process of its own: so that each has its own memory."""
    try:
        side = make(model, settings)
        side.step()
        pipe.send(None)
        while pipe.recv() == "step":
            begin = time.perf_counter()
            side.step()
            pipe.send(time.perf_counter() - begin)
        pipe.send(side.facts())
    except InputError as error:
        pipe.send(error)
    except Exception as error:
        lack = "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        pipe.send(InputError(f"{first}: {_SMALLER}") if lack else RuntimeError(traceback.format_exc()))


class _Child:
    """A side in its process."""

    def __init__(self, make: Callable[[Model, Settings], _Side], model: Model, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, model, settings), daemon=True)
        self._process.start()
        other.close()

    def ask(self, word: str | None = None) -> Any:
        """Say a word, and wait for what it gives.  Raises InputError where memory is not enough."""
        try:
            if word is not None:
                self._pipe.send(word)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            if code == -signal.SIGKILL:  # the system's, when memory runs out
                raise InputError(f"a step was killed: {_SMALLER}") from None
            raise RuntimeError(f"a step ended with exit code {code}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """One preset.  Seconds of its step are medians; where there is a peer, of steps that take turns with its.

    Raises InputError.
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name}; there are {', '.join(PRESETS)}")
    model = PRESETS[name]
    if settings.peer and model.variant != "upw":
        raise InputError(f"--peer is UPW's model: it stands beside upw-image and upw-mixed, not {name}")
    sides, times = [], []
    try:
        for make in (_ours, _theirs)[: 1 + bool(settings.peer)]:
            sides.append(_Child(make, model, settings))
            sides[-1].ask()
        for number in range(settings.steps):
            turns = sides[:: -1 if number % 2 else 1]
            seconds = [side.ask("step") for side in turns]
            times.append(seconds[:: -1 if number % 2 else 1])
        facts = [side.ask("end") for side in sides]
    finally:
        for side in sides:
            side.kill()
    step = statistics.median(pair[0] for pair in times)
    ours = facts[0]
    rate = 1e12 * ours["TFLOP"] / step
    found = {
        "preset": name,
        "device": ours["device"],
        "dtype": ours["dtype"],
        "remat": ours["remat"],
        "parameters": ours["parameters"],
        "rows": settings.rows,
        "size": settings.size,
        "step_s": step,
        "pixels_per_s": settings.rows * settings.size**2 / step,
        "TFLOP": ours["TFLOP"],
        "TFLOP_per_s": rate / 1e12,
        "mfu": rate / ours["peak"] if ours["peak"] else None,
        "hfu": ours["again"] * rate / ours["peak"] if ours["peak"] else None,
        "GiB": ours["bytes"] / 2**30,
        "compile_s": ours["compile_s"],
    }
    if settings.peer:
        found |= {
            "peer": settings.peer,
            "torch_step_s": statistics.median(pair[1] for pair in times),
            "step_over_torch": statistics.median(pair[0] / pair[1] for pair in times),
            "torch_GiB": facts[1]["bytes"] / 2**30,
            "memory_over_torch": ours["bytes"] / facts[1]["bytes"],
            "pairs": times,
        }
    return found | ({"split": ours["split"]} if "split" in ours else {})


def table(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """For people."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    rows = [["preset", "device", "dtype", "remat", "rows", "step s", "pixels/s", "TFLOP/s", "MFU", "HFU", "GiB"]]
    for one in found:
        rows.append(
            [
                one["preset"],
                one["device"],
                one["dtype"],
                one["remat"],
                f"{one['rows']} x {one['size']}²",
                f"{one['step_s']:.3f}",
                f"{one['pixels_per_s']:,.0f}",
                f"{one['TFLOP_per_s']:.3f}",
                share(one["mfu"]),
                share(one["hfu"]),
                f"{one['GiB']:.2f}",
            ]
        )
        if "torch_step_s" in one:
            ratios = f"x{one['step_over_torch']:.2f} time, x{one['memory_over_torch']:.2f} memory"
            rows.append(
                [
                    f"  torch, {one['peer']}",
                    "",
                    one["dtype"],
                    "none",
                    "",
                    f"{one['torch_step_s']:.3f}",
                    ratios,
                    "",
                    "",
                    "",
                    f"{one['torch_GiB']:.2f}",
                ]
            )
        rows += [[f"  {name}", "", "", "", "", share(part)] + [""] * 5 for name, part in one.get("split", {}).items()]
    return rows
