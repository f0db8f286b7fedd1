"""Score a data set with a trained run."""

import dataclasses
from pathlib import Path
from typing import Any

from pixtok import likelihood, sharding
from pixtok.checkpoint import Checkpoints
from pixtok.config import Mesh
from pixtok.data.pipeline import Loader
from pixtok.errors import InputError
from pixtok.run import Run
from pixtok.step import Program


def evaluate(
    run_dir: Path, *, data: str | None = None, split: str = "validation", step: int | None = None
) -> dict[str, Any]:
    """Figures of the reference objective over a whole split, with their counts.

    `data`: another data set than the run's own; `step`: another checkpoint than the latest.  Uses all devices
    of this machine, whatever the run was trained on.  Raises InputError.
    """
    run = Run(run_dir)
    experiment = dataclasses.replace(run.experiment, mesh=Mesh())
    if data is not None:
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path=data))
    train = experiment.train
    loader = Loader(experiment.data, experiment.model, split=split, batch_size=train.batch_size, seed=train.seed)
    if loader.dataset.manifest.fingerprint != run.vocabulary_fingerprint:
        raise InputError(
            f"{experiment.data.path} was built with another vocabulary than the data of {run_dir}: build it again with "
            f"that one (`--vocabulary`, {run.experiment.data.path} holds it)"
        )
    folder = run.checkpoints
    program = Program(experiment, sharding.make_mesh(experiment.mesh))
    with Checkpoints(folder) as checkpoints:
        step, params = checkpoints.restore_params(step, program.abstract.params)
    bad = 0
    with loader.epoch() as batches:

        def counted():
            nonlocal bad
            for batch in batches:
                bad += len(batch.bad)
                yield batch

        sums = program.evaluate(params, counted())
    return {
        "run": str(run_dir),
        "step": step,
        "data": experiment.data.path,
        "split": split,
        **likelihood.figures(sums),
        "words": int(sums.words),
        "first_pixels": int(sums.first_pixels),
        "documents": loader.documents,
        "bad": bad,
    }
