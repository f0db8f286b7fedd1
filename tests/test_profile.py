import json
from pathlib import Path

import jax
import pytest

from helpers import finish, run_cluster
from pixtok import cli
from pixtok.errors import NotFiniteError
from test_train import EXPERIMENT

# jax's reader of profiles warns of a type of its own, from C++, where an error would end the process (Python 3.12).
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


@pytest.fixture(scope="module")
def experiment(dataset, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(EXPERIMENT.format(path=str(dataset)))
    return path


def steps(file: Path) -> list[int]:
    """Numbers of the steps in a profile."""
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events if event.name == "train"]
    return sorted(dict(event.stats)["step_num"] for event in events)


def profiles(run_dir: Path) -> list[Path]:
    return sorted(path for path in (run_dir / "profile").rglob("*") if path.is_file())


@pytest.mark.slow
def test_the_steps_that_are_asked_for_are_recorded(experiment, tmp_path, capsys):
    command = ["train", str(experiment), "--run_dir", str(tmp_path), "--train.steps", "4"]
    cli.run([*command, "--profile.start", "2", "--profile.steps", "2"])
    (file,) = profiles(tmp_path)
    assert file.parent == tmp_path / "profile" / "plugins" / "profile" / "steps-2-3"
    assert file.name.startswith("0-")
    assert file.name.endswith(".xplane.pb")
    assert steps(file) == [2, 3]
    assert json.loads((tmp_path / "summary.json").read_text())["seconds"]["profile"] > 0
    # A resumed run may ask for others, up to the last.
    command[-1] = "6"
    cli.run([*command, "--profile.start", "6", "--profile.steps", "1"])
    assert [steps(file) for file in profiles(tmp_path)] == [[2, 3], [6]]
    capsys.readouterr()


def test_a_run_that_ends_early_leaves_what_was_recorded(experiment, tmp_path, capsys):
    command = ["train", str(experiment), "--run_dir", str(tmp_path), "--profile.start", "2", "--profile.steps", "9"]
    with pytest.raises(NotFiniteError):
        cli.run([*command, "--train.learning_rate", "1e30", "--train.clip_norm", "1e30"])
    (file,) = profiles(tmp_path)
    assert steps(file)[0] == 2
    capsys.readouterr()


@pytest.mark.slow
def test_every_process_records(experiment, tmp_path):
    options = ["--train.steps", 3, "--profile.start", 3, "--profile.steps", 1]
    running = run_cluster(2, 1, "-m", "pixtok", "train", experiment, "--run_dir", tmp_path, *options)
    for code, _, err in finish(running):
        assert code == 0, err
    assert [file.name.split("-")[0] for file in profiles(tmp_path)] == ["0", "1"]
    assert [steps(file) for file in profiles(tmp_path)] == [[3], [3]]
