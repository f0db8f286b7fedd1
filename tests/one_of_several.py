"""One process of a job of several: trains on mesh after mesh, and prints the losses as one line of JSON each.

python tests/one_of_several.py EXPERIMENT.json MESH.json …
"""

import dataclasses
import json
import sys

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
    experiment = from_json(Experiment, json.loads(sys.argv[1]))
    cluster.join(60, 60)
    for mesh in sys.argv[2:]:
        made = dataclasses.replace(experiment, mesh=from_json(Mesh, json.loads(mesh)))
        print(json.dumps(trained(made, 3)), flush=True)
    cluster.barrier("end", 60)


if __name__ == "__main__":
    main()
