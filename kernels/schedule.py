"""What the TPU compiler schedules for conditional attention and for jax's splash attention, without a TPU.

The compiler writes each kernel's final VLIW bundles; a bundle is a cycle unless memory is late.  Of a kernel's code,
bundles of the loop over its grid count once a step, those of a loop inside as often as it turns, and stretches that
neither multiply nor copy behind a branch of their own (what happens at a block's first or last step) once a block.
"""

import dataclasses
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import SingleDeviceSharding

from pixtok_kernels import pallas_tpu, topology
from pixtok_kernels.shapes import Case, draw

CHIPS = ("v5e", "v5p", "v6e")
CASES = (
    Case(B=1, M=196, W=256, P=0, S=256, H=12, K=12, D=64),
    Case(B=1, M=196, W=256, P=0, S=256, H=12, K=12, D=128),
    Case(B=1, M=196, W=256, P=0, S=1024, H=12, K=12, D=64),
    Case(B=1, M=49, W=1024, P=0, S=1024, H=12, K=12, D=64),
)
"""Every window sees all slots, as late windows of an image do."""
_BLOCK = 256
"""Queries and keys of a block of splash attention."""
_LINE = re.compile(r" *(?:0x)?[0-9a-f]+ +([A-Z]{2})? *: *(>*)")


class Code(NamedTuple):
    """Bundles of a kernel: cycles and cycles × matrix units in use."""

    step: np.ndarray
    """A step of the grid."""
    block: np.ndarray
    """The first or last step of a block besides; of ours, counted for every step."""
    loops: list[np.ndarray]
    """One turn of each loop inside, in their order."""
    units: int
    """Matrix units of a core."""


def read(folder: Path, name: str) -> Code:
    """The code of the kernel whose name begins with `name`."""
    bundles = next(f for f in folder.glob(f"*-{name}*-final_bundles.txt") if "schedule" not in f.name)
    usage = next(folder.glob(f"{bundles.name.split('-')[0]}-{name}*final_hlo-static-per-bundle-utilization.txt"))
    numbers = [line.split() for line in usage.read_text().splitlines() if re.fullmatch(r"[\d ]+", line.strip())]
    units, used = int(numbers[0][0]), [int(row[0]) for row in numbers[1:]]
    lines = [line for line in bundles.read_text().splitlines() if re.match(r" *(0x[0-9a-f]+|0) +[^=]*\{", line)]
    once: set[int] = set()
    branches: list[int] = []
    depths, marks = [], []
    for index, line in enumerate(lines):
        found = _LINE.match(line)
        assert found
        marks.append(found[1])
        depths.append(len(found[2]))
        if found[1] == "PF" and branches:
            inside = range(branches.pop() + 1, index)
            text = "".join(lines[inside.start : inside.stop])
            if not re.search(r"vmatmul|dma\.", text):
                once.update(inside)
        if "sbr.rel" in line and index + 6 < len(lines):  # the last one goes back to the next step
            branches.append(index)
    step, block, loops = np.zeros(2), np.zeros(2), []
    for index, (depth, mark) in enumerate(zip(depths, marks, strict=True)):
        cost = np.array([1, used[index] if index < len(used) else 0])
        if depth == 1:
            if index in once:
                block += cost
            else:
                step += cost
        elif depth == 2:
            if mark == "LB":
                loops.append(np.zeros(2))
            loops[-1] += cost
    return Code(step, block, loops, units)


@dataclasses.dataclass
class Row:
    """Of one window and head."""

    chip: str
    W: int
    S: int
    D: int
    pass_: str
    kernel: str
    cycles: float
    matrix_unit: float
    """Share of the matrix units' cycles in use."""
    bytes: float
    """To and from memory."""


def _compile(function: Callable[..., Any], arguments: Any, chip: str, dump: Path) -> None:
    for file in dump.iterdir():
        file.unlink()
    where = SingleDeviceSharding(topology.tpu(chip).devices[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments)
    jax.jit(function).lower(*shapes).compile()


def ours(case: Case, chip: str, dump: Path) -> Iterator[Row]:
    """Forward and gradient of our kernel."""
    a = jax.eval_shape(lambda: draw(case, jnp.bfloat16, ragged=False))
    t, scale = pallas_tpu.tiled(a), case.D**-0.5
    lse = jax.ShapeDtypeStruct((case.B, case.H, case.M, case.W), jnp.float32)
    o = a.q_BMWHD
    blocks = -(-case.S // t.block)
    turns = [(t.parts - 1) / 2] * (t.parts > 1) + [blocks - 1]  # earlier parts of the window, slots
    pixels, line, slots = 2 * case.D * case.W, 4 * case.W, 4 * case.D * t.slots / t.count / t.windows
    passes = {
        "forward": (lambda a: pallas_tpu.forward(a, scale), (a,), "gca_forward", 4 * pixels + line + slots),
        "backward": (
            lambda *x: pallas_tpu.backward(x[0], scale, *x[1:]),
            (a, o, lse, o),
            "gca_near",
            8 * pixels + 2 * line + 2 * slots,
        ),
    }
    for pass_, (function, arguments, name, moved) in passes.items():
        _compile(function, arguments, chip, dump)
        code = read(dump, name)
        cost = code.step + code.block + sum(n * loop for n, loop in zip(turns, code.loops, strict=True))
        cost *= t.parts / t.windows / t.heads
        yield Row(chip, case.W, case.S, case.D, pass_, "ours", cost[0], cost[1] / cost[0] / code.units, moved)


def _splash(case: Case, chip: str, dump: Path) -> Iterator[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax.experimental.pallas.ops.tpu import splash_attention as splash
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
    W, S, D = case.W, case.S, case.D
    # Its mask is an array of all pairs; with so many heads nothing is kept on the chip, which real sizes would not.
    N, heads = 4096, 96
    mask = np.zeros((N, N + S), bool)
    for start in range(0, N, W):
        mask[start : start + W, start : start + W] = np.tri(W, dtype=bool)
    mask[:, N:] = True
    q, k = (jax.ShapeDtypeStruct((heads, rows, D), jnp.bfloat16) for rows in (N, N + S))
    side = W // _BLOCK
    # Blocks that a window looks at: on and below its diagonal, and slots.
    visits = side * (side + 1) / 2 + side * S / _BLOCK
    pixels, line = 2 * max(D, 128) * W, 4 * W  # its arrays have D on lanes, which are padded to 128
    pair = 2 * pixels * visits / side
    for fused in (False, True):
        sizes = splash.BlockSizes(
            block_q=_BLOCK,
            block_kv=_BLOCK,
            block_kv_compute=_BLOCK,
            block_q_dkv=_BLOCK,
            block_kv_dkv=_BLOCK,
            block_kv_dkv_compute=_BLOCK,
            block_q_dq=None if fused else _BLOCK,
            block_kv_dq=None if fused else _BLOCK,
            use_fused_bwd_kernel=fused,
        )
        every = masks.MultiHeadMask([masks.NumpyMask(mask)] * heads)
        attend = splash.make_splash_mha_single_device(every, block_sizes=sizes)

        _compile(lambda q, k, v, do, f=attend: jax.vjp(f, q, k, v)[1](do), (q, k, k, q), chip, dump)

        def cost(name: str, blocks: float) -> tuple[np.ndarray, int]:
            code = read(dump, name)
            return visits * code.step + blocks * code.block, code.units

        if not fused:
            forward, units = cost("splash_mha_fwd", side)
            cycles, used = forward
            yield Row(chip, W, S, D, "forward", "splash", cycles, used / cycles / units, 2 * pixels + line + pair)
            dq, _ = cost("splash_mha_dq", side)
            dkv, _ = cost("splash_mha_dkv", side)
            backward = dq + dkv
            moved = (3 * pixels + 2 * line + pair) + (2 * pixels + 2 * line) * visits / side + 4 * pixels
            yield Row(chip, W, S, D, "backward", "splash", backward[0], backward[1] / backward[0] / units, moved)
        else:
            (cycles, used), units = cost("splash_mha_dkv", side)
            # It writes a dq for every block of keys, float32 or not, to be summed afterwards.
            moved = (2 * pixels + 2 * line) * visits / side + 4 * pixels + 2 * pixels * visits / side + pixels
            yield Row(chip, W, S, D, "backward", "splash, fused", cycles, used / cycles / units, moved)


def dump_to(folder: Path) -> None:
    """Has the TPU compiler of this process write what it does there; before it is first used."""
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()
    jax.config.update("jax_platforms", "cpu")  # it compiles for chips that are not here
    jax.config.update("jax_enable_compilation_cache", False)  # what comes from there is not scheduled again


def run(out: Path | None) -> None:
    """Prints the table, and writes each row to `out` as a JSON line.  Raises RuntimeError without libtpu."""
    dump = Path(tempfile.mkdtemp())
    dump_to(dump)
    rows_written: list[str] = []
    print("| chip | W | S | D | pass | kernel | cycles | matrix unit | KiB | ours / it |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    try:
        for case in CASES:
            for chip in CHIPS:
                rows = [*ours(case, chip, dump), *_splash(case, chip, dump)]
                least = {row.pass_: row.cycles for row in rows if row.kernel == "ours"}
                for row in sorted(rows, key=lambda row: row.pass_, reverse=True):
                    ratio = "" if row.kernel == "ours" else f"{least[row.pass_] / row.cycles:.2f}"
                    print(
                        f"| {chip} | {row.W} | {row.S} | {row.D} | {row.pass_} | {row.kernel} | {row.cycles:.0f} | "
                        f"{row.matrix_unit:.0%} | {row.bytes / 1024:.0f} | {ratio} |",
                        flush=True,
                    )
                    rows_written.append(json.dumps(dataclasses.asdict(row)) + "\n")
                    if out:
                        out.write_text("".join(rows_written))
    finally:
        shutil.rmtree(dump)
