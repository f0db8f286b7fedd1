"""One process of a job of several: trains on mesh after mesh, and writes losses to OUT-PROCESS.json.

python tests/one_of_several.py OUT EXPERIMENT.json MESH.json …
"""

import dataclasses
import json
import sys
from pathlib import Path

from pixtok import cluster, likelihood, sharding
from pixtok.config import Experiment, Mesh, from_json
from pixtok.data.pipeline import Loader
from pixtok.step import Program


def trained(experiment: Experiment, steps: int) -> list[list[float]]:
    """Losses and gradient norms of so many steps, and the validation loss after them."""
    train = experiment.train
    program = Program(experiment, sharding.make_mesh(experiment.mesh))
    split = {"batch_size": train.batch_size, "seed": train.seed}
    loader = Loader(experiment.data, experiment.model, split="train", **split)
    state, seen = program.init(), []
    for step in range(steps):
        rows = program.put(loader.batch(step, program.positions).rows)
        state, metrics = program.train_step(state, rows, stop=7 * (cluster.index() == 1))
        assert int(metrics.stop) == 7 * (cluster.count() > 1), "what one process wants, all hear of"
        seen.append([float(likelihood.loss(metrics.sums, experiment.model)), float(metrics.grad_norm)])
    validation = Loader(experiment.data, experiment.model, split="validation", **split)
    with validation.epoch(None, program.positions) as batches:
        figures = likelihood.figures(program.evaluate(state.params, batches), experiment.model)
    return [*seen, [float(figures["loss"]), 0.0]]


def main() -> None:
    out, experiment, *meshes = sys.argv[1:]
    cluster.join(120, 120)
    found = [
        trained(
            dataclasses.replace(from_json(Experiment, json.loads(experiment)), mesh=from_json(Mesh, json.loads(mesh))),
            3,
        )
        for mesh in meshes
    ]
    Path(f"{out}-{cluster.index()}.json").write_text(json.dumps(found))
    cluster.barrier("end", 120)


if __name__ == "__main__":
    main()
