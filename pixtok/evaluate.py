"""Score a data set with a trained run."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from pixtok import likelihood, sharding
from pixtok.checkpoint import Checkpoints
from pixtok.config import Mesh
from pixtok.data import packing
from pixtok.data.index import Dataset
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
    experiment = run.experiment
    settings, model = experiment.data, experiment.model
    if data is not None:
        settings = dataclasses.replace(settings, path=data)
    dataset = Dataset(settings.path)
    if dataset.manifest.fingerprint != run.vocabulary_fingerprint:
        raise InputError(
            f"{settings.path} was built with another vocabulary than {experiment.data.path}, on which {run_dir} was "
            "trained: build it again with the --vocabulary of that one"
        )
    # Figures are sums over documents: rows may be as large as an image needs, and batches as the devices like.
    largest = packing.largest_image(dataset.index, model.window, settings.image_size)
    windows = max(settings.windows, largest)
    settings = dataclasses.replace(settings, windows=windows, slots=max(settings.slots, largest + 2))
    devices = jax.device_count()
    batch_size = -(-experiment.train.batch_size // devices) * devices
    train = dataclasses.replace(experiment.train, batch_size=batch_size, microbatches=1)
    experiment = dataclasses.replace(experiment, data=settings, train=train, mesh=Mesh())
    loader = Loader(settings, model, split=split, batch_size=batch_size, seed=train.seed)
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
        "data": settings.path,
        "split": split,
        **likelihood.figures(sums),
        "words": int(sums.words),
        "first_pixels": int(sums.first_pixels),
        "documents": loader.documents,
        "bad": bad,
    }
