"""The training loop against its bare jitted step, on one process and on two: what the loop costs, and how both scale.

python experiments/weak_scaling.py [STEPS] [ROUNDS]       # 20 minutes on 2 cores; STEPS 25, ROUNDS 5

The preset `tiny` on rendered words, 4 rows and one CPU core for each process, so that with more processes the work
grows as the machine does.  Loop and bare step take turns to be first; the fastest of ROUNDS of each counts, for what
else a machine does only adds, and all rounds are kept.  The loop's overhead is what loader, logging, deadlines and the
agreement on when to stop add.  Results go to results/weak_scaling.jsonl.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from etils import epath

from pixtok import cluster, metrics, sharding
from pixtok.config import PRESETS, Checkpoint, Data, Experiment, Train
from pixtok.data.build import Settings, build
from pixtok.data.pipeline import Loader
from pixtok.step import Program
from pixtok.train import Trainer

RESULTS = Path(__file__).parent / "results" / "weak_scaling.jsonl"


def bare(made: Experiment) -> float:
    """Seconds of a step that does nothing but its arithmetic."""
    program = Program(made, sharding.make_mesh(made.mesh))
    step, control = program.lower_train_step().compile(), program.control()
    loader = Loader(made.data, made.model, split="train", batch_size=made.train.batch_size, seed=0)
    rows, state = program.put(loader.batch(0, program.positions).rows), program.init()
    state, figures = step(state, rows, control)
    jax.block_until_ready(figures)
    begin = time.perf_counter()
    for _ in range(made.train.steps):
        state, figures = step(state, rows, control)
    jax.block_until_ready(figures)
    return (time.perf_counter() - begin) / made.train.steps


def looped(made: Experiment, run_dir: str) -> float:
    """Seconds of a step of `pixtok train`, but for the first ones."""
    Trainer(made, run_dir).run()
    lines = metrics.read(epath.Path(run_dir) / "metrics.jsonl")
    stamps = [line["seconds"] for line in lines if line["split"] == "train"]
    return (stamps[-1] - stamps[0]) / (made.train.log_every * (len(stamps) - 1))


def worker(folder: str, steps: int, rounds: int) -> None:
    cluster.join(60, 60)
    made = Experiment(
        "loop",
        PRESETS["tiny"],
        Data(f"{folder}/data", slots=96, windows=64, threads=1),
        Train(steps, 4 * cluster.count(), warmup_steps=1, dtype="float32", log_every=5, eval_every=steps),
        Checkpoint(every=steps),
    )
    times = {"loop": [], "bare": []}
    for r in range(rounds):
        for kind in list(times)[:: -1 if r % 2 else 1]:
            seconds = looped(made, f"{folder}/{cluster.count()}-{r}") if kind == "loop" else bare(made)
            times[kind].append(round(1000 * seconds, 1))
    if cluster.lead():
        loop_ms, bare_ms = (min(each) for each in times.values())
        row = {"processes": cluster.count(), "rows": made.train.batch_size, "loop_ms": loop_ms, "bare_ms": bare_ms}
        print(json.dumps({**row, "overhead_%": round(100 * (loop_ms / bare_ms - 1), 2), "rounds_ms": times}))
    cluster.barrier("measured", 60)


def main(steps: int = 25, rounds: int = 5) -> None:
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        build("glyphs", Path(folder) / "data", Settings(limit=512))
        lines = []
        for count in range(1, min(2, len(cores)) + 1):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            running = []
            for index, core in enumerate(cores[:count]):
                env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
                if count > 1:
                    job = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(count), "PROCESS_ID": str(index)}
                    env |= {f"JAX_{name}": value for name, value in job.items()}
                command = ["taskset", "-c", str(core), sys.executable, __file__, folder, str(steps), str(rounds)]
                running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
            outputs = [process.communicate()[0] for process in running]
            assert not any(process.returncode for process in running), "a process failed"
            lines.append(outputs[0].splitlines()[-1])
            print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        worker(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
