"""How long the study takes here: of each arm a short training, and a few images that it reads.

python experiments/reading/pace.py                              # of all stages; one arm on each core
python experiments/reading/pace.py tuning main longer ablation  # of these

A run takes what its arm takes to begin, to validate and to save, and so much for each step and for each image that it
reads.  Nothing is kept.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np

import arms
import source
import study
from pixtok.errors import ExitCode, InputError
from pixtok.goodput import age

PART = 60
"""Of the images that cost an arm what `arms.IMAGES` cost `words`, it is trained on one in so many."""
_BATCH, _BATCHES = 64, 5


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds of one arm on one core."""

    begin: float
    """Processes, compilation, validation, checkpoints."""
    step: float
    reader: float
    """Until it can read."""
    image: float
    """That is read."""

    def minutes(self, job: study.Job) -> float:
        """Of a run."""
        images = sum(source.TESTS[name] * len(source.contrasts(name)) for name in job.reads) * len(source.HEIGHTS)
        reading = self.reader + self.image * images if images else 0.0
        return (self.begin + self.step * (job.images // arms.BATCH) + reading) / 60


def measure(arm: str) -> Pace:
    """By a run like those of the study, all on the cores of this process.  Exits as training does where it fails."""
    steps = max(2, arms.matched(arm) // PART // arms.BATCH)
    job = study.Job(f"pace-{arm}", arm, steps * arms.BATCH, 0, min(study.RATES))
    folder, imports = study.folder(job), age()
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    if code := study.train(job):
        sys.exit(code)
    trained = time.monotonic()
    seconds = json.loads((folder / "goodput.json").read_text())["seconds"]
    stepping = seconds["step"] + seconds["data"]
    with np.load(study.DATA / "test.npz") as test:
        pictures = test["image"][: (1 + _BATCHES) * _BATCH]
    reader = study.reader(job)
    reader.read(pictures[:_BATCH])
    ready = time.monotonic()
    reader.read(pictures[_BATCH:])
    image = (time.monotonic() - ready) / len(pictures[_BATCH:])
    shutil.rmtree(folder)
    step = stepping / (steps - 1)  # the first one compiles
    return Pace(imports + trained - begin - stepping, step, ready - trained - image * _BATCH, image)


def measured(core: int, arm: str) -> Pace:
    """On one core, and said.  Raises InputError."""
    ended = subprocess.run([*study.on(core), __file__, arm], capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise InputError(f"{arm}: {said[-1]}")
    pace = Pace(**json.loads(ended.stdout.splitlines()[-1]))
    print(
        f"{arm}: {pace.begin:.0f} s to begin, {1000 * pace.step:.1f} ms a step of {arms.BATCH} images; "
        f"{pace.reader:.0f} s until it reads, {1 / pace.image:,.0f} images a second",
        flush=True,
    )
    return pace


def main(stages: list[str]) -> None:
    """Measure all arms of the stages, and print how long their runs take, beside what is recorded of runs.

    Raises InputError.
    """
    known = {"tuning": study.all_tuning, **study.STAGES}
    if unknown := set(stages) - known.keys():
        raise InputError(f"stages are {', '.join(known)}; got {', '.join(sorted(unknown))}")
    jobs = {stage: known[stage]() for stage in stages or known}
    if not (study.DATA / "test.npz").exists():
        raise InputError(f"{study.DATA} has no test.npz: python experiments/reading/source.py CIFAR makes it")
    every = [job for some in jobs.values() for job in some]
    names = sorted({job.arm for job in every})
    paces = dict(zip(names, study.on_cores(measured, names), strict=True))
    print(f"\n{'stage':10}{'runs':>6}{'core hours':>12}{'recorded':>10}{'longest run':>13}")
    for stage, some in {**jobs, "all": every}.items():
        here = [paces[job.arm].minutes(job) for job in some]
        there = [sum(found["minutes"].values()) for job in some if (found := study.result(job)) is not None]
        recorded = f"{sum(there) / 60:.1f}" if len(there) == len(some) else "-"
        print(f"{stage:10}{len(some):6}{sum(here) / 60:12.1f}{recorded:>10}{max(here):9.0f} min")
    cores = len(os.sched_getaffinity(0))
    hours = sum(paces[job.arm].minutes(job) for job in every) / 60
    print(f"{hours / cores:.1f} hours of {cores} cores")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in arms.MODELS:
        print(json.dumps(dataclasses.asdict(measure(sys.argv[1]))))
    else:
        try:
            main(sys.argv[1:])
        except InputError as error:
            print(error, file=sys.stderr)
            sys.exit(ExitCode.BAD_INPUT)
