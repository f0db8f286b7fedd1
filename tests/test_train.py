import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from helpers import run_pixtok, save_image
from pixtok import cli
from pixtok.data.pipeline import Bad
from pixtok.errors import ExitCode, InputError, NotFiniteError, TooLargeError
from pixtok.run import check_alike, identity
from pixtok.train import _BadLog

EXPERIMENT = '''
"""A model that trains in seconds."""

from pixtok.config import Checkpoint, Data, Experiment, Model, Stream, Train


def config():
    return Experiment(
        "small",
        Model(Stream(16, 1, 2, 1), Stream(16, 1, 2, 1), Stream(16, 1, 2, 1), fold_factor=64, window=4),
        Data({path!r}, slots=96, windows=24),
        Train(steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, dtype="float32", remat="none",
              log_every=1, eval_every=6, eval_batches=2),
        Checkpoint(every=4, keep=2),
    )
'''
TIMES = {"seconds", "pixels_per_s", "words_per_s", "mfu"}


@pytest.fixture(scope="module")
def experiment(dataset, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(EXPERIMENT.format(path=str(dataset)))
    return path


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory) -> Path:
    """A run that nothing disturbed, made by a process of its own like those that are compared with it."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    done = run_pixtok("train", experiment, "--run_dir", run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


def lines(run_dir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    read = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read]


def weights(run_dir: Path) -> list[np.ndarray]:
    import jax

    with ocp.CheckpointManager(run_dir / "checkpoints") as manager:
        restored = manager.restore(12, args=ocp.args.Composite(params=ocp.args.StandardRestore()))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored["params"])]


def wait_for(run_dir: Path, count: int, process) -> None:
    """Until `metrics.jsonl` has so many lines."""
    file = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (file.is_file() and file.read_text().count("\n") >= count):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_run_leaves_all_that_is_promised(finished):
    assert {"config.json", "metrics.jsonl", "bad.jsonl", "checkpoints", "tensorboard", "summary.json"} <= set(
        os.listdir(finished)
    )
    assert any(name.startswith("events") for name in os.listdir(finished / "tensorboard"))
    config = json.loads((finished / "config.json").read_text())
    assert config["experiment"]["train"]["steps"] == 12
    assert config["command"][:2] == ["pixtok", "train"]
    assert {"python", "jax", "flax", "pixtok"} <= set(config["versions"])
    got = lines(finished)
    assert [line["step"] for line in got if line["split"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in got if line["split"] == "validation"] == [0, 6, 12]
    assert {"loss", "nats_word", "nats_first_pixel", "lr", "grad_norm"} <= set(got[-2])
    # The first step is the compiler's, and tells nothing of the speed of training.
    raw = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    timed = [line["step"] for line in raw if {"pixels_per_s", "words_per_s"} <= set(line)]
    assert timed == list(range(2, 13))
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["step"] == 12
    assert summary["validation"]["loss"] < summary["untrained"]["loss"] - 0.3
    assert 0 <= summary["waiting_for_data"] <= 1
    assert summary["seen"] == {name: summary["train"][name] for name in ("pixels", "words", "flops")}
    assert summary["seen"]["flops"] > summary["seen"]["pixels"] > 12 * 4
    assert sorted(int(name) for name in os.listdir(finished / "checkpoints")) == [8, 12]


def test_a_run_that_was_killed_before_its_summary_gets_one(experiment, finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    wanted = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").unlink()
    assert run_pixtok("train", experiment, "--run_dir", run_dir).returncode == 0
    got = json.loads((run_dir / "summary.json").read_text())
    assert [got[name] for name in ("step", "seen", "validation")] == [
        wanted[name] for name in ("step", "seen", "validation")
    ]


def test_what_a_run_saw_before_it_was_counted_is_not_guessed(experiment, finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    kept = [{k: v for k, v in line.items() if k not in ("pixels", "words", "flops")} for line in lines(run_dir)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert run_pixtok("train", experiment, "--run_dir", run_dir, "--train.steps", 13).returncode == 0
    assert set(json.loads((run_dir / "summary.json").read_text())["seen"].values()) == {None}


def test_killed_and_resumed_is_never_killed(experiment, finished, tmp_path):
    """SIGKILL at random moments, until the run gets through: loss for loss and weight for weight the same bits."""
    run_dir = tmp_path / "killed"
    for count in random.SystemRandom().sample(range(2, 14), 2):
        process = run_pixtok("train", experiment, "--run_dir", run_dir, wait=False)
        wait_for(run_dir, count, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    done = run_pixtok("train", experiment, "--run_dir", run_dir)
    assert done.returncode == 0, done.stderr
    assert lines(run_dir) == lines(finished)
    for ours, theirs in zip(weights(run_dir), weights(finished), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_by_a_signal_saves_and_says_how_to_go_on(experiment, finished, tmp_path, number, code):
    run_dir = tmp_path / "stopped"
    command = ["train", experiment, "--run_dir", run_dir, "--train.steps", 100_000, "--train.eval_every", 50_000]
    process = run_pixtok(*command, wait=False)
    wait_for(run_dir, 5, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    stopped = json.loads((run_dir / "summary.json").read_text())["step"]
    assert f"stopped after step {stopped} of 100000, all saved; to go on: pixtok train {experiment}" in err
    assert max(int(name) for name in os.listdir(run_dir / "checkpoints")) == stopped
    done = run_pixtok(*command[:-3], stopped + 2)
    assert done.returncode == 0, done.stderr
    assert f"resumed after step {stopped}" in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run(experiment, tmp_path, capsys):
    command = ["train", str(experiment), "--run_dir", str(tmp_path / "nan"), "--train.learning_rate", "1e30"]
    with pytest.raises(NotFiniteError) as error:
        cli.run([*command, "--train.clip_norm", "1e30", "--checkpoint.every", "1"])
    message = str(error.value)
    step = next(int(word) for word in message.replace(";", "").split() if word.isdigit())
    assert "nan" in message
    assert f"the last good checkpoint is {tmp_path / 'nan' / 'checkpoints'}/{step - 1}" in message
    assert ".png" in message.split("documents of its batch: ")[1]
    capsys.readouterr()


def test_resuming_under_another_config_is_bad_input(experiment, finished, photos, tmp_path):
    from pixtok.data.build import Settings, build

    def train(*overrides):
        cli.run(["train", str(experiment), "--run_dir", str(finished), *overrides])

    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"was trained with train.learning_rate = 0.01, and now it is 0.1"):
        train("--train.learning_rate", "0.1")
    with pytest.raises(InputError, match=r"was trained with model.trunk.width = 16, and now it is 32"):
        train("--model.trunk.width", "32")
    build(str(photos), tmp_path / "other", Settings(validation=0.2, test=0.1, image_size=8))
    with pytest.raises(InputError, match="was trained on another data set"):
        train("--data.path", str(tmp_path / "other"))
    shutil.copytree(tmp_path / "other", tmp_path / "foreign")
    (tmp_path / "headless" / "checkpoints" / "3").mkdir(parents=True)
    for name in ("foreign", "headless"):
        with pytest.raises(InputError, match=f"{name} is not a run"):
            cli.run(["train", str(experiment), "--run_dir", str(tmp_path / name)])
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_finished_run_has_nothing_to_do(experiment, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    assert cli.run(["train", str(experiment), "--run_dir", str(tmp_path / "run")]) == ExitCode.DONE
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(experiment, finished, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "second"
    monkeypatch.setattr("pixtok.train.peak", lambda kind: 1e9)
    cli.run(["train", str(experiment), "--run_dir", str(run_dir), "--init", str(finished), "--train.steps", "3"])
    first, last = lines(run_dir)[0], lines(finished)[-1]
    assert first["step"] == 0
    assert first["loss"] == pytest.approx(last["loss"], rel=1e-5)
    figures = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][2]
    assert 0 < figures["mfu"] < 1
    # One that predicts words alone has what it needs of one that predicts pixels too.
    words = tmp_path / "words"
    command = ["train", str(experiment), "--run_dir", str(words), "--init", str(finished), "--train.steps", "3"]
    cli.run([*command, "--model.objective", "words"])
    assert lines(words)[0]["nats_word"] == pytest.approx(last["nats_word"], rel=5e-3)  # bfloat16, in another program
    with pytest.raises(InputError, match=r"has model.objective = words, and this experiment has full"):
        cli.run(["train", str(experiment), "--run_dir", "x", "--init", str(words)])
    with pytest.raises(InputError, match=r"has model.window = 4, and this experiment has 8"):
        cli.run(["train", str(experiment), "--run_dir", "x", "--init", str(finished), "--model.window", "8"])
    capsys.readouterr()


@pytest.mark.slow
def test_words_alone_begin_with_a_model_that_has_blocks_under_its_stem(experiment, tmp_path, capsys):
    both, words = tmp_path / "both", tmp_path / "words"
    command = ["train", str(experiment), "--model.stem", "8", "--train.steps", "3"]
    cli.run([*command, "--run_dir", str(both)])
    alone = ["--model.objective", "words", "--model.encoder.layers", "0"]
    cli.run([*command, *alone, "--run_dir", str(words), "--init", str(both)])
    assert lines(words)[0]["nats_word"] == pytest.approx(lines(both)[-1]["nats_word"], rel=5e-3)  # bfloat16
    assert lines(words)[0]["nats_word"] != pytest.approx(lines(both)[0]["nats_word"], rel=5e-3)
    capsys.readouterr()


def test_eval_scores_a_run(experiment, finished, dataset, photos, tmp_path, capsys):
    def evaluate(*args) -> dict:
        cli.run(["eval", str(finished), *map(str, args)])
        return json.loads(capsys.readouterr().out)

    got = evaluate()
    last = lines(finished)[-1]
    assert got["step"] == 12
    assert got["documents"] == 5
    assert got["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert evaluate("--step", 8)["loss"] > got["loss"]
    assert evaluate("--split", "test")["documents"] == 2
    assert evaluate("--data", dataset)["loss"] == got["loss"]
    with pytest.raises(InputError, match=r"step 5 was wanted of .*, which has steps 8, 12"):
        evaluate("--step", 5)

    from pixtok.data.build import Settings, build

    build(str(photos), tmp_path / "silent", Settings(vocabulary="none"))
    save_image(tmp_path / "wide" / "large.png", 40, 50)
    build(str(tmp_path / "wide"), tmp_path / "large")
    assert evaluate("--data", tmp_path / "large", "--split", "train")["first_pixels"] == 130
    with pytest.raises(InputError, match="another vocabulary"):
        evaluate("--data", tmp_path / "silent")


def test_eval_gives_an_interval_for_every_figure(finished, capsys):
    cli.run(["eval", str(finished)])
    got = json.loads(capsys.readouterr().out)
    assert set(got["intervals"]) == {
        "loss", "nats_word", "nats_first_pixel", "bpd_fold", "bpd_8bit", "reference"
    }  # fmt: skip
    for name, (low, high) in got["intervals"].items():
        assert low < got[name] < high
    assert got["pixels"] > got["first_pixels"] > 0


def test_a_mixture_is_trained_on_and_scored(experiment, dataset, photos, tmp_path, capsys):
    from pixtok.data.build import Settings, build

    small, run_dir = tmp_path / "small", tmp_path / "run"
    build(str(photos), small, Settings(validation=0.3, test=0, image_size=6))
    mixed = ["--data.mix", str(small), "--data.weights", "1", "3"]
    command = ["train", str(experiment), "--run_dir", str(run_dir), "--train.steps", "3", *mixed]
    assert cli.run(command) == ExitCode.DONE
    capsys.readouterr()
    assert cli.run([*command[:-1], "1", "--train.steps", "4"]) == ExitCode.DONE
    assert "from here on rows come from the data sets by the weights 1, 1" in capsys.readouterr().err
    command[command.index(str(small))] = str(dataset)
    with pytest.raises(InputError, match=r"was trained on another data set than .*, .*: give what it was trained on"):
        cli.run([*command, "--data.path", str(small)])
    capsys.readouterr()

    def evaluate(*args) -> dict:
        cli.run(["eval", str(run_dir), *map(str, args)])
        return json.loads(capsys.readouterr().out)

    whole, parts = evaluate(), [evaluate("--data", path) for path in (dataset, small)]
    for count in ("documents", "words", "pixels"):
        assert whole[count] == sum(part[count] for part in parts) > max(part[count] for part in parts)
    assert min(part["loss"] for part in parts) < whole["loss"] < max(part["loss"] for part in parts)


def test_sample_draws_completes_edits_and_reads(finished, dataset, tmp_path, capsys):
    import PIL.Image

    def sample(*args) -> list[Path]:
        cli.run(["sample", str(finished), "--out", str(tmp_path / "out"), *map(str, args)])
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    def pixels(path: Path) -> np.ndarray:
        return np.asarray(PIL.Image.open(path))

    files = sample("--size", "5x7", "--n", 2, "--prompt", "a cat")
    assert [file.name for file in files] == ["000.png", "001.png", "sheet.png"]
    assert [pixels(file).shape for file in files[:2]] == [(5, 7, 3)] * 2
    assert len(sample()) == 1, "the size is that of the data set"

    known = tmp_path / "known.png"
    save_image(known, 6, 5)
    (file,) = sample("--complete", known, "--keep_rows", 2)
    np.testing.assert_array_equal(pixels(file)[:2], pixels(known)[:2])
    assert (pixels(file)[2:] != pixels(known)[2:]).any()
    with pytest.raises(InputError, match="--keep_rows must be from 0 to 5"):
        sample("--complete", known, "--keep_rows", 6)

    mask = np.zeros((6, 5), np.uint8)
    mask[1:3, 2:4] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    (file,) = sample("--edit", known, "--mask", tmp_path / "mask.png")
    changed = (pixels(file) != pixels(known)).any(-1)
    assert changed.any()
    assert not changed[mask == 0].any()
    save_image(tmp_path / "wide.png", 6, 7)
    with pytest.raises(InputError, match="must be of the size of"):
        sample("--edit", known, "--mask", tmp_path / "wide.png")

    (file,) = sample("--read", known)
    assert file.suffix == ".txt"


def test_compressed_files_come_back(finished, tmp_path, capsys):
    import PIL.Image

    source, packed, out = (tmp_path / name for name in ("in.png", "packed", "out.png"))
    save_image(source, 5, 6)
    cli.run(["compress", str(finished), str(source), str(packed)])
    assert f"{packed.stat().st_size} bytes" in capsys.readouterr().out
    cli.run(["decompress", str(finished), str(packed), str(out)])
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(out)), np.asarray(PIL.Image.open(source)))
    with pytest.raises(InputError, match="written with other weights"):
        cli.run(["decompress", str(finished), str(packed), str(out), "--step", "8"])
    capsys.readouterr()


@pytest.mark.slow
def test_a_run_without_a_checkpoint_may_begin_anew(experiment, tmp_path, capsys):
    command = ["train", str(experiment), "--run_dir", str(tmp_path / "run")]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("stacks-0.txt", "bad-1.jsonl", "config.json.partial"):
        (tmp_path / "run" / name).touch()
    with pytest.raises(NotFiniteError, match="no checkpoint yet"):
        cli.run([*command, "--train.learning_rate", "1e30", "--train.clip_norm", "1e30"])
    assert cli.run([*command, "--train.steps", "3"]) == ExitCode.DONE
    config = (tmp_path / "run" / "config.json").read_bytes()
    cli.run([*command, "--train.steps", "3", "--name", "other"])
    assert (tmp_path / "run" / "config.json").read_bytes() == config, "there was nothing to do"
    content = json.loads(config)
    content["versions"]["jax"] = "0.1"
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    capsys.readouterr()
    cli.run([*command, "--train.steps", "4", "--train.microbatches", "2", "--mesh.data", "2", "--mesh.window", "2"])
    said = capsys.readouterr().err
    assert "the learning rate now falls until there" in said
    assert "began with other versions, and may go on a little differently: jax 0.1, now " in said


def test_too_little_memory_is_said_so(experiment, tmp_path, monkeypatch):
    import jax

    from pixtok.step import Program

    def step(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes\nmore")

    monkeypatch.setattr(Program, "train_step", step)
    with pytest.raises(TooLargeError, match=r"`compile` does not fit .*allocating 5 bytes\).* --train.microbatches"):
        cli.run(["train", str(experiment), "--run_dir", str(tmp_path / "run")])


def test_processes_that_differ_are_told_apart(finished):
    config = json.loads((finished / "config.json").read_text())
    there = json.loads(json.dumps(config))
    there["experiment"]["data"] |= {"path": "elsewhere", "threads": 3}
    check_alike({0: identity(config), 1: identity(there)})
    there["experiment"]["train"]["learning_rate"] = 0.5
    with pytest.raises(InputError, match=r"0 and 1 differ in train.learning_rate, 0.01 and 0.5"):
        check_alike({1: identity(there), 0: identity(config)})
    config["data"]["fingerprint"] = "other"
    with pytest.raises(InputError, match="differ in data"):
        check_alike({0: identity(config), 1: identity(json.loads((finished / "config.json").read_text()))})


@pytest.mark.slow
def test_too_many_documents_gone_bad_stop_the_run(experiment, dataset, tmp_path, monkeypatch, capsys):
    from pixtok.data import images

    decode, rotten = images.decode, []

    def rot(content, size=None):
        if not rotten or content in rotten:
            rotten.append(content)
            raise images.ImageError("rotten")
        return decode(content, size)

    monkeypatch.setattr(images, "decode", rot)
    command = ["train", str(experiment), "--run_dir"]
    with pytest.raises(InputError, match=r"1 documents could not be decoded.*raise --data.max_bad"):
        cli.run([*command, str(tmp_path / "strict")])
    assert cli.run([*command, str(tmp_path / "lenient"), "--data.max_bad", "0.2"]) == ExitCode.DONE
    (bad,) = (tmp_path / "lenient" / "bad.jsonl").read_text().splitlines()
    assert json.loads(bad)["reason"] == "rotten"
    capsys.readouterr()


@pytest.mark.slow
def test_a_checkpoint_of_another_training_is_refused_before_it_is_read(experiment, finished, tmp_path, capsys):
    other, run_dir = tmp_path / "other", tmp_path / "run"
    short = ["--train.steps", "3", "--train.eval_every", "3"]
    cli.run(["train", str(experiment), "--run_dir", str(other), "--train.learning_rate", "0.02", *short])
    cli.run(["train", str(experiment), "--run_dir", str(run_dir), *short])
    shutil.rmtree(run_dir / "checkpoints")
    shutil.copytree(other / "checkpoints", run_dir / "checkpoints")
    with pytest.raises(InputError, match=r"checkpoints/3 was trained with train.learning_rate = 0.02"):
        cli.run(["train", str(experiment), "--run_dir", str(run_dir)])
    manifest = json.loads((run_dir / "checkpoints" / "3" / "manifest" / "metadata").read_text())
    assert {"experiment", "data", "versions", "git", "mixture"} <= set(manifest)

    wide = tmp_path / "wide"
    cli.run(["train", str(experiment), "--run_dir", str(wide), "--model.trunk.width", "32", *short])
    shutil.rmtree(wide / "checkpoints")
    shutil.copytree(other / "checkpoints", wide / "checkpoints")
    with pytest.raises(InputError, match=r"checkpoints/3 was not saved by the run that .*config.json describes"):
        cli.run(["eval", str(wide)])
    capsys.readouterr()


@pytest.mark.slow
def test_some_checkpoints_stay_for_good(experiment, tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = [
        "--checkpoint.every",
        "1",
        "--checkpoint.keep",
        "1",
        "--checkpoint.keep_every",
        "2",
        "--train.steps",
        "5",
    ]
    cli.run(["train", str(experiment), "--run_dir", str(run_dir), *options])
    assert sorted(int(name) for name in os.listdir(run_dir / "checkpoints")) == [2, 4, 5]
    capsys.readouterr()


def test_a_save_that_fails_in_the_background_stops_the_run(experiment, tmp_path, monkeypatch, capsys):
    async def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full, raising=True)
    run_dir = tmp_path / "run"
    with pytest.raises(Exception, match="No space left"):
        cli.run(["train", str(experiment), "--run_dir", str(run_dir), "--train.steps", "100000"])
    assert not [name for name in os.listdir(run_dir / "checkpoints") if name.isdigit()]
    capsys.readouterr()


@pytest.mark.slow
def test_weights_of_a_mixture_change_at_a_checkpoint(experiment, photos, tmp_path, capsys):
    from pixtok.data.build import Settings, build

    build(str(photos), tmp_path / "second", Settings(validation=0.2, test=0.1, seed=1))
    run_dir = tmp_path / "run"

    def train(steps: int, *weights: float) -> list:
        mix = ["--data.mix", str(tmp_path / "second"), "--data.weights", *map(str, weights)]
        cli.run(["train", str(experiment), "--run_dir", str(run_dir), "--train.steps", str(steps), *mix])
        manifest = run_dir / "checkpoints" / str(steps) / "manifest" / "metadata"
        return json.loads(manifest.read_text())["mixture"]

    assert train(4, 3, 1) == [[0, [3, 1]]]
    assert train(6, 3, 1) == [[0, [3, 1]]]
    assert train(8, 1, 1) == [[0, [3, 1]], [6, [1, 1]]]
    capsys.readouterr()


def test_a_bad_document_whose_line_was_cut_short_is_noted_again(tmp_path):
    a, b = (Bad(number, f"{number}.jpg", "cut", "data") for number in range(2))
    with _BadLog(epath.Path(tmp_path), 9) as log:
        log.add([a, b])
    path = tmp_path / "bad.jsonl"
    path.write_text(path.read_text()[:-5])
    with _BadLog(epath.Path(tmp_path), 9) as log:
        log.add([a, b])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [a._asdict(), b._asdict()]
