"""Four models on six kinds of hardware that are not here: memory of a device, the compiler's verdict, a roofline.

nice python experiments/compile_matrix.py [ONLY]      # needs libtpu, for H100s CUDA's compilers: see Makefile

`upw-image`, and three models of our kind in which encoder, trunk, and what predicts pixels cost about as much as each
other; 224² images, one a row.  Each result is a line of results/compile_matrix.jsonl as it comes; what is there is not
compiled again, so stop and start it at will.  Minutes each.  ONLY: those whose `MODEL@TOPOLOGY` holds it.  The table,
which is printed last, is results/compile_matrix.md.
"""

import dataclasses
import json
import sys
from pathlib import Path

from pixtok import compile as compiler
from pixtok import flops
from pixtok.config import PRESETS, Data, Experiment, Mesh, Model, Stream, Train
from pixtok.hardware import GIB

RESULTS = Path(__file__).parent / "results" / "compile_matrix.jsonl"
TOPOLOGIES = ("v5e:16x16", "v4:4x4x8", "v6e:16x16", "v5p:8x8x8", "tpu7x:4x4x4", "h100:8")


def _family(width: int, layers: int, heads: int, pixel: Stream) -> Model:
    return Model(encoder=pixel, trunk=Stream(width, layers, heads, heads // 2), decoder=pixel)


# Name → model, ways of mesh.fsdp at most, rows for each device.
MODELS = {
    "upw-image": (PRESETS["upw-image"], 1, 2),
    "768": (_family(768, 12, 12, Stream(width=96, layers=2, heads=1, kv_heads=1)), 1, 4),
    "2048": (_family(2048, 24, 16, Stream(width=256, layers=4, heads=4, kv_heads=2)), 16, 2),
    "4096": (_family(4096, 32, 32, Stream(width=512, layers=6, heads=4, kv_heads=2)), 64, 1),
}


def experiment(name: str, devices: int, fsdp: int | None = None) -> Experiment:
    model, ways, rows = MODELS[name]
    ways = min(ways if fsdp is None else fsdp, devices)
    return Experiment(
        name=name,
        model=model,
        data=Data(path="absent", image_size=224, slots=200, windows=196),
        train=Train(steps=1_000, batch_size=rows * devices),
        mesh=Mesh(data=-1, fsdp=ways),
    )


def done() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict]) -> str:
    lines = [
        "| model | parameters | topology | mesh | rows | GiB of a device: state, temporaries, code, in all | of "
        "| verdict | ms: compute, memory, network | MFU at most |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (list(MODELS).index(row["model"]), row["topology"])):
        memory, roof = row["memory"], row["roofline"]
        state = memory["parameters"] + memory["optimizer"]
        parts = [state, memory.get("temporaries", 0), memory.get("code", 0), memory.get("peak", 0)]
        mesh = " ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
        times = ", ".join(f"{roof[name]:,.1f}" for name in ("compute_ms", "memory_ms", "network_ms")) if roof else ""
        share = f"{roof['mfu']:.0%}" if roof else ""
        lines.append(
            f"| {row['model']} | {row['parameters'] / 1e6:,.0f} M | {row['topology']} | {mesh} | {row['batch_size']} "
            f"| {', '.join(f'{part / GIB:.2f}' for part in parts)} | {(row['available'] or 0) / GIB:.2f} "
            f"| {row['verdict']} | {times} | {share} |"
        )
    return "\n".join(lines)


def main() -> None:
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in MODELS:
        one = experiment(name, 8)
        groups = flops.ledger(one.model, flops.full(one))
        total = sum(entry.forward for entry in groups.values())
        shares = ", ".join(f"{group} {entry.forward / total:.0%}" for group, entry in groups.items())
        print(f"{name}: {total / 1e12:.3f} TFLOP forward for one image: {shares}", file=sys.stderr)
    RESULTS.parent.mkdir(exist_ok=True)
    for topology in TOPOLOGIES:
        for name in MODELS:
            if only not in f"{name}@{topology}" or any((name, topology) == (r["model"], r["topology"]) for r in done()):
                continue
            target = compiler.target(topology)
            report = compiler.compile_step(experiment(name, len(target.devices)), target)
            with RESULTS.open("a") as file:
                file.write(json.dumps({"model": name, **dataclasses.asdict(report)}) + "\n")
            print(f"{name} {topology}: {report.verdict}, {report.compile_s:.0f} s", file=sys.stderr, flush=True)
    print(table(done()))


if __name__ == "__main__":
    main()
