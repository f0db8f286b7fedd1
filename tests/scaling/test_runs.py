"""What a law is fitted to, from tables and from run directories."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pixtok import cli, flops
from pixtok.config import Data, Experiment, Model, Stream, Train
from pixtok.errors import InputError
from pixtok.scaling import runs

TABLE = """name,params,tokens,val,flops
a,1e6,2e8,3.1,1.3e15
b,2e6,2e8,2.9,2.5e15
"""
COLUMNS = {"N": "params", "D": "tokens", "loss": "val"}


def made_run(folder: Path, width: int = 32, **summary) -> Path:
    """A run directory, without checkpoints."""
    stream = Stream(width, 1, 1, 1)
    experiment = Experiment("x", Model(stream, stream, stream), Data("none", 64, 16), Train(100, 8))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": dataclasses.asdict(experiment), "data": {}}))
    content = {
        "step": 100,
        "steps": 100,
        "rows": 200,
        "seen": {"pixels": 4e6, "words": 1e5, "flops": 7e12},
        "validation": {"step": 100, "bpd_8bit": 3.5, "nats_word": 2.0, "loss": 5.0},
    }
    (folder / "summary.json").write_text(json.dumps(content | summary))
    return folder


def test_a_table_is_read_by_its_columns(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(TABLE)
    found = runs.read_csv(file, COLUMNS)
    np.testing.assert_allclose(found.c_R, [6 * 2e14, 12 * 2e14])
    assert found.meaning["C"] == "6·N·D"
    found = runs.read_csv(file, COLUMNS | {"C": "flops"})
    assert found.names == ["a", "b"]
    np.testing.assert_allclose(found.c_R, [1.3e15, 2.5e15])
    np.testing.assert_allclose(found.points.loss_R, [3.1, 2.9])
    file.write_text("C,loss,N,D\n7,2,3,5\n")
    found = runs.read_csv(file, {})
    assert found.names == ["line 2"]
    assert (found.c_R, found.points.n_R, found.points.d_R, found.points.loss_R) == (7, 3, 5, 2)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (TABLE, {"N": "params", "D": "tokens"}, "has no column 'loss'; it has name, params"),
        (TABLE, COLUMNS | {"Z": "val"}, "--columns tells N, D, loss, C, unique, name; not Z"),
        (TABLE, COLUMNS | {"loss": "test"}, "has no column 'test'; it has name, params"),
        (TABLE.replace("2.9", "lots"), COLUMNS, "table.csv:3: val is no number: 'lots'"),
        (TABLE.replace("2.9", "nan"), COLUMNS, "table.csv:3: loss must be positive and finite; got nan"),
        (TABLE.replace("2e6", "-2"), COLUMNS, "table.csv:3: N must be positive and finite; got -2"),
        (TABLE.replace("1.3e15", "-1"), COLUMNS | {"C": "flops"}, "table.csv:2: C must be positive and finite; got -1"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, columns, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        runs.read_csv(tmp_path / "table.csv", columns)
    assert message in str(caught.value)


def test_run_directories_are_read_with_what_their_training_saw(tmp_path):
    folder = made_run(tmp_path / "runs" / "1")
    made_run(tmp_path / "runs" / "2", width=64, step=60, validation={"step": 60, "bpd_8bit": 4.0})
    made_run(tmp_path / "runs" / "3", validation=None)
    made_run(tmp_path / "runs" / "4", step=60)
    found = runs.read([tmp_path / "runs"])
    assert found.names == ["1", "2"]
    model = json.loads((folder / "config.json").read_text())["experiment"]["model"]
    assert model["encoder"]["width"] == 32
    stream = Stream(32, 1, 1, 1)
    assert found.points.n_R[0] == flops.multiplied(Model(stream, stream, stream))
    # 800 rows of 200 are four epochs.
    np.testing.assert_allclose(found.points.d_R, 4e6)
    np.testing.assert_allclose(found.points.unique_R[0], 1e6)
    np.testing.assert_allclose(found.c_R, 7e12)
    assert found.unfinished == ["2: it ended after step 60 of 100"]
    assert len(found.failed) == 2
    assert "3/summary.json holds no bpd_8bit" in found.failed[0]
    assert "4 ended after step 60 of 100, and was last scored after step 100" in found.failed[1]
    assert runs.read([tmp_path / "runs", tmp_path / "runs" / "1"]).names == ["1", "2"]
    other = made_run(tmp_path / "seed" / "1")
    assert runs.read([tmp_path / "runs", tmp_path / "seed"]).names == [
        *(str(folder.parent / n) for n in "12"),
        str(other),
    ]


def test_each_loss_has_its_own_data(tmp_path):
    made_run(tmp_path / "1")
    assert runs.read([tmp_path], "nats_word").points.d_R == [1e5]
    assert runs.read([tmp_path], "loss").points.d_R == [4.1e6]
    with pytest.raises(InputError, match="none of the runs has a result"):
        runs.read([tmp_path], "bpd_fold")
    with pytest.raises(InputError, match="--loss must be one of"):
        runs.read([tmp_path], "entropy")


def test_one_law_is_for_one_kind_of_model(tmp_path):
    made_run(tmp_path / "1")
    other = json.loads((made_run(tmp_path / "2") / "config.json").read_text())
    other["experiment"]["model"]["fold_factor"] = 8
    (tmp_path / "2" / "config.json").write_text(json.dumps(other))
    with pytest.raises(InputError) as caught:
        runs.read([tmp_path])
    assert "the runs differ in model.fold_factor (16, 8)" in str(caught.value)
    assert "--where model.fold_factor=16" in str(caught.value)
    assert runs.read([tmp_path], where={"model.fold_factor": "8"}).names == ["2"]
    with pytest.raises(InputError, match="none of the runs has model"):
        runs.read([tmp_path], where={"model.fold_factor": "4"})


def test_parameters_that_are_multiplied_are_all_but_the_tables():
    stream = Stream(32, 1, 1, 1)
    model = Model(stream, stream, stream, vocab_size=300)
    assert flops.parameters(model) - flops.multiplied(model) == 300 * 32 + (16**3 + 1) * 32


def test_the_verbs_say_what_is_wrong(tmp_path, capsys):
    (tmp_path / "table.csv").write_text(TABLE)
    for args, message in (
        (["fit", str(tmp_path / "nowhere")], "no runs in"),
        (["fit"], "give run directories"),
        (["fit", str(tmp_path / "table.csv")], "has no column 'N'; it has name, params"),
        (["fit", "x", "--predict", "3"], "--predict wants N:D"),
        (["fit", "x", "--budgets", "-3"], "--budgets"),
        (["fit", "a.csv", "b.csv"], "a .csv is fitted alone"),
        (["fit", "x", "--columns", "N=n"], "--columns is for a .csv"),
        (["fit", "x", "--where", "model.halo"], "--where wants NAME=VALUE"),
        (["fit", "x", "--bootstraps", "0"], "--bootstraps must be at least 1"),
        (["report", "x", "--samples", "nothing.png"], "--samples wants .png files; got nothing.png"),
        (["launch", str(tmp_path)], "holds no plan.json"),
        (["launch", str(tmp_path), "--parallel", "0"], "--parallel must be at least 1"),
    ):
        with pytest.raises(InputError) as caught:
            cli.run(args)
        assert message in str(caught.value)


def test_a_table_is_fitted_from_the_command_line(tmp_path, capsys):
    from scaling_data import TEXT, points

    given = points(TEXT, noise=1e-3)
    lines = [f"{n},{d},{x}" for n, d, x in zip(given.n_R, given.d_R, given.loss_R, strict=True)]
    (tmp_path / "runs.csv").write_text("\n".join(["n,d,loss", *lines]))
    args = [str(tmp_path / "runs.csv"), "--columns", "N=n", "D=d", "loss=loss", "--bootstraps", "5"]
    assert cli.run(["fit", *args, "--predict", "1e7:1e9"]) == 0
    out = capsys.readouterr().out
    assert "CONVERGED" in out
    assert f"{TEXT.loss(1e7, 1e9):.2f}" in out
    assert cli.run(["fit", *args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"]["state"] == "CONVERGED"
    assert cli.run(["report", *args, "--out", str(tmp_path / "page.html")]) == 0
    assert "pixtok report" in (tmp_path / "page.html").read_text()
