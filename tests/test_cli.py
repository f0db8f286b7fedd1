import json
import sys

import pytest

from pixtok import cli
from pixtok.errors import ExitCode, InputError

DEMO = "experiments/demo.py"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "no verb `trian`"),
        (["train"], "wants an experiment file first"),
        (["train", "missing.py"], "no experiment at missing.py"),
        (["train", DEMO, "--train.step", "5"], "unknown option --train.step; did you mean --train.steps?"),
        (
            ["train", DEMO, "--model.trunk.widht", "64"],
            "unknown option --model.trunk.widht; did you mean --model.trunk.width?",
        ),
        (["train", DEMO, "--train.steps", "many"], "Error parsing --train.steps"),
        (["train", DEMO, "--train.dtype", "int8"], "--train.dtype"),
        (["train", DEMO, "--train.steps"], "Missing value for argument '--train.steps'"),
        (["train", DEMO, "--model.fold_factor", "12"], "must be a power of two from 1 to 256; got 12"),
        (["train", DEMO, "--data.path", "nowhere"], "data.path: nowhere does not exist"),
        (
            ["train", DEMO, "--train.steps", "5"],
            "train.warmup_steps must be from 0 to 4, less than train.steps",
        ),
        (["eval", "nowhere"], "nowhere is not a run"),
        (["data", "build", "nowhere/x", "OUT"], "no source at nowhere/x"),
        (["data", "build", "glyphs"], "pixtok data build: OUT is missing"),
        (["data", "build", "glyphs", "OUT", "--image_size", "big"], "big is no INT"),
        (["train", DEMO, "--data.image_size", "0"], "data.image_size must be at least 1; got 0"),
        (["sample", "nowhere"], "nowhere is not a run"),
        (["sample", "nowhere", "--size", "32"], "--size must be HxW, height and width in pixels, like 32x48; got 32"),
        (["sample", "nowhere", "--edit", "a.png"], "--edit and --mask belong together"),
        (["sample", "nowhere", "--top_p", "2"], "--top_p must be from 0 to 1"),
        (
            ["sample", "nowhere", "--complete", "a.png", "--keep_rows", "1", "--prompt", "x"],
            "give one of --complete",
        ),
        (["compress", "nowhere", "nothing.png", "OUT"], "nothing.png cannot be read: No such file or directory"),
        (["decompress", "nowhere", "experiments/demo.py", "OUT.jpg"], "OUT must be a .png; got OUT.jpg"),
        (["sample", "nowhere", "--complete", "a.png"], "--complete and --keep_rows belong together"),
        (["data"], "pixtok data: data build, data info, data vocab?"),
        (
            ["decompress", "nowhere", "experiments/demo.py", "OUT.png"],
            "demo.py: not a file that `pixtok compress` made",
        ),
        (["data", "build", "glyphs", "OUT", "--validation", "2"], "--validation must lie in 0 … 1; got 2"),
        (["data", "build", "glyphs", "OUT", "--validation", "0.5", "--test", "0.5"], "leave nothing to train on"),
        (["data", "build", "glyphs", "OUT", "--limit", "0"], "--limit must be at least 1; got 0"),
        (["data", "info", "nowhere"], "nowhere does not exist"),
        (["convert"], "pixtok convert: convert upw, convert safetensors?"),
        (["convert", "upw", "nowhere.pth", "OUT"], "no checkpoint at nowhere.pth: give a .pth file"),
        (["convert", "safetensors", "nowhere", "OUT"], "OUT must be a .safetensors; got OUT"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(args, message, tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(request.config.rootpath / "experiments")
    monkeypatch.setattr(sys, "argv", ["pixtok", *args])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == ExitCode.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["experiments"]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_defaults(verb, capsys):
    args = [*verb.split(), *([DEMO] if verb in ("train", "info", "compile") else []), "--help"]
    with pytest.raises(SystemExit) as stop:
        cli.run(args)
    assert stop.value.code == 0
    assert "(default:" in capsys.readouterr().out


def test_help_of_verbs_that_want_more(capsys):
    for args, wanted in (["train"], "EXPERIMENT.py"), (["data"], "pixtok data info"):
        assert cli.run([*args, "--help"]) == ExitCode.DONE
        assert wanted in capsys.readouterr().out
    cli.run(["--version"])
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_a_broken_experiment_is_named_with_its_line(tmp_path):
    file = tmp_path / "broken.py"
    for text, message in (
        ("import nomod\n", "broken.py:1: ModuleNotFoundError: No module named 'nomod'"),
        ("\ndef config(:\n", "broken.py:2: SyntaxError"),
        ("def config():\n\n    return 1 / 0\n", "broken.py:3: ZeroDivisionError"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            cli.run(["train", str(file)])


def test_usage_names_every_verb(capsys):
    cli.run([])
    usage = capsys.readouterr().out
    assert all(f"pixtok {verb} " in usage for verb in cli.VERBS)


def test_data_info_draws(dataset, tmp_path, capsys):
    cli.run(["data", "info", str(dataset), "--picture", str(tmp_path / "sheet.png")])
    assert "17 documents" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"--picture must be a .png"):
        cli.run(["data", "info", str(dataset), "--picture", str(tmp_path / "x.xyz")])
    with pytest.raises(InputError, match="--fold_factor must be one of"):
        cli.run(["data", "info", str(dataset), "--picture", str(tmp_path / "x.png"), "--fold_factor", "3"])


def test_data_vocab_trains_offline(photos, tmp_path, capsys):
    cli.run(["data", "vocab", str(photos), str(tmp_path / "v.json"), "--size", "270"])
    assert capsys.readouterr().out == f"{tmp_path / 'v.json'}: 270 ids\n"


def test_bench_data_prints_json(dataset, capsys):
    cli.run(["bench", "data", "--path", str(dataset), "--seconds", "0.05", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["data"] for row in rows] == ["224² JPEG", "32² JPEG", str(dataset)]
    assert all(row["documents/s"] > 0 and row["pixels/s"] > 0 for row in rows)


def test_info_is_the_ledger(tmp_path, capsys):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from pixtok.config import *\n"
        "def config(dial: int = 128):\n"
        "    return Experiment('x', family(dial), Data('d'), family_train(dial, 100))\n"
    )
    cli.run(["info", str(path), "--dial", "192", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == sum(group["parameters"] for group in found["groups"].values())
    assert found["training_step"] == 3 * 64 * sum(group["forward"] for group in found["groups"].values())
    cli.run(["info", str(path), "--dial=192", "--data.slots", "100"])
    text = capsys.readouterr().out
    assert f"{found['parameters']:,}" in text
    assert "100 slots" in text
    with pytest.raises(InputError, match="--dial must be int; got 'wide'"):
        cli.run(["info", str(path), "--dial", "wide"])
    with pytest.raises(SystemExit):
        cli.run(["info", str(path), "--help"])
    assert "--dial  (default: 128)" in capsys.readouterr().out
    with pytest.raises(InputError, match="--dial wants a value"):
        cli.run(["info", str(path), "--dial", "--json"])
    with pytest.raises(InputError, match="a multiple of 64"):
        cli.run(["info", str(path), "--dial", "100"])
