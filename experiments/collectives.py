"""Bytes that a device sends in one training step, by kind of mesh and number of devices: predicted and counted.

python experiments/collectives.py [SIZE …]        # 16 64 256 512; needs CUDA's compilers: see Makefile's test-cluster

Compiled for H100s, eight a node.  Two blocks in each stack, all widths 512, bfloat16; one row of 16 windows of 8² for
each device along data and fsdp.  Results, a line each as they come, go to results/collectives.jsonl; what is there is
not compiled again.

What the design predicts, for P parameters and n devices, as rings send it (2 bytes: gradients are summed as products
leave them, in bfloat16, but with tensor in float32):

    data      one all-reduce of the gradient: 2 · 2P · (n−1)/n
    fsdp      weights gathered in the forward pass and in the backward, gradients scattered: 3 · 2P · (n−1)/n
    window 8  as data, and all summaries from the others, forward and, their gradients, backward (halo not counted)
    tensor 8  as data, of an eighth of the weights; and for each block, in the forward pass, its recomputation and the
              backward pass, two sums of what goes through it
"""

import dataclasses
import json
import sys
from pathlib import Path

from pixtok import compile as compiler
from pixtok.config import Data, Experiment, Mesh, Model, Stream, Train

RESULTS = Path(__file__).parent / "results" / "collectives.jsonl"
SPLIT = 8
PIXEL = Stream(width=512, layers=2, heads=8, kv_heads=8)
MODEL = Model(encoder=PIXEL, trunk=Stream(512, 2, 8, 8), decoder=PIXEL, vocab_size=512, window=8)
SLOTS, WINDOWS = 20, 16


def meshes(n: int) -> dict[str, Mesh]:
    return {
        "data": Mesh(data=n),
        "fsdp": Mesh(data=1, fsdp=n),
        f"window {SPLIT}": Mesh(data=n // SPLIT, window=SPLIT),
        f"tensor {SPLIT}": Mesh(data=n // SPLIT, tensor=SPLIT),
    }


def predicted(kind: str, n: int, parameters: int) -> float:
    gradient = 2 * 2 * parameters * (n - 1) / n
    near, outer = (SPLIT - 1) / SPLIT, n // SPLIT
    if kind == "fsdp":
        return 1.5 * gradient
    if kind.startswith("window"):
        return gradient + 2 * 2 * WINDOWS * near * MODEL.trunk.width
    if kind.startswith("tensor"):
        pixels = WINDOWS * MODEL.window**2
        tokens = 2 * (pixels + SLOTS + pixels + WINDOWS)  # of two blocks each
        sums = 3 * 2 * 2 * near * 2 * tokens * MODEL.trunk.width
        return 2 * 4 * parameters / SPLIT * (outer - 1) / outer + sums
    return gradient


def done() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    for n in map(int, sys.argv[1:] or ("16", "64", "256", "512")):
        for kind, mesh in meshes(n).items():
            if any((kind, n) == (row["kind"], row["devices"]) for row in done()):
                continue
            made = Experiment(
                name=kind,
                model=MODEL,
                data=Data("absent", slots=SLOTS, windows=WINDOWS),
                train=Train(steps=10, batch_size=mesh.data * mesh.fsdp, warmup_steps=1),
                mesh=mesh,
            )
            report = compiler.compile_step(made, compiler.target(f"h100:{n // 8}x8"))
            row = {"kind": kind, "predicted": predicted(kind, n, report.parameters), **dataclasses.asdict(report)}
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{kind} {n}: {report.compile_s:.0f} s", file=sys.stderr, flush=True)
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    print("MB that a device sends in a step\n")
    print(f"| mesh | devices | predicted | counted | to other nodes | {' | '.join(kinds)} |")
    print("|---" * (5 + len(kinds)) + "|")
    for row in sorted(done(), key=lambda row: (row["kind"], row["devices"])):
        sent = row["collectives"]
        each = [sent[kind]["near"] + sent[kind]["far"] for kind in kinds]
        far = sum(sent[kind]["far"] for kind in kinds)
        cells = [row["predicted"], sum(each), far, *each]
        print("| " + " | ".join([row["kind"], str(row["devices"]), *(f"{cell / 1e6:.1f}" for cell in cells)]) + " |")


if __name__ == "__main__":
    main()
