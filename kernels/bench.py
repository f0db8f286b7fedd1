"""Global conditional attention on one device: is it right, how fast is it, what does it hold, against causal attention.

python kernels/bench.py --device gpu|cpu [--out ROWS.jsonl] [--minutes 8] [--largest 200704] [--lanes library,reference]
python kernels/bench.py --tpu-schedule [--out ROWS.jsonl]     cycles that the TPU compiler schedules, without a TPU
python kernels/bench.py --tune [CHIP]                         block sizes, for the device here or a TPU that is not

With --device, numerics first: each implementation against float32 `reference`.  Then forward, and forward with
gradient, of one layer on an image of N pixels, one slot for each window.  The yardstick is causal attention over all
pixels, of as many heads: 12 on 6 key heads in bfloat16, on the CPU 2 on 1 in float32, all 64 wide, on the same data.
A row is printed, and written as a line of JSON, as soon as it exists; a lane that fails is a row with its error; what
does not fit in memory or in the time left is a row that says so.  Last, the targets.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import schedule
import tune
from jax import numpy as jnp

from pixtok_kernels import global_conditional_attention
from pixtok_kernels.api import IMPLEMENTATIONS
from pixtok_kernels.shapes import BENCH, Arguments, Case, draw

LANES = {
    "gpu": ("pallas_gpu", "library", "reference", "causal", "tokamax"),
    "cpu": ("library", "reference", "causal"),
}
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
"""Dense bfloat16 FLOP/s and bytes/s of the SXM cards (NVIDIA's data sheets)."""
TOLERANCE = {"bfloat16": 2**-8, "float32": 2e-6}
"""Of the root mean square; rounding right values to bfloat16 alone costs 1.7e-3."""

Row = dict[str, Any]
Emit = Callable[[Row], None]


class Lane(NamedTuple):
    """One way to do one pass of one case."""

    attention: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def cases(device: str) -> list[Case]:
    """On the CPU fewer heads, so that it ends in minutes, and also small windows."""
    if device == "gpu":
        return BENCH
    few = [case._replace(H=2, K=1) for case in BENCH]
    small = [
        case._replace(W=64, M=4 * case.M, S=4 * case.S) for case in few if case.P == 0 and case.M * case.W <= 16384
    ]
    return sorted(few + small, key=lambda case: case.M * case.W)


def conditional(name: Any, a: Arguments) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """(attention of its differentiable arguments, those)."""

    def attend(*arrays: Any) -> jax.Array:
        more: dict[str, Any] = {"halo_count_BM": a.halo_count_BM, "implementation": name}
        q, k, v, slot_k, slot_v, *bias = arrays
        return global_conditional_attention(q, k, v, slot_k, slot_v, a.span_BM2, *bias, **more)

    arrays = (a.q_BMWHD, a.k_BMPWKD, a.v_BMPWKD, a.slot_k_BSKD, a.slot_v_BSKD)
    return attend, arrays if a.slot_bias_BS is None else (*arrays, a.slot_bias_BS)


def attention(name: str, device: str, a: Arguments) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """Of a lane; causal attention has the same pixels, without windows."""
    if name in IMPLEMENTATIONS:
        return conditional(name, a)
    own = (x[:, :, x.shape[2] - a.q_BMWHD.shape[2] :] for x in a[:3])
    arrays = tuple(x.reshape(x.shape[0], -1, *x.shape[3:]) for x in own)
    if name == "tokamax":
        function = importlib.import_module("tokamax").dot_product_attention
        return functools.partial(function, is_causal=True), arrays
    if name != "causal":
        raise ValueError(f"no lane is called {name}")
    which: Any = "cudnn" if device == "gpu" else "xla"
    return functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation=which), arrays


def with_gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """(arrays, cotangent) → attention and all gradients."""

    def both(arrays: tuple[jax.Array, ...], cotangent: jax.Array) -> Any:
        o, back = jax.vjp(function, *arrays)
        return o, back(cotangent)

    return both


def lane(name: str, device: str, a: Arguments, gradient: bool) -> Lane:
    function, arrays = attention(name, device, a)
    if not gradient:
        return Lane(name, function, arrays)
    like = jax.eval_shape(function, *arrays)
    return Lane(name, with_gradient(function), (arrays, jax.random.normal(jax.random.key(1), like.shape, like.dtype)))


# ------------------------------------------------------------------------------------------------------------- numerics


def numerics(device: str, names: list[str], emit: Emit) -> None:
    """Root mean square of the error over that of the right values, the worst of output and gradients."""
    checked = {
        "small windows": Case(B=1, M=4, W=16, P=2, S=7, H=6, K=2, D=64),
        "ragged": Case(B=2, M=5, W=64, P=19, S=140, H=4, K=2, D=64),
        "large windows": Case(B=1, M=6, W=256, P=35, S=9, H=2, K=1, D=64),
    }
    dtypes = (jnp.bfloat16,) if device == "gpu" else (jnp.float32, jnp.bfloat16)
    with ThreadPoolExecutor() as pool:
        found = pool.map(
            lambda one: errors(device, names, *one), itertools.product(checked.items(), (False, True), dtypes)
        )
        for rows in found:
            for row in rows:
                emit(row)


def errors(device: str, names: list[str], named: tuple[str, Case], bias: bool, dtype: Any) -> list[Row]:
    """Of each implementation in one case, against float32 on the CPU."""
    title, case = named
    a = draw(case, dtype, ragged=True)
    a = a if bias else a._replace(slot_bias_BS=None)
    wide = jax.tree.map(_widened, a)
    cotangent = np.random.default_rng(1).normal(size=a.q_BMWHD.shape).astype(jnp.dtype(dtype))
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        function, arrays = attention("reference", device, wide)
        right = jax.device_get(jax.jit(with_gradient(function))(arrays, _widened(cotangent)))
    rows = []
    for name in names:
        row: Row = {"kind": "numerics", "case": title, "bias": bias, "dtype": jnp.dtype(dtype).name, "attention": name}
        try:
            function, arrays = attention(name, device, a)
            error = jax.tree.leaves(jax.tree.map(_error, jax.jit(with_gradient(function))(arrays, cotangent), right))
            row |= {"error": max(error), "error_forward": error[0], "ok": max(error) <= TOLERANCE[row["dtype"]]}
        except Exception as problem:  # any lane may lack its library or its device
            row |= {"error_line": _line(problem), "ok": False}
        rows.append(row)
    return rows


def _widened(x: Any) -> np.ndarray:
    """On the host, where nothing has to be compiled for it."""
    x = np.asarray(x)
    return x if np.issubdtype(x.dtype, np.integer) else x.astype(np.float32)


def _error(got: jax.Array, right: np.ndarray) -> float:
    return float(np.sqrt(np.mean((_widened(got) - right) ** 2) / np.mean(right**2)))


def _line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:300]


# ---------------------------------------------------------------------------------------------------------------- times


def pairs(case: Case, causal: bool) -> int:
    """Score pairs of one head that the definition asks for."""
    pixels = case.M * case.W
    if causal:
        return pixels * (pixels + 1) // 2
    return case.M * case.W * (case.W + 1) // 2 + pixels * case.P + case.W * case.M * (case.M - 1) // 2


def least_seconds(case: Case, lane: Lane, gradient: bool, peaks: tuple[float, float] | None) -> float | None:
    """The roofline: 2 products a pair, and 5 more with gradient; each pass moves what it reads and writes once."""
    if peaks is None:
        return None
    flops = pairs(case, lane.attention not in IMPLEMENTATIONS) * case.B * case.H * case.D * 2 * (7 if gradient else 2)
    arrays, *cotangent = lane.arguments if gradient else (lane.arguments,)
    read = sum(x.nbytes for x in arrays)
    q = arrays[0].nbytes
    # forward: inputs, o.  Backward: inputs, o, do, and as much as the inputs are for their gradients.
    moved = read + q + (2 * read + 2 * q if cotangent else 0)
    return max(flops / peaks[0], moved / peaks[1])


def free_bytes(device: str) -> int:
    if device == "cpu":
        return int(0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    stats = jax.devices()[0].memory_stats() or {}
    return int(0.9 * (stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)))


def seconds(program: Any, arguments: tuple[Any, ...], calls: int, warm: bool) -> float:
    """Of one call, when `calls` are queued at once.

    `warm`: after one that is not measured.  The CPU still frees the memory of a call after its result is ready, which
    would be counted for whichever lane comes next.
    """
    if warm:
        jax.block_until_ready(program(*arguments))
    begin = time.perf_counter()
    results = [program(*arguments) for _ in range(calls)]
    jax.block_until_ready(results)
    return (time.perf_counter() - begin) / calls


def compiled(name: str, device: str, a: Arguments, gradient: bool) -> tuple[Lane, Any] | Exception:
    """A lane and its program, or what came in the way."""
    try:
        made = lane(name, device, a, gradient)
        return made, jax.jit(made.function).lower(*made.arguments).compile()
    except Exception as problem:  # recorded; the other lanes go on
        return problem


def times(device: str, names: list[str], largest: int, deadline: float, emit: Emit) -> None:
    kind = jax.devices()[0].device_kind
    peaks = next((peak for card, peak in PEAKS.items() if card in kind), None)
    last: dict[Any, tuple[int, float]] = {}  # lane → pixels and seconds, all of it, at its last size
    base: dict[Any, float] = {}  # causal attention knows no windows, so one measurement serves all cases of a size
    for case in cases(device):
        pixels = case.M * case.W
        if pixels > largest:
            continue
        a = draw(case, jnp.bfloat16 if device == "gpu" else jnp.float32, ragged=False)
        turns: dict[bool, list[Any]] = {False: [], True: []}
        rows = []
        for gradient, name in itertools.product((False, True), names):
            if name not in IMPLEMENTATIONS and (pixels, gradient, name) in base:
                continue
            base[pixels, gradient, name] = 0.0
            row: Row = {"kind": "time", "attention": name, "pass": "both" if gradient else "forward"}
            row |= {"pixels": pixels, "window": case.W, "halo": case.P, "heads": case.H, "key_heads": case.K}
            row["score_pairs"] = pairs(case, name not in IMPLEMENTATIONS)
            was, took = last.get((name, gradient), (pixels, 0.0))
            # No lane may take what all others need.
            left = deadline - time.monotonic()
            if left < 0 or took * (pixels / was) ** (1.5 if name in IMPLEMENTATIONS else 2) > left / 4:
                emit(row | {"skipped": "no time left for it"})
                continue
            rows.append(row)
        # Compilers wait more than they work, and nothing is measured meanwhile.
        with ThreadPoolExecutor() as pool:
            made_of = pool.map(lambda row, a=a: compiled(row["attention"], device, a, row["pass"] == "both"), rows)
            programs = list(made_of)
        for row, found in zip(rows, programs, strict=True):
            gradient = row["pass"] == "both"
            begin = time.monotonic()
            try:
                if isinstance(found, Exception):
                    raise found
                made, program = found
                memory: Any = program.memory_analysis()
                row["temporary_mib"] = memory.temp_size_in_bytes / 2**20
                needed, free = memory.temp_size_in_bytes + memory.output_size_in_bytes, free_bytes(device)
                if needed > free:
                    emit(row | {"skipped": f"needs {needed / 2**30:.1f} GiB of {free / 2**30:.1f}"})
                    continue
                seconds(program, made.arguments, 1, warm=False)
                once = seconds(program, made.arguments, 1, warm=False)
            except Exception as problem:  # recorded; the other lanes go on
                emit(row | {"error_line": _line(problem)})
                continue
            # A queue hides the time that sending a call off takes.  The CPU would run queued calls side by side.
            calls = 1 if device == "cpu" else max(1, min(50, int(0.02 / once)))
            row |= {"least": least_seconds(case, made, gradient, peaks), "calls": calls}
            last[row["attention"], gradient] = pixels, time.monotonic() - begin + 3 * once
            turns[gradient].append((program, made.arguments, once, row, []))
        for gradient, few in turns.items():
            for number in range(7):
                for program, arguments, once, row, taken in few:
                    if number < 3 or once < 0.1:
                        taken.append(seconds(program, arguments, row["calls"], warm=once < 1))
            for *_, row, taken in few:
                base[pixels, gradient, row["attention"]] = statistics.median(taken)
            for *_, row, taken in few:
                mine, least = statistics.median(taken), row.pop("least")
                row |= {"ms": mine * 1e3, "least_ms": min(taken) * 1e3, "rounds": len(taken)}
                row |= {"speed_up": base.get((pixels, gradient, "causal"), 0) / mine or None}
                row |= {"roofline": least / mine if least else None}
                row["peak_host_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                emit(row)


# -------------------------------------------------------------------------------------------------------------- targets


def summary(device: str, rows: list[Row], emit: Emit) -> None:
    """What was asked for, what came, and whether that is enough; `None` where it was not measured."""
    made = {
        (row["attention"], row["pass"], row["pixels"], row["window"], row["halo"]): row
        for row in rows
        if row["kind"] == "time" and "ms" in row
    }
    ours = [name for name in LANES[device] if name in IMPLEMENTATIONS and name != "reference"]

    def of(what: str, pass_: str, pixels: int, halo: int) -> float | None:
        found = [made[key][what] for name in ours if (key := (name, pass_, pixels, 256, halo)) in made]
        return max((x for x in found if x is not None), default=None)

    def target(title: str, got: float | None, wanted: float, most: bool = False) -> None:
        ok = None if got is None else bool(got <= wanted if most else got >= wanted)
        emit({"kind": "target", "target": title, "wanted": wanted, "got": got, "ok": ok})

    for dtype, limit in TOLERANCE.items():
        errors = [
            row["error"] for row in rows if row["kind"] == "numerics" and row["dtype"] == dtype and "error" in row
        ]
        target(f"largest relative error, {dtype}", max(errors, default=None), limit, most=True)
    for pass_ in ("forward", "both"):
        ratios = {key[2]: of("speed_up", pass_, key[2], 0) for key in made if key[3:] == (256, 0)}
        ahead = [pixels for pixels, ratio in ratios.items() if ratio and ratio >= 1]
        target(f"{pass_}: fewest pixels where it is no slower than causal", min(ahead, default=None), 4096, most=True)
    if device == "gpu":
        target("forward: times causal's speed at 50,176", of("speed_up", "forward", 50176, 0), 20)
        target("both: times causal's speed at 50,176", of("speed_up", "both", 50176, 0), 15)
        for pass_ in ("forward", "both"):
            target(f"{pass_}: times causal's speed at 50,176, halo 35", of("speed_up", pass_, 50176, 35), 8)
            target(f"{pass_}: share of the roofline at 50,176", of("roofline", pass_, 50176, 0), 0.5)
    else:
        ratios = [
            made["reference", *key[1:]]["ms"] / row["ms"]
            for key, row in made.items()
            if key[0] == "library" and key[2] >= 4096 and ("reference", *key[1:]) in made
        ]
        target("library: least times reference's speed from 4,096 on", min(ratios, default=None), 1)
    for pass_ in ("forward", "both"):
        held = {k[2]: r["temporary_mib"] for k, r in made.items() if k[:2] == ("library", pass_) and k[3:] == (256, 0)}
        few, many = min((p for p in held if p >= 16384), default=0), max(held, default=0)
        growth = held[many] / held[few] / (many / few) if 0 < few < many else None
        target(f"{pass_}: library's memory for each pixel, {many} pixels over {few}", growth, 1.1, most=True)


def printed(row: Row) -> str:
    kind = row["kind"]
    if kind == "device":
        return f"{row['device']}, jax {row['jax']}"
    if kind == "target":
        mark = {True: "pass", False: "FAIL", None: "not measured"}[row["ok"]]
        got = "" if row["got"] is None else f"{row['got']:.4g} of "
        return f"{mark:>12}  {row['target']}: {got}{row['wanted']:g}"
    if kind == "numerics":
        end = row.get("error_line") or f"{row['error_forward']:.1e} forward, {row['error']:.1e} worst"
        bias = "bias" if row["bias"] else "no bias"
        return f"{'pass' if row['ok'] else 'FAIL'} {row['attention']:>10} {row['dtype']} {row['case']}, {bias}: {end}"
    head = f"{row['pixels']:8,} W {row['window']:3} P {row['halo']:2} {row['attention']:>10} {row['pass']:>7}"
    if "ms" not in row:
        return f"{head}  {row.get('skipped') or row['error_line']}"
    more = f" {row['speed_up']:7.2f} × causal" if row["speed_up"] else ""
    more += f" {100 * row['roofline']:5.1f} % of roofline" if row["roofline"] else ""
    return f"{head} {row['ms']:10.3f} ms {row['temporary_mib']:9.1f} MiB{more}"


def recorder(out: Path | None) -> tuple[list[Row], Emit]:
    rows: list[Row] = []
    if out:
        out.write_text("")

    def emit(row: Row) -> None:
        rows.append(row)
        print(printed(row), flush=True)
        if out:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    return rows, emit


def lanes(device: str, wanted: str | None) -> Iterator[str]:
    """Those that are installed, and wanted."""
    for name in LANES[device]:
        here = name in IMPLEMENTATIONS or name == "causal" or importlib.util.find_spec(name)
        if here and (wanted is None or name in wanted.split(",")):
            yield name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--device", choices=("gpu", "cpu"), help="measure here")
    what.add_argument("--tpu-schedule", action="store_true", help="what the TPU compiler schedules; needs no TPU")
    what.add_argument(
        "--tune",
        nargs="?",
        const="",
        metavar="CHIP",
        help="write the best block sizes of this device to pixtok_kernels/tuned, or of a TPU that is not here: v5e, …",
    )
    parser.add_argument("--out", type=Path, help="also write the rows here, as lines of JSON")
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing new is begun")
    parser.add_argument("--largest", type=int, default=200704, help="largest number of pixels")
    parser.add_argument("--lanes", help="only these, separated by commas")
    options = parser.parse_args()
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.tpu_schedule or options.tune is not None:
        try:
            if options.tpu_schedule:
                schedule.run(options.out)
            else:
                print(tune.run(options.tune or None, Path(__file__).parent / "pixtok_kernels" / "tuned"))
        except (RuntimeError, ValueError) as problem:
            print(problem, file=sys.stderr)
            return 2
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    try:
        jax.config.update("jax_platforms", {"gpu": "cuda,cpu", "cpu": "cpu"}[options.device])
        device = jax.devices()[0]
        if device.platform != options.device:
            raise RuntimeError(f"jax has a {device.platform}")
        kind = device.device_kind
    except Exception as problem:  # jax has several, an AssertionError among them
        print(f"no {options.device} that jax can use here ({_line(problem)})", file=sys.stderr)
        return 2
    rows, emit = recorder(options.out)
    emit(
        {"kind": "device", "device": kind, "jax": jax.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    )
    names = list(lanes(options.device, options.lanes))
    numerics(options.device, [name for name in names if name in IMPLEMENTATIONS], emit)
    times(options.device, names, options.largest, deadline, emit)
    summary(options.device, rows, emit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
