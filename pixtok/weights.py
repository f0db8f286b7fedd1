"""The weights of a run, for everything but training."""

import dataclasses
import hashlib
from typing import Any, Literal

import jax
import numpy as np

from pixtok import programs, sharding
from pixtok.checkpoint import Checkpoints
from pixtok.config import Data, Experiment, Mesh, Model, from_json
from pixtok.errors import InputError
from pixtok.run import Run
from pixtok.step import Program


def load(
    run: Run,
    step: int | None,
    data: Data | None = None,
    batch_size: int | None = None,
    dtype: Literal["bfloat16", "float32"] | None = None,
) -> tuple[Program, int, Any]:
    """(a program for all devices of this machine, whatever the run was trained on; step; weights).

    `step` None: the latest.  `data`: other rows than those it was trained on.  The program takes batches of
    `batch_size`, None: the run's, rounded up to a multiple of the devices; it computes in `dtype`, None: the run's.
    Raises InputError when there is no such checkpoint.
    """
    programs.keep()
    experiment = run.experiment
    devices = jax.device_count()
    batch_size = -(-(batch_size or experiment.train.batch_size) // devices) * devices
    experiment = dataclasses.replace(
        experiment,
        data=data or experiment.data,
        train=dataclasses.replace(
            experiment.train, batch_size=batch_size, microbatches=1, dtype=dtype or experiment.train.dtype
        ),
        mesh=Mesh(),
    )
    program = Program(experiment, sharding.make_mesh(experiment.mesh))
    return program, *restore(run, step, program.abstract.params)


def restore(run: Run, step: int | None, abstract: Any) -> tuple[int, Any]:
    """(step, weights) of a run; None: the latest step.  Raises InputError when they are not those of its config."""
    with Checkpoints(run.checkpoints) as checkpoints:
        step = checkpoints.choose(step)
        ours, theirs = run.content, checkpoints.manifest(step)
        models = [from_json(Model, content["experiment"]["model"]) for content in (ours, theirs)]  # of any version
        if models[0] != models[1] or ours["data"] != theirs["data"]:
            saved = checkpoints.folder / str(step)
            raise InputError(f"{saved} was not saved by the run that {run.path / 'config.json'} describes")
        return step, checkpoints.restore_params(step, abstract)


def initial(run: Run, experiment: Experiment, mesh: jax.sharding.Mesh, abstract: Any) -> Any:
    """The weights of a run for an experiment that may predict less than it, and so has fewer: the latest."""
    theirs = Program(dataclasses.replace(experiment, model=run.experiment.model), mesh).abstract.params
    return _part(restore(run, None, theirs)[1], abstract)


def _part(whole: Any, wanted: Any) -> Any:
    """What of a tree of dicts another has."""
    return {name: _part(whole[name], inner) for name, inner in wanted.items()} if isinstance(wanted, dict) else whole


def fingerprint(params: Any) -> str:
    """Equal for two sets of weights if and only if they are the same, bit for bit."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()
