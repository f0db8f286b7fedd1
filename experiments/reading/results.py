"""What all runs read."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

import source
import stats
import study
from pixtok.errors import InputError

HEIGHT_K = np.array(source.HEIGHTS, float)


class Results:
    """What all runs read, by test set."""

    def __init__(self, folder: Path = study.DATA, within: str = "") -> None:
        """`folder`: where the test images are; `within`: the folder of `study.RESULTS`."""
        self._tests, self._within = {}, within
        for name in source.TESTS:
            if not (folder / f"{name}.npz").exists():
                raise InputError(f"{folder} has no {name}.npz: python experiments/reading/source.py CIFAR makes it")
            with np.load(folder / f"{name}.npz") as test:
                self._tests[name] = dict(test)

    def image(self, number: int) -> tuple[np.ndarray, str]:
        """One of `test`, and what it says."""
        return self._tests["test"]["image"][number], str(self._tests["test"]["text"][number])

    def results(self, cell: str) -> list[dict[str, Any]]:
        """Of its seeds: `CELL-1`, `CELL-2`, …; of another single run, its name; of `study.POOLED`, of all its cells."""
        cells = study.POOLED.get(cell, (cell,))
        jobs = [job for job in study.all_jobs() for name in cells if job.name in (name, f"{name}-{job.seed}")]
        return [found for job in jobs if (found := study.result(job, self._within)) is not None]

    def cell(self, name: str, test: str = "test", contrast: int | None = None) -> stats.Cell | None:
        """What its seeds read of a test, or of the images of one contrast there."""
        found = [one["tests"][test]["distances"] for one in self.results(name) if test in one["tests"]]
        if not found:
            return None
        test_of = self._tests[test]
        kept_N = test_of["contrast"] == contrast if contrast else np.full(len(test_of["text"]), True)
        distance_TN = np.stack([study.decode(one) for one in found])[:, kept_N]
        return stats.Cell(distance_TN, np.char.str_len(test_of["text"][kept_N]), test_of["height"][kept_N])

    def whole(self, name: str) -> bool:
        """Whether all seeds of a cell are there."""
        return len([one for one in self.results(name) if one["tests"]]) == study.seeds(name)

    @functools.cache  # noqa: B019 - one object, as long as the page is made
    def summary(self, name: str, test: str = "test") -> stats.Summary | None:
        """The numbers of a cell."""
        cell = self.cell(name, test)
        return None if cell is None else stats.summary(cell)
