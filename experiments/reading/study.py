"""All runs of the study, and what each reads: one file of results for each.

python experiments/reading/source.py CIFAR                        # the data, once
python experiments/reading/study.py tuning main longer again more half ablation  # all not done, one on each core
python experiments/reading/study.py words-again-6 vit8-again-6    # these runs
python experiments/reading/study.py                               # what there is, and what is done

A run that was interrupted goes on where it was; one whose settings, data or beginning have changed is trained anew.
Runs are in runs/reading, each with a log; results in experiments/results/reading: commit them as they come.
"""

import base64
import dataclasses
import datetime
import hashlib
import json
import math
import os
import platform
import queue
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath

import arms
import source
from pixtok import flops, weights
from pixtok.errors import ExitCode, InputError
from pixtok.files import progress_bar, write
from pixtok.reader import Reader
from pixtok.run import Run
from pixtok.words import Bytes

T = TypeVar("T")
R = TypeVar("R")
DATA = Path("datasets/reading")
RUNS = Path("runs/reading")
RESULTS = Path(__file__).parents[1] / "results" / "reading"
REPEATED = "repeated"
"""Folder there of what came out once more (PROTOCOL.md, fifth addendum)."""
RATES = (5e-4, 1e-3, 2e-3)
"""First tried; then half and twice, as long as the best is at an end."""
LABELS = (1000, 4000, 16000)
MOST_RATES = 6
TUNING = 3
"""Of the images of a run, one in so many is what its learning rate is chosen on."""
_MISTAKES = 24


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    arm: str
    images: int
    seed: int
    rate: float = 0.0
    """0: that which tuning chose for `tuned`."""
    tuned: str = ""
    data: str = "train"
    init: str = ""
    """The job whose weights it begins with."""
    reads: tuple[str, ...] = ()
    """The tests that it reads at the end."""


def cells() -> dict[str, tuple[str, int]]:
    """What is tuned and run: a name, as in `vit8-data` → (arm, images)."""
    data = {f"{arm}-data": (arm, arms.IMAGES) for arm in ("words", "window16", "vit8", "vit16", "vit16f")}
    return data | {f"{arm}-flops": (arm, arms.matched(arm)) for arm in ("vit16", "full", "upw")}


COMPARED = ("words-data", "vit16-data", "vit8-data")
GUARD = "vit8-long"
"""The run that shows that patches can read this."""
LONGER = {
    GUARD: ("vit8", 2 * arms.IMAGES),
    "words-long": ("words", 150_000),
    "vit8-150000": ("vit8", 150_000),
    "vit16-long": ("vit16", 150_000),
}
"""More images, at the learning rates for `arms.IMAGES`: the guard, and H1 and H2 again (PROTOCOL.md, addenda)."""
AGAIN = {"words-again": "words-long", "vit8-again": "vit8-150000", "vit16-again": "vit16-long"}
"""The same with seeds that nothing was chosen by: H1 and H2 once more (PROTOCOL.md, third addendum)."""
MORE = {"words-more": "words-long", "vit8-more": "vit8-150000"}
"""H2 of eight more (PROTOCOL.md, fourth addendum)."""
POOLED: dict[str, tuple[str, ...]] = {cell.replace("again", "seven"): (of, cell) for cell, of in AGAIN.items()}
POOLED |= {cell.replace("more", "fifteen"): (of, cell.replace("more", "again"), cell) for cell, of in MORE.items()}
POOLED |= {f"{arm}-twelve": (f"{arm}-again", f"{arm}-more") for arm in ("words", "vit8")}
"""The seeds of these cells together: 1 to 7, 1 to 15, 4 to 15."""
HALF = {"words-half": "words-long"}
"""At half of what tuning chose first, of seeds 4 to 15: H2 for that rate (PROTOCOL.md, sixth addendum)."""
HALF_RATE = 5e-4
_SEEDS, _FRESH, _LAST = range(1, 4), range(4, 8), range(8, 16)
_READS = ("test", "held-out")


def seeds(cell: str) -> int:
    """How many: five of what the hypotheses compare, four, eight, twelve of what repeats them, three of all others."""
    if cell in POOLED:
        return sum(map(seeds, POOLED[cell]))
    of_some = {GUARD: 1} | dict.fromkeys(COMPARED, 5) | dict.fromkeys(AGAIN, len(_FRESH))
    of_some |= dict.fromkeys(MORE, len(_LAST)) | dict.fromkeys(HALF, len(_FRESH) + len(_LAST))
    return of_some.get(cell, len(_SEEDS))


def main_jobs() -> list[Job]:
    """The guard, and all arms, each seed of all before the next."""
    arm, most = LONGER[GUARD]
    return [
        Job(f"{GUARD}-1", arm, most, 1, tuned=f"{arm}-data", reads=("test",)),
        *(
            Job(
                f"{cell}-{seed}",
                arm,
                images,
                seed,
                tuned=cell,
                reads=(*_READS, "contrast") if arm == "words" else _READS,
            )
            for seed in range(1, 1 + max(map(seeds, cells())))
            for cell, (arm, images) in cells().items()
            if seed <= seeds(cell)
        ),
    ]


def _after_more(cell: str, of: str, numbers: Iterable[int], rate: float = 0.0) -> list[Job]:
    arm, images = LONGER[of]
    return [Job(f"{cell}-{seed}", arm, images, seed, rate, f"{arm}-data", reads=_READS) for seed in numbers]


def longer() -> list[Job]:
    """Those of the protocol's first two addenda, long ones first: no core waits for one at the end."""
    return [job for cell in LONGER if cell != GUARD for job in _after_more(cell, cell, _SEEDS)]


def again() -> list[Job]:
    """Those of its third: fresh seeds."""
    return [job for cell, of in AGAIN.items() for job in _after_more(cell, of, _FRESH)]


def more() -> list[Job]:
    """Those of its fourth, each seed of both before the next."""
    return [job for seed in _LAST for cell, of in MORE.items() for job in _after_more(cell, of, range(seed, seed + 1))]


def half() -> list[Job]:
    """Those of its sixth: the fresh seeds of the third and fourth, at another rate."""
    return [job for cell, of in HALF.items() for job in _after_more(cell, of, (*_FRESH, *_LAST), HALF_RATE)]


def ablations() -> list[Job]:
    """Of one seed each: fold factors, windows, what the pixel decoder sees, and pretraining for few labels."""
    folds, test = ("test", "contrast"), ("test",)
    jobs = [Job(f"fold{f}-1", f"fold{f}", arms.IMAGES, 1, tuned="words-data", reads=folds) for f in arms.FOLDS]
    others = ("window4", "last")
    jobs += [Job(f"{arm}-1", arm, arms.matched(arm), 1, tuned="words-data", reads=test) for arm in others]
    jobs += [Job("local-1", "local", arms.matched("local"), 1, tuned="full-flops", reads=test)]
    jobs += [Job("pretrained", "full", arms.matched("full"), 1, tuned="full-flops", data="unlabelled")]
    for count in LABELS:
        few = {"images": max(LABELS), "seed": 1, "data": f"labels-{count}", "reads": test}
        jobs += [Job(f"words-{count}", "words", tuned="words-data", **few)]
        jobs += [Job(f"words-{count}-pretrained", "words", tuned="words-data", init="pretrained", **few)]
        jobs += [Job(f"vit8-{count}", "vit8", tuned="vit8-data", **few)]
    return jobs


STAGES = {"main": main_jobs, "longer": longer, "again": again, "more": more, "half": half, "ablation": ablations}
"""After tuning: name → jobs."""


def all_jobs() -> list[Job]:
    """All that count."""
    return [job for jobs in STAGES.values() for job in jobs()]


def repeated_jobs() -> list[Job]:
    """All without those of fresh seeds: after tuning, what is trained once more."""
    return [job for stage in ("main", "longer", "ablation") for job in STAGES[stage]()]


def _tuning(cell: str, rate: float) -> Job:
    arm, images = cells()[cell]
    few = max(arms.BATCH, images // TUNING // arms.BATCH * arms.BATCH)
    return Job(f"tuning-{cell}-{rate:.5f}", arm, few, 0, rate)


def tuning(cell: str) -> Iterator[Job]:
    """Rates to try, the next one after the results of those before."""
    yield from (_tuning(cell, rate) for rate in RATES)
    while True:
        best, rates = chosen(cell), sorted(tried(cell))
        if best not in (rates[0], rates[-1]) or len(rates) >= MOST_RATES:
            return
        yield _tuning(cell, best / 2 if best == rates[0] else best * 2)


def tried(cell: str, within: str = "") -> dict[float, dict[str, Any]]:
    """Learning rate → what a run with it gave; of results in a folder of `RESULTS`."""
    files = (RESULTS / within).glob(f"tuning-{cell}-*.json")
    rates = [json.loads(file.read_text())["settings"]["rate"] for file in files]
    jobs = {rate: _tuning(cell, rate) for rate in sorted(rates)}
    return {rate: found for rate, job in jobs.items() if (found := result(job, within)) is not None}


def all_tuning() -> list[Job]:
    """Of all cells: the rates that were tried, at first those to try."""
    return [_tuning(cell, rate) for cell in cells() for rate in sorted({*RATES, *tried(cell)})]


def chosen(cell: str, within: str = "") -> float:
    """The learning rate of a cell.  Raises InputError before it is tuned."""
    found = tried(cell, within)
    if len(found) < len(RATES):
        raise InputError(f"{cell} is not tuned yet: python experiments/reading/study.py tuning")
    return min(found, key=lambda rate: found[rate]["validation"])


def settings(job: Job, within: str = "") -> dict[str, Any]:
    """All that its result depends on."""
    rate = job.rate or chosen(job.tuned, within)
    train = dataclasses.asdict(arms.config(job.arm, job.images, rate, job.seed).train)
    before = _before(job)
    return {
        **{name: getattr(job, name) for name in ("arm", "images", "seed", "data")},
        "rate": rate,
        "model": dataclasses.asdict(arms.MODELS[job.arm]),
        "schedule": {name: value for name, value in train.items() if not name.startswith(("log", "eval"))},
        "source": source.VERSION,
        "reads": list(job.reads),
        "init": None if before is None else settings(before, within),
    }


def _before(job: Job) -> Job | None:
    """The job that it begins with."""
    return next((one for one in ablations() if one.name == job.init), None)


def _file(job: Job, within: str = "") -> Path:
    return RESULTS / within / f"{job.name}.json"


def result(job: Job, within: str = "") -> dict[str, Any] | None:
    """What a run of these settings gave, None where there is nothing yet; in a folder of `RESULTS`."""
    if not _file(job, within).exists():
        return None
    found = json.loads(_file(job, within).read_text())
    return found if found["settings"] == json.loads(json.dumps(settings(job, within))) else None


def folder(job: Job) -> Path:
    """Its run directory: another for other settings."""
    told = hashlib.sha256(json.dumps(settings(job), sort_keys=True).encode()).hexdigest()
    return RUNS / f"{job.name}-{told[:8]}"


def flags(job: Job) -> list[str]:
    """What `pixtok train` is told."""
    own, before = settings(job), _before(job)
    options = {name: own[name] for name in ("arm", "images", "rate", "seed")} | {"data": DATA / job.data}
    init = {} if before is None else {"init": folder(before)}
    pairs = (options | init | {"run_dir": folder(job)}).items()
    return [word for name, value in pairs for word in (f"--{name}", f"{value}")]


def train(job: Job) -> int:
    """By `pixtok train`; its exit code."""
    return subprocess.run([sys.executable, "-m", "pixtok", "train", arms.__file__, *flags(job)]).returncode


def reader(job: Job) -> Reader:
    """With the weights that training left."""
    _, _, params = weights.load(Run(folder(job)), None)  # pyright: ignore[reportArgumentType]
    return Reader(arms.MODELS[job.arm], params, Bytes(), limit=4)


def run(job: Job) -> None:
    """Train, read, and write the result.  Exits with the code of training that does not end."""
    code, loss = train(job), math.inf  # of a rate at which training does not stay finite
    if code not in (ExitCode.DONE, ExitCode.NOT_FINITE):
        sys.exit(code)
    if code == ExitCode.DONE:
        loss = json.loads((folder(job) / "summary.json").read_text())["validation"]["nats_word"]
    begin, tests = time.monotonic(), {}
    if job.reads and math.isfinite(loss):
        reads = reader(job)
        tests = {name: _read(reads, name) for name in job.reads}
    trained = json.loads((folder(job) / "goodput.json").read_text())["wall"]
    found = {
        "settings": settings(job),
        "validation": loss,
        "parameters": flops.parameters(arms.MODELS[job.arm]),
        "gflop_an_image": arms.gflop(job.arm),
        "minutes": {"training": round(trained / 60, 1), "reading": round((time.monotonic() - begin) / 60, 1)},
        "made": f"{datetime.date.today()}, Python {platform.python_version()}, jax {jax.__version__}, one CPU core",
        "tests": tests,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write(epath.Path(_file(job)), (json.dumps(found) + "\n").encode())


def _read(reader: Reader, name: str) -> dict[str, Any]:
    with np.load(DATA / f"{name}.npz") as test:
        pictures, texts = test["image"], test["text"].tolist()
    with progress_bar("reading") as bar:
        task = bar.add_task("", total=len(texts), note=f"images of {name}")
        found = reader.read(pictures, progress=lambda some: bar.advance(task, some))
    distances = [distance(one, text) for one, text in zip(found, texts, strict=True)]
    wrong = [[number, found[number]] for number, far in enumerate(distances) if far]
    return {"distances": encode(distances), "wrong": wrong[:: max(1, len(wrong) // _MISTAKES)][:_MISTAKES]}


def distance(one: str, other: str) -> int:
    """Levenshtein's: characters put in, left out or changed."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def encode(distances: list[int]) -> str:
    """One byte for each image, compressed; 0: read as it is."""
    return base64.b64encode(zlib.compress(bytes(distances), 9)).decode()


def decode(text: str) -> np.ndarray:
    """The inverse of `encode`, uint8."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def _chains(stage: str) -> list[Iterator[Job]]:
    """Jobs of a stage; those of one chain come one after another."""
    if stage == "tuning":
        return [tuning(cell) for cell in cells()]
    if single := [job for job in all_jobs() if job.name == stage]:
        return [iter(single)]
    if stage not in STAGES:
        raise InputError(f"a stage is tuning, {', '.join(STAGES)}, or one run; got {stage}")
    ours = STAGES[stage]()
    after = [job for job in ours if job.name == "pretrained" or job.init]
    return [iter(after), *(iter([job]) for job in ours if job not in after)]


def _all(chains: list[Iterator[Job]]) -> None:
    """All their jobs, one on each core.  A run that fails ends its chain alone; raises InputError then."""

    def one(core: int, jobs: Iterator[Job]) -> str:
        for job in jobs:
            if result(job) is None:
                log = Path(f"{folder(job)}.log")  # a rate has a point in it
                log.parent.mkdir(parents=True, exist_ok=True)
                command = [*on(core), __file__, json.dumps(dataclasses.asdict(job))]
                with log.open("a") as file:
                    code = subprocess.run(command, stdout=file, stderr=file).returncode
                if code:
                    return f"{job.name} ended with exit code {code}, see {log}"
            print(f"{job.name}: done\n", end="", flush=True)  # at once: other threads print too
        return ""

    failed = [said for said in on_cores(one, chains) if said]
    if failed:
        raise InputError(f"{'; '.join(failed)}; run again to go on")


def on(core: int) -> list[str]:
    """What begins a Python command that stays on a core."""
    return ["taskset", "-c", str(core), sys.executable]


def on_cores(work: Callable[[int, T], R], items: Iterable[T]) -> Iterator[R]:
    """`work(core, item)` of each in order, one at a time on each core."""
    free = queue.SimpleQueue[int]()
    cores = sorted(os.sched_getaffinity(0))
    for core in cores:
        free.put(core)

    def one(item: T) -> R:
        core = free.get()
        try:
            return work(core, item)
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        yield from pool.map(one, items)


def main(words: list[str]) -> None:
    """Of the command line.  Raises InputError."""
    if not words:
        for job in all_jobs():
            print(f"{'done' if result(job) else '-':5} {job.name}")
    elif words[0].startswith("{"):
        run(Job(**json.loads(words[0])))
    else:
        stages = {stage: _chains(stage) for stage in words}
        _all(stages.pop("tuning", []))  # what the others take their learning rates from
        _all([chain for chains in stages.values() for chain in chains])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
