"""Plans keep to their budget; what is launched is done once, goes on, or is named."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT
from pixtok import cli, flops
from pixtok.config import load
from pixtok.data.pipeline import Loader
from pixtok.errors import ExitCode, InputError
from pixtok.scaling import launch, plan, runs
from pixtok.scaling.settings import Settings

EXPERIMENT = '''
"""A family that trains in seconds."""

from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train


def config(dial: int = 16, steps: int = 20):
    stream = Stream(dial, 1, 2, 1)
    return Experiment(
        "small",
        Model(stream, stream, stream, fold_factor=64, window=4),
        Data({path!r}, slots=96, windows=24),
        Train(steps, 4, learning_rate={rate}, warmup_steps=1, dtype="float32", remat="none", eval_every=steps,
              eval_batches=2),
        Checkpoint(every=steps),
    )
'''


@pytest.fixture
def experiment(dataset, tmp_path) -> str:
    (tmp_path / "small.py").write_text(EXPERIMENT.format(path=str(dataset), rate="1e-2"))
    return str(tmp_path / "small.py")


def settings(**changes) -> Settings:
    return Settings(
        **{"dials": (16, 32, 64), "budget": 3e11, "levels": 3, "least_steps": 2, "most_epochs": 1e3} | changes
    )


def test_isoflop_runs_of_a_level_cost_alike_and_all_keep_to_the_budget(experiment):
    made = plan.make(experiment, settings())
    assert len(made.runs) == 9
    assert made.total == pytest.approx(3e11, rel=0.05)
    by_level = {level: [run for run in made.runs if run.level == level] for level in (1, 2, 3)}
    means = [np.mean([run.c for run in own]) for own in by_level.values()]
    assert means[2] / means[0] == pytest.approx(10**1.5, rel=0.1)
    for own in by_level.values():
        assert len({run.n for run in own}) == 3
        np.testing.assert_allclose([run.c for run in own], np.mean([run.c for run in own]), rtol=0.15)  # whole steps
    assert [run.c for run in made.runs] == sorted(run.c for run in made.runs)


def test_what_is_planned_is_what_the_experiment_does(experiment):
    run = plan.make(experiment, settings(budget=3e10)).runs[-1]
    words = dict(zip(run.options[::2], run.options[1::2], strict=True))
    found = load(experiment, dial=int(words["--dial"]), steps=int(words["--steps"]))
    assert found.train.steps == run.steps
    assert run.n == flops.multiplied(found.model)
    loader = Loader(found.data, found.model, split="train", batch_size=4, seed=0)
    batches = [loader.batch(step).rows for step in range(run.steps)]
    assert run.d == pytest.approx(sum(float(flops.counts(rows, found.model).pixels) for rows in batches), rel=0.05)
    assert run.c == pytest.approx(3 * sum(float(flops.of(rows, found.model)) for rows in batches), rel=0.05)


def test_a_grid_crosses_sizes_with_data(experiment):
    made = plan.make(experiment, settings(design="grid"))
    assert made.total == pytest.approx(3e11, rel=0.1)
    for level in (1, 2, 3):
        pixels = [run.d for run in made.runs if run.level == level]
        assert len(pixels) == 3
        np.testing.assert_allclose(pixels, pixels[0], rtol=0.1)


def test_further_axes_and_seeds_are_crossed(experiment):
    made = plan.make(experiment, settings(vary=("model.fold_factor=32,64", "model.halo=0,2"), seeds=2, levels=1))
    assert len(made.runs) == 3 * 4 * 2
    assert sum("--model.fold_factor 32 --model.halo 2" in shlex.join(run.options) for run in made.runs) == 6
    assert sum("--train.seed 1" in shlex.join(run.options) for run in made.runs) == 12


def test_other_options_are_those_of_all_runs(experiment, tmp_path):
    words = ["--rate", "0.5", "--model.halo", "2"]
    Path(experiment).write_text(Path(experiment).read_text().replace("= 20)", "= 20, rate: float = 0.1)"))
    args = ["--dials", "16", "32", "64", "--budget", "1e11", "--levels", "1", *words, "--least_steps", "2"]
    assert cli.run(["plan", experiment, str(tmp_path / "plan"), *args, "--most_epochs", "1e3"]) == ExitCode.DONE
    made = plan.load(tmp_path / "plan")
    assert len(made.runs) == 3
    assert all(run.options[4:] == words for run in made.runs)
    with pytest.raises(InputError, match=r"unknown option --model\.hallo; did you mean --model\.halo"):
        cli.run(["plan", experiment, str(tmp_path / "other"), *args, "--model.hallo", "2"])
    with pytest.raises(InputError, match="--dial is what a plan chooses"):
        cli.run(["plan", experiment, str(tmp_path / "other"), *args, "--dial=32"])
    assert not (tmp_path / "other").exists()


def test_hours_are_a_budget_too(experiment):
    made = plan.make(experiment, settings(budget=None, hours=2.0, speed=3e11 / 7200))
    assert made.total == pytest.approx(3e11, rel=0.05)
    assert made.hours(made.total) == pytest.approx(2, rel=0.05)


def test_runs_that_are_too_short_or_repeat_too_often_are_left_out_and_named(experiment):
    made = plan.make(experiment, settings(least_steps=20, most_epochs=30))
    assert 0 < len(made.runs) < 9
    assert len(made.runs) + len(made.left_out) == 9
    assert any("steps" in text for text in made.left_out)
    assert all(run.steps >= 20 and run.epochs <= 30 for run in made.runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dials": (16, 32, 32)}, "at least three sizes; --dials has 2"),
        ({"decades": 0.0}, "--decades must lie between 0 and 12; got 0.0"),
        ({"budget": float("nan")}, "--budget must be positive; got nan"),
        ({"budget": None}, "give --budget, in FLOPs, or --hours and --speed"),
        ({"hours": 1.0}, "give --budget, in FLOPs, or --hours and --speed"),
        ({"budget": None, "hours": 1.0}, "--hours wants --speed"),
        ({"budget": -1.0}, "--budget must be positive; got -1.0"),
        ({"budget": 1e3}, "nothing can be planned of this budget"),
        ({"vary": ("model.fold_factor",)}, "--vary wants axes like"),
        ({"vary": ("model.fold=1",)}, "unknown option --model.fold"),
        ({"vary": ("model.fold_factor=3",)}, "model.fold_factor must be a power of two"),
    ],
)
def test_what_cannot_be_planned_is_said(experiment, changes, message):
    with pytest.raises(InputError) as caught:
        plan.make(experiment, settings(**changes))
    assert message in str(caught.value)


def test_an_experiment_without_a_dial_is_refused():
    with pytest.raises(InputError, match="must have the parameters dial and steps"):
        plan.make(str(ROOT / "experiments" / "demo.py"), settings())


def test_a_plan_is_kept_and_is_not_overwritten_by_another(experiment, tmp_path):
    made = plan.make(experiment, settings())
    plan.save(made, tmp_path / "plan")
    assert plan.load(tmp_path / "plan") == made
    plan.save(made, tmp_path / "plan")
    with pytest.raises(InputError, match="is another plan"):
        plan.save(plan.make(experiment, settings(levels=2)), tmp_path / "plan")
    lines = (tmp_path / "plan" / "sweep.txt").read_text().splitlines()
    assert [shlex.split(line) for line in lines] == [run.options for run in made.runs]


STAND_IN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
steps = int(sys.argv[sys.argv.index("--steps") + 1])
folder.mkdir(parents=True, exist_ok=True)
with (folder.parent / "order.txt").open("a") as file:
    file.write(folder.name + "\\n")
exits = {exits}
code = exits.get(folder.name, [0]).pop(0) if not (folder / "tried").exists() else 0
(folder / "tried").touch()
if code == 0:
    (folder / "summary.json").write_text(json.dumps({{"step": steps, "steps": steps}}))
sys.exit(code)
"""


@pytest.fixture
def planned(experiment, tmp_path, monkeypatch):
    """A plan, and how to say with which codes its runs exit the first time."""
    made = plan.make(experiment, settings(levels=1))
    plan.save(made, tmp_path / "plan")

    def exits(**codes: int) -> None:
        script = tmp_path / "stand_in.sh"
        (tmp_path / "stand_in.py").write_text(STAND_IN.format(exits={k[1:]: [v] for k, v in codes.items()}))
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/stand_in.py "$@"\n')
        script.chmod(0o755)
        monkeypatch.setattr(launch.sys, "executable", str(script))

    return made, tmp_path / "plan", exits


def order(folder: Path) -> list[str]:
    return (folder / "runs" / "order.txt").read_text().split()


def test_runs_are_made_once(planned):
    made, folder, exits = planned
    exits()
    said = []
    assert launch.local(folder, made, 1, False, said.append) == ExitCode.DONE
    assert order(folder) == ["1", "2", "3"]
    assert launch.local(folder, made, 1, False, said.append) == ExitCode.DONE
    assert order(folder) == ["1", "2", "3"]
    assert said[-1] == "3 of 3 runs are done, 0 to go"


def test_a_run_that_failed_is_named_and_run_again_when_asked(planned):
    made, folder, exits = planned
    exits(_2=5)
    said = []
    assert launch.local(folder, made, 2, False, said.append) == ExitCode.BUG
    assert said[-1] == "failed: 2; --retry runs them again"
    assert any("run 2 FAILED with exit code 5, see" in text for text in said)
    assert sorted(order(folder)) == ["1", "2", "3"]
    assert launch.local(folder, made, 1, False, said.append) == ExitCode.BUG
    assert len(order(folder)) == 3
    assert launch.local(folder, made, 1, True, said.append) == ExitCode.DONE
    assert order(folder)[3:] == ["2"]


def test_a_run_that_was_stopped_ends_the_launch_and_goes_on_later(planned):
    made, folder, exits = planned
    exits(_2=75)
    assert launch.local(folder, made, 1, False, print) == ExitCode.PREEMPTED
    assert order(folder) == ["1", "2"]
    assert launch.local(folder, made, 1, False, print) == ExitCode.DONE
    assert order(folder) == ["1", "2", "2", "3"]


def test_a_run_that_ends_without_a_result_has_failed(planned, tmp_path):
    made, folder, exits = planned
    exits()
    script = tmp_path / "stand_in.py"
    script.write_text(script.read_text().replace("if code == 0:", "if code == 0 and folder.name != '2':"))
    said = []
    assert launch.local(folder, made, 1, False, said.append) == ExitCode.BUG
    assert said[-1].startswith("failed: 2")


def test_one_launch_at_a_time_and_what_is_torn_is_not_read(planned):
    made, folder, exits = planned
    exits()
    (folder / "launch.jsonl").write_text('{"run": 1, "code": 5}\n{"run": 2, "co')
    with launch._alone(folder), pytest.raises(InputError, match="another `pixtok launch` is at work"):
        launch.local(folder, made, 1, False, print)
    assert launch.waiting(folder, made, False) == ([2, 3], [1])


@pytest.mark.parametrize(
    ("number", "handler", "code"),
    [
        (15, "lambda *_: sys.exit(75)", ExitCode.PREEMPTED),
        (2, "lambda *_: sys.exit(75)", ExitCode.INTERRUPTED),
        (15, "signal.SIG_DFL", ExitCode.PREEMPTED),  # it had not yet got to saving
    ],
)
def test_a_request_to_stop_is_passed_on(planned, tmp_path, number, handler, code):
    made, folder, exits = planned
    exits()
    script = tmp_path / "stand_in.py"
    waits = f"import os, signal, time\nsignal.signal(15, {handler})\n"
    waits += f"os.kill(os.getppid(), {number})\ntime.sleep(60)\n"
    script.write_text(script.read_text().replace("exits = ", f"{waits}exits = "))
    said = []
    assert launch.local(folder, made, 1, False, said.append) == code
    assert any("run 1 was stopped, and saved" in text for text in said)
    assert order(folder) == ["1"]
    assert launch.waiting(folder, made, False) == ([1, 2, 3], [])


def test_slurm_gets_an_array_of_what_is_left(planned, tmp_path, monkeypatch):
    made, folder, exits = planned
    exits(_1=5)
    launch.local(folder, made, 1, False, print)
    (folder / "runs" / "3" / "summary.json").unlink()
    (folder / "launch.jsonl").write_text((folder / "launch.jsonl").read_text().splitlines()[0])
    for name, answer in (("sbatch", "echo 7"), ("squeue", f"cat {tmp_path}/queue")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    script = ROOT / "launch" / "slurm.sbatch"
    command, answer = launch.slurm(folder, made, script, "--nodes=1 --gpus-per-node=8", False)
    assert "--array=3 --nodes=1 --gpus-per-node=8" in command
    assert answer == "job 7"
    assert "--array=1,3 " in next(launch.slurm(folder, made, script, "", True))
    (tmp_path / "queue").write_text("7_3 PENDING")
    with pytest.raises(InputError, match="job 7 of this plan is still in the queue"):
        list(launch.slurm(folder, made, script, "", True))
    (tmp_path / "queue").write_text("")
    assert list(launch.slurm(folder, made, script, "", True))[1] == "job 7"
    with pytest.raises(InputError, match="give --script"):
        next(launch.slurm(folder, made, tmp_path / "missing", "", False))


@pytest.mark.slow
def test_from_a_plan_to_its_runs(experiment, tmp_path, capsys):
    args = ["--dials", "16", "32", "64", "--budget", "6e10", "--levels", "1", "--least_steps", "2"]
    assert cli.run(["plan", experiment, str(tmp_path / "plan"), *args, "--most_epochs", "1e3"]) == 0
    assert "3 runs" in capsys.readouterr().out
    assert cli.run(["launch", str(tmp_path / "plan"), "--parallel", "2"]) == 0
    made, found = plan.load(tmp_path / "plan"), runs.read([tmp_path / "plan"])
    assert found.names == ["1", "2", "3"]
    assert found.failed == found.unfinished == []
    for run, n, d, c in zip(made.runs, found.points.n_R, found.points.d_R, found.c_R, strict=True):
        assert n == run.n
        assert d == pytest.approx(run.d, rel=0.1)
        assert c == pytest.approx(run.c, rel=0.1)
    assert json.loads((tmp_path / "plan" / "launch.jsonl").read_text().splitlines()[0])["code"] == 0
