"""Score a data set with a trained run."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from pixtok import likelihood, weights
from pixtok.config import Model
from pixtok.data import packing
from pixtok.data.index import Dataset
from pixtok.data.pipeline import Batch, Loader
from pixtok.errors import InputError
from pixtok.likelihood import Sums
from pixtok.run import Run

_RESAMPLES = 2000


def evaluate(
    run_dir: epath.PathLike, *, data: str | None = None, split: str = "validation", step: int | None = None
) -> dict[str, Any]:
    """Figures of `likelihood.figures` over a whole split, with their counts and 95 % intervals over documents.

    `data`: another data set than all of the run's own; `step`: another checkpoint than the latest.  Uses all
    devices of this machine, whatever the run was trained on.  Raises InputError.
    """
    run = Run(epath.Path(run_dir))
    settings, model = run.experiment.data, run.experiment.model
    if data is not None:
        settings = dataclasses.replace(settings, path=data, mix=(), weights=())
    datasets = [Dataset(data)] if data is not None else run.datasets()
    if datasets[0].manifest.fingerprint != run.vocabulary_fingerprint:
        raise InputError(
            f"{settings.path} was built with another vocabulary than {run_dir} was trained with: build it again with "
            "that --vocabulary"
        )
    # Figures are sums over documents: rows may be as large as an image needs.
    largest = max(packing.largest_image(dataset.index, model.window, settings.image_size) for dataset in datasets)
    windows = max(settings.windows, largest)
    settings = dataclasses.replace(settings, windows=windows, slots=max(settings.slots, largest + 2))
    program, step, params = weights.load(run, step, settings)
    loader = Loader(settings, model, split=split, batch_size=program.batch_size, seed=run.experiment.train.seed)
    bad, tables, owners = set(), [], []
    with loader.epoch() as batches:
        for batch in batches:
            bad |= {item.document for item in batch.bad}
            table_D, owner_D = _by_document(program.score(params, batch.rows), batch)
            tables.append(table_D)
            owners.append(owner_D)
    table_D = _joined(np.concatenate(tables), np.concatenate(owners))
    total = Sums(*table_D.sum(0))
    return {
        "run": str(run_dir),
        "step": step,
        "data": ", ".join(settings.paths),
        "split": split,
        **{name: float(value) for name, value in likelihood.figures(total, model).items()},
        "intervals": _intervals(table_D, model),
        "words": int(total.words),
        "first_pixels": int(total.first_pixels),
        "pixels": int(total.pixels),
        "documents": len(table_D),
        "bad": len(bad),
    }


def _by_document(sums_BS: Sums, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """→ (sums (D, …) of the documents or pieces in a batch, their numbers in the data set)."""
    segment_BS = batch.rows.segment_BS
    first_B = np.cumsum([0, *map(len, batch.documents)])
    owner_BS = first_B[:-1, None] + segment_BS - 1
    kept = segment_BS > 0
    table = np.stack([np.bincount(owner_BS[kept], array[kept], minlength=first_B[-1]) for array in sums_BS], axis=1)
    return table, np.array([number for row in batch.documents for number in row], np.int64)


def _joined(table: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Pieces of one document → one line."""
    _, line = np.unique(owner, return_inverse=True)
    return np.stack([np.bincount(line, column) for column in table.T], axis=1)


def _intervals(table_D: np.ndarray, model: Model) -> dict[str, list[float]]:
    """95 % intervals, by the bootstrap over documents (Efron 1979): percentiles of 2,000 resamples.

    A figure that rests on one document has none.  Resamples that lack a modality which the whole has are left out.
    """
    if len(table_D) < 2:
        return {}
    shared = Sums(*np.where((table_D > 0).sum(0) == 1, 0, table_D.sum(0)))
    defined = likelihood.figures(shared, model)
    rng, count = np.random.default_rng(0), len(table_D)
    chunk = max(1, 10**7 // count)
    drawn = [
        rng.multinomial(count, np.full(count, 1 / count), size=min(chunk, _RESAMPLES - start)) @ table_D
        for start in range(0, _RESAMPLES, chunk)
    ]
    resampled = np.concatenate(drawn)
    resampled = resampled[((resampled > 0) | (table_D.sum(0) == 0)).all(1)]
    figures = likelihood.figures(Sums(*resampled.T), model) if len(resampled) else {}
    return {name: np.percentile(value, [2.5, 97.5]).tolist() for name, value in figures.items() if name in defined}
