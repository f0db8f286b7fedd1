"""Jobs of several processes, on one machine."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import finish, run_cluster, run_pixtok, run_python
from pixtok import cluster
from pixtok.config import Data, Experiment, Mesh, Model, Stream, Train
from pixtok.errors import InputError
from test_train import EXPERIMENT

WORKER = Path(__file__).with_name("one_of_several.py")
OPTIONS = ["--train.steps", 10, "--train.eval_every", 10, "--checkpoint.every", 3, "--deadline.peer", 12]


@pytest.fixture(scope="module")
def experiment(dataset) -> Experiment:
    model = Model(
        encoder=Stream(width=16, layers=1, heads=2, kv_heads=2),
        trunk=Stream(width=32, layers=2, heads=4, kv_heads=2),
        decoder=Stream(width=16, layers=1, heads=4, kv_heads=2),
        vocab_size=264,
        fold_factor=32,
        window=4,
    )
    train = Train(steps=4, batch_size=8, learning_rate=1e-2, warmup_steps=1, dtype="float32")
    return Experiment("test", model, Data(str(dataset), slots=96, windows=24), train)


def text(value) -> str:
    return json.dumps(dataclasses.asdict(value))


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory) -> np.ndarray:
    """Losses and gradient norms of one process with one device."""
    out = tmp_path_factory.mktemp("alone") / "of"
    done = run_python(WORKER, out, text(experiment), text(Mesh()), JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(out.with_name("of-0.json").read_text())[0])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one(experiment, alone, tmp_path, processes):
    """Every mesh axis, across processes, to 1e-5; and the same validation loss."""
    meshes = [Mesh(data=2, fsdp=2), Mesh(data=1, window=4), Mesh(data=1, tensor=2, dcn_data=2)]
    command = [WORKER, tmp_path / "of", text(experiment), *map(text, meshes)]
    results = finish(run_cluster(processes, 4 // processes, *command), timeout=900)
    for index, (code, _, err) in enumerate(results):
        assert code == 0, err
        found = json.loads((tmp_path / f"of-{index}.json").read_text())
        for got, mesh in zip(found, meshes, strict=True):
            np.testing.assert_allclose(np.array(got), alone, rtol=1e-5, err_msg=str(mesh))


@pytest.fixture(scope="module")
def small(dataset, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(EXPERIMENT.format(path=str(dataset)))
    return path


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory) -> dict:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run_pixtok("train", small, "--run_dir", run_dir, *OPTIONS, JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 0, done.stderr
    return losses(run_dir)


def losses(run_dir: Path) -> dict:
    """(step, split) → loss; each once."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = {(line["step"], line["split"]): line["loss"] for line in lines}
    assert len(found) == len(lines)
    return found


def train(small: Path, run_dir: Path, processes: int, *options: object):
    devices = max(1, 2 // processes)
    return run_cluster(processes, devices, "-m", "pixtok", "train", small, "--run_dir", run_dir, *OPTIONS, *options)


def wait_until(holds, running, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert all(process.poll() is None for process in running), finish(running)
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def lines_of(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


def being_saved(run_dir: Path) -> bool:
    folder = run_dir / "checkpoints"
    return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))


@pytest.mark.slow
def test_killed_and_resumed_on_other_process_counts_is_never_killed(small, undisturbed, tmp_path):
    """SIGKILL of one of two processes in a step, of one of two in a save, and of one alone in a save; then four."""
    run_dir = tmp_path / "run"
    running = train(small, run_dir, 2)
    wait_until(lambda: lines_of(run_dir) >= 5, running)
    running[1].send_signal(signal.SIGKILL)
    results = finish(running)
    assert results[0][0] == 4, results[0][2]
    assert "process 1" in results[0][2]
    for processes in (2, 1):
        seen = lines_of(run_dir)
        running = train(small, run_dir, processes)
        wait_until(lambda seen=seen: being_saved(run_dir) and lines_of(run_dir) > seen, running)
        running[-1].kill()
        finish(running)
    for code, _, err in finish(train(small, run_dir, 4)):
        assert code == 0, err
    got = losses(run_dir)
    assert got.keys() == undisturbed.keys()
    for key, loss in undisturbed.items():
        assert got[key] == pytest.approx(loss, rel=1e-5), key
    goodput = json.loads((run_dir / "goodput.json").read_text())
    assert goodput["starts"] == 4
    assert goodput["lost_steps"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_process_asked_to_stop_stops_all_at_the_same_step(small, undisturbed, tmp_path, number):
    run_dir = tmp_path / "run"
    options = ["--train.steps", 100_000, "--train.eval_every", 50_000, "--checkpoint.every", 50_000]
    running = train(small, run_dir, 2, *options)
    wait_until(lambda: lines_of(run_dir) >= 3, running)
    running[1].send_signal(number)
    results = finish(running)
    assert [code for code, _, _ in results] == [75, 75], results
    step = json.loads((run_dir / "summary.json").read_text())["step"]
    assert [name for name in os.listdir(run_dir / "checkpoints") if name.isdigit()] == [str(step)]
    assert f"stopped after step {step} of 100000, all saved" in results[0][2]
    assert "stopped after" not in results[1][2], "process 0 speaks for all"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_stuck_or_lost_process_is_named(small, tmp_path, victim, number):
    run_dir = tmp_path / "run"
    running = train(small, run_dir, 2, "--train.steps", 100_000, "--train.eval_every", 50_000, "--deadline.peer", 6)
    wait_until(lambda: lines_of(run_dir) >= 3, running)
    running[victim].send_signal(number)
    begin = time.monotonic()
    try:
        _, err = running[1 - victim].communicate(timeout=120)
    finally:
        for process in running:
            process.kill()
        finish(running)
    assert running[1 - victim].returncode == 4, err
    assert f"process {victim}" in err.split(f"process {1 - victim} of 2:")[-1], err
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_a_process_lost_in_a_save_or_a_restore_is_named(small, tmp_path):
    """What the others are doing together then fails, as an error of several kinds."""
    run_dir = tmp_path / "run"
    endless = ["--train.steps", 100_000, "--train.eval_every", 50_000]
    dies = [Path(__file__).with_name("dies_in.py"), "train", small, "--run_dir", run_dir, *OPTIONS, *endless]
    running = train(small, run_dir, 1, *endless)
    wait_until(lambda: any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*")), running)
    running[0].kill()
    finish(running)
    for method in ("restore", "save"):
        (code, _, err), (died, *_) = finish(run_cluster(2, 1, dies[0], method, *dies[1:]))
        assert (code, died) == (4, 9), err
        assert "process 1" in err


@pytest.mark.slow
def test_a_process_that_never_comes_is_named(small, tmp_path):
    running = train(small, tmp_path / "run", 2, "--deadline.start", 8)
    running[1].send_signal(signal.SIGKILL)
    _, err = running[0].communicate(timeout=120)
    finish(running)
    assert running[0].returncode == 4, err
    assert "not all processes of the job were there within 8 s" in err
    assert "Some timed out task names:\n1" in err


@pytest.mark.slow
def test_bad_input_to_one_process_ends_all(small, tmp_path):
    """Data that one host lacks: it says so with code 2, and so do the others, with who went and why."""
    path = tmp_path / "odd.py"
    odd = small.read_text().replace("Data('", "Data(os.environ['JAX_PROCESS_ID'].strip('0') + '")
    path.write_text(odd.replace("from pixtok", "import os\n\nfrom pixtok", 1))
    results = finish(train(path, tmp_path / "run", 2))
    assert [code for code, _, _ in results] == [2, 2], results
    assert "does not exist" in results[1][2]
    assert "process 1" in results[0][2]
    assert "stopped with exit code 2: data.path: 1/" in results[0][2]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_of_other_settings_do_not_train_together(small, tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(small.read_text().replace("1e-2", "float('1e-' + os.environ['JAX_PROCESS_ID'])", 1))
    path.write_text(path.read_text().replace("from pixtok", "import os\n\nfrom pixtok", 1))
    for code, _, err in finish(train(path, tmp_path / "run", 2)):
        assert code == 2, err
        assert "processes 0 and 1 differ in train.learning_rate, 1.0 and 0.1" in err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_stopped_and_resumed_on_other_meshes_is_never_stopped(small, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    for mesh in (["--mesh.data", 1, "--mesh.fsdp", 2], ["--mesh.data", 1, "--mesh.window", 2]):
        seen = lines_of(run_dir)
        running = train(small, run_dir, 1, *mesh)
        wait_until(lambda seen=seen: lines_of(run_dir) >= seen + 3, running)
        running[0].send_signal(signal.SIGTERM)
        ((code, _, err),) = finish(running)
        assert code == 75, err
    done = run_pixtok("train", small, "--run_dir", run_dir, *OPTIONS, JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 0, done.stderr
    got = losses(run_dir)
    assert got.keys() == undisturbed.keys()
    for key, loss in undisturbed.items():
        assert got[key] == pytest.approx(loss, rel=1e-5), key


def test_an_environment_of_halves_is_bad_input(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(
        InputError, match=r"JAX_PROCESS_ID is set, but JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES is not"
    ):
        cluster.join(1, 1)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "0")
    with pytest.raises(InputError, match="must be a number below JAX_NUM_PROCESSES = 0"):
        cluster.join(1, 1)
