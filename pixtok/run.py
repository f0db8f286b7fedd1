"""A run directory, here or in a bucket: `config.json`, and what may change when a run is resumed."""

import dataclasses
import fnmatch
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from pixtok.config import Experiment, flatten, from_json
from pixtok.data import packing
from pixtok.data.index import Dataset
from pixtok.errors import InputError
from pixtok.files import location, write

FREE = (
    "name",
    "data.path",  # the data sets themselves are compared, by their fingerprint
    "data.mix",
    "data.weights",  # the checkpoint knows since when which were in force
    "data.threads",
    "data.workers",
    "data.max_bad",
    "train.steps",
    "train.remat",
    "train.microbatches",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "checkpoint.",
    "mesh.",
    "deadline.",
    "profile.",
)
"""Settings that a resumed run may change: what a step computes from its batch stays as it is, to rounding, but for the
learning rate, whose schedule ends with `train.steps`."""
_LEFT = ("checkpoints", "stacks-*.txt", "bad.jsonl", "bad-*.jsonl", "*.partial")
"""What a run may leave that was killed before it had begun."""
_HERE = ("data.path", "data.mix", "data.threads", "data.workers")
"""Settings in which the processes of a run may differ."""


def data_fingerprint(datasets: Iterable[Dataset]) -> str:
    """Equal if and only if the data sets hold, one by one, the same documents of the same sizes."""
    digest = hashlib.sha256()
    for dataset in datasets:
        for name in ("dataset.json", "index.npz"):
            digest.update((dataset.path / name).read_bytes())
    return digest.hexdigest()


def _git_revision() -> str | None:
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def describe(
    experiment: Experiment, datasets: Sequence[Dataset], command: Sequence[str], vocabulary: str | None = None
) -> dict[str, Any]:
    """The experiment, and all that is needed to repeat it: `config.json`, and the manifest of each checkpoint.

    `vocabulary`: its fingerprint, for weights that came from elsewhere, and so without data sets.
    """
    packages = ("pixtok", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {
        "experiment": dataclasses.asdict(experiment),
        "data": {
            "fingerprint": data_fingerprint(datasets),
            "vocabulary": vocabulary or datasets[0].manifest.fingerprint,
            "rows": packing.VERSION,
        },
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in packages},
        },
        "git": _git_revision(),
        "command": list(command),
    }


def check_resumable(where: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises InputError when going on from one description under another would mix two different trainings."""
    new = dict(flatten(from_json(Experiment, now["experiment"])))
    for name, old in flatten(from_json(Experiment, before["experiment"])):
        if new[name] != old and not name.startswith(FREE):
            raise InputError(
                f"{where} was trained with {name} = {old}, and now it is {new[name]}: set --{name} {old} to "
                f"resume, or start anew with another --run_dir (--init {where} begins with its weights)"
            )
    if before["data"].get("rows") != now["data"]["rows"]:
        raise InputError(
            f"{where} was trained by a version of pixtok that puts other documents into a row: start anew with another "
            f"--run_dir (--init {where} begins with its weights)"
        )
    if before["data"] != now["data"]:
        paths = ", ".join((new["data.path"], *new["data.mix"]))
        raise InputError(
            f"{where} was trained on another data set than {paths}: give what it was trained on to resume, or start "
            f"anew with another --run_dir (--init {where} begins with its weights)"
        )


def identity(description: dict[str, Any]) -> str:
    """Equal on all processes that can train together: settings, data and versions, as JSON."""
    settings = flatten(from_json(Experiment, description["experiment"]))
    shared = {name: value for name, value in settings if not name.startswith(_HERE)}
    return json.dumps({**shared, "data": description["data"], "versions": description["versions"]})


def check_alike(identities: dict[int, str]) -> None:
    """Raises InputError when a process of a run would train something else than process 0."""
    first = json.loads(identities[0])
    for process, text in sorted(identities.items()):
        other = json.loads(text)
        if odd := [name for name in first if other[name] != first[name]]:
            name = odd[0]
            raise InputError(
                f"processes 0 and {process} differ in {name}, {first[name]} and {other[name]}: all hosts want the same "
                "experiment, data sets and versions"
            )


def write_json(path: epath.Path, content: Any) -> None:
    """Write a JSON file at once."""
    write(path, (json.dumps(content, indent=2) + "\n").encode())


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory that exists: any path, here or in a bucket."""

    path: epath.Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", location(self.path))

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """`config.json`.  Raises InputError when there is none."""
        file = self.path / "config.json"
        if not file.exists():
            raise InputError(
                f"{self.path} is not a run: it has no config.json; give a directory that `pixtok train` made"
            )
        try:
            content = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{file} is damaged ({error})") from None
        if not isinstance(content, dict) or not {"experiment", "data"} <= set(content):
            raise InputError(f"{file} is damaged: it holds no experiment")
        return content

    @property
    def experiment(self) -> Experiment:
        """The experiment that the run was started with.  Raises InputError when there is none."""
        return from_json(Experiment, self.content["experiment"])

    @property
    def checkpoints(self) -> epath.Path:
        """The folder of its checkpoints.  Raises InputError when there is none yet."""
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            raise InputError(f"{self.path} holds no checkpoint yet")
        return folder

    def datasets(self) -> list[Dataset]:
        """The data sets that it was trained on.  Raises InputError when one is not at hand."""
        paths = self.experiment.data.paths
        if not any(paths):
            raise InputError(f"{self.path} was converted and so has no data set of its own: give --data")
        for path in paths:
            if not Path(path).exists():
                raise InputError(
                    f"{path}, on which {self.path} was trained, is not here: give --data, or go to its folder"
                )
        return [Dataset(path) for path in paths]

    @property
    def is_new(self) -> bool:
        """Whether a run may begin here: nothing is here, or what one left that was killed before it had begun.

        Raises InputError when something else is here.
        """
        if not self.path.exists():
            return True
        left = (item.name for item in self.path.iterdir())
        if all(any(fnmatch.fnmatch(name, pattern) for pattern in _LEFT) for name in left) and not self.begun:
            return True
        return not self.content

    @property
    def begun(self) -> bool:
        """Whether it has a checkpoint."""
        folder = self.path / "checkpoints"
        return folder.is_dir() and any(item.name.isdigit() for item in folder.iterdir())

    @property
    def vocabulary_fingerprint(self) -> str:
        """Of the vocabulary that it was trained with."""
        return self.content["data"]["vocabulary"]
