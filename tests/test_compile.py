"""`pixtok compile`: what it says of a program, what it refuses, and what it proposes."""

import dataclasses
import importlib.util
import json
import sys

import jax
import pytest

from helpers import ROOT
from pixtok import cli, config, sharding
from pixtok import compile as compiler
from pixtok.config import Data, Experiment, Mesh, Model, Stream, Train
from pixtok.errors import ExitCode, InputError
from pixtok.hardware import CHIPS

TPU = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu, which compiles for TPU")
H100 = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin"), reason="needs CUDA's compilers: see Makefile"
)
MODEL = Model(
    encoder=Stream(width=16, layers=1, heads=2, kv_heads=1),
    trunk=Stream(width=32, layers=1, heads=2, kv_heads=1),
    decoder=Stream(width=16, layers=0, heads=2, kv_heads=1),
    objective="reference",
    fold_factor=64,
    window=4,
)
TINY = Experiment("tiny", MODEL, Data("absent", slots=16, windows=8), Train(steps=9, batch_size=16, warmup_steps=1))


@pytest.fixture
def file(tmp_path):
    """An experiment file; its data set is nowhere."""
    file = tmp_path / "tiny.py"
    file.write_text(f"from pixtok.config import *\ndef config():\n    return {TINY!r}\n")
    return str(file)


def main(capsys, monkeypatch, *args):
    """(exit code, standard output, lines of standard error) of the command."""
    monkeypatch.setattr(sys, "argv", ["pixtok", "compile", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err.splitlines()


def small(available: float) -> compiler.Target:
    """The devices here, as chips with little memory."""
    chip = CHIPS["v5e"]._replace(hbm=int(available))
    return compiler.Target("cpu", chip, len(jax.devices()), jax.devices(), {}, available)


@pytest.fixture(scope="module")
def whole() -> compiler.Report:
    """With all rows at once."""
    return compiler.compile_step(TINY, small(1e12))


def test_json_is_one_object_and_says_what_it_takes(file, capsys, monkeypatch):
    code, out, err = main(
        capsys, monkeypatch, file, "--topology", "cpu", "--json", "--mesh.data", "2", "--mesh.fsdp", "2"
    )
    assert code == ExitCode.DONE
    assert err == ["compiling for cpu, 4 devices"]
    found = json.loads(out)
    assert found["mesh"] == {"data": 2, "fsdp": 2}
    assert found["flags"] == "--mesh.data 2 --mesh.fsdp 2"
    assert found["available"] is None
    memory = found["memory"]
    # Split two ways but for what has no axis of width.
    assert found["parameters"] * 4 / 2 <= memory["parameters"] < found["parameters"] * 4
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-3)
    assert memory["peak"] >= sum(memory[name] for name in ("parameters", "optimizer", "batch", "temporaries"))
    assert found["collectives"]["all-gather"]["near"] > 0
    assert found["unknown_loops"] == 0
    # Forward, backward, and forward again under remat, with masked pairs and without what the gradient does not need.
    assert 0.9 < found["flops"]["compiler"] * 4 / found["flops"]["ours"] < 2


def test_a_table_is_printed_for_people(file, capsys, monkeypatch):
    code, out, _ = main(capsys, monkeypatch, file, "--topology", "cpu")
    assert code == ExitCode.DONE
    for words in ("cpu: 4 devices", "a device: optimizer", "a device: peak", "verdict", "a device sends, all-reduce"):
        assert words in out


def test_the_roofline_is_bound_by_its_slowest_part(whole):
    roof = whole.roofline
    assert roof["step_ms"] == max(roof["compute_ms"], roof["memory_ms"], roof["network_ms"])
    assert roof["step_ms"] == roof[f"{roof['bound']}_ms"]
    seconds = roof["step_ms"] / 1e3
    assert roof["rows_per_s"] == pytest.approx(16 / seconds)
    assert roof["mfu"] == pytest.approx(whole.flops["ours"] / (seconds * CHIPS["v5e"].peak * 4))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology", "v9:2x2"], "--topology must be one of the form"),
        (["--topology", "v5e"], "--topology must be one of the form"),
        (["--topology", "cpu:4"], "--topology must be one of the form"),
        (["--topology", "h100:2x2x2"], "NODESxGPUS"),
        (["--topology", "cpu", "--mesh.fsdp", "3"], "do not make 4 devices"),
        (["--topology", "cpu", "--train.batch_size", "3"], "make train.batch_size a multiple of 4"),
        (["--topology", "cpu", "--model.fold_factor", "3"], "model.fold_factor must be a power of two"),
        (["--topology", "cpu", "--search"], "--search needs a chip"),
        (["--topology", "cpu", "--minutes", "0"], "--minutes must be positive"),
        ([], "--topology is missing"),
    ],
)
def test_bad_input_is_one_line(file, args, message, capsys, monkeypatch):
    code, out, err = main(capsys, monkeypatch, file, *args)
    assert code == ExitCode.BAD_INPUT
    assert out == ""
    assert message in err[-1]
    assert len([line for line in err if not line.startswith("compiling for")]) == 1


@pytest.mark.parametrize(("topology", "wheel"), [("v5e:2x2", "pip install libtpu"), ("h100:8", "jax-cuda13-plugin")])
def test_a_missing_compiler_is_named(topology, wheel, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "tpu" in name or "cuda" in name else found(name)
    )
    with pytest.raises(InputError, match=wheel):
        compiler.target(topology)


def test_what_does_not_fit_exits_3_and_names_a_change(file, whole, capsys, monkeypatch):
    # Enough for half of the rows at once.
    state = whole.memory["parameters"] + whole.memory["optimizer"]
    monkeypatch.setattr(compiler, "target", lambda name: small(state + 0.7 * (whole.memory["peak"] - state)))
    code, out, err = main(capsys, monkeypatch, file, "--topology", "cpu", "--json")
    assert code == ExitCode.TOO_LARGE
    found = json.loads(out)
    assert not found["fits"]
    change = found["change"]
    assert change["fits"]
    assert change["flags"] in ("--train.microbatches 2", "--train.microbatches 4")
    assert "does not fit cpu" in err[-1]
    assert f"with {change['flags']} it takes" in err[-1]


@pytest.fixture
def counted(monkeypatch):
    """In place of the compiler: memory and time in proportion to rows → the experiments that it was given."""
    given: list[Experiment] = []

    def step(experiment: Experiment, where: compiler.Target) -> compiler.Report:
        mesh = sharding.make_mesh(experiment.mesh, where.devices)
        sharding.check_batch(experiment, mesh)
        given.append(experiment)
        train, ways = experiment.train, mesh.shape["data"] * mesh.shape["fsdp"]
        rows = train.batch_size / ways
        state = 100 / (mesh.shape["fsdp"] * mesh.shape["tensor"])
        row = {"none": 20, "attention": 15, "block": 10}[train.remat]
        temporaries = 5 + rows / train.microbatches * row / mesh.shape["window"]
        temporaries += 10 if train.microbatches > 1 else 0  # sums of gradients
        compute = rows * {"none": 3, "attention": 3.5, "block": 4}[train.remat]
        times = {"compute": compute, "memory": 1.0, "network": 2.0}
        bound = max(times, key=lambda name: times[name])
        fits = state + temporaries <= where.available
        return compiler.Report(
            topology=where.name,
            devices=4,
            chips=4,
            mesh={name: size for name, size in mesh.shape.items() if size > 1},
            batch_size=train.batch_size,
            microbatches=train.microbatches,
            remat=train.remat,
            parameters=8,
            fits=fits,
            verdict="fits" if fits else "too large",
            hbm=200,
            available=where.available,
            memory={
                "parameters": state / 3,
                "optimizer": 2 * state / 3,
                "code": 0,
                "temporaries": temporaries,
                "peak": state + temporaries,
            },
            flops={},
            collectives={},
            roofline={"bound": bound, "step_ms": times[bound], "mfu": 0, "rows_per_s": train.batch_size / times[bound]},
            unknown_loops=0,
            compile_s=0,
        )

    monkeypatch.setattr(compiler, "compile_step", step)
    monkeypatch.setattr(compiler.flops, "parameters", lambda model: 100 / 12)
    return given


@pytest.mark.parametrize(
    ("available", "settings", "wanted"),
    [
        # 100 of state, and 4 rows on each device: 185 with all activations kept.
        (170, {"remat": "none"}, "--train.remat attention"),
        (150, {"remat": "none"}, "--train.remat block"),
        (150, {"remat": "attention"}, "--train.remat block"),
        (136, {}, "--train.microbatches 2"),
        (126, {"batch_size": 12}, "--train.microbatches 3"),
        (120, {}, "--train.batch_size 4"),
        # Weights and moments alone are too large where they are.
        (70, {}, "--mesh.data 1 --mesh.fsdp 4"),
        (51, {}, "--train.microbatches 4 --mesh.data 1 --mesh.fsdp 4"),
    ],
)
def test_the_smallest_change_that_fits_comes_first(available, settings, wanted, counted):
    made = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **settings))
    outcome = compiler.run(made, small(available), look=False, minutes=1, say=lambda text: None)
    assert not outcome.best.report.fits
    assert outcome.change_flags(made) == wanted
    assert wanted in outcome.advice(made)


def test_what_cannot_help_is_not_compiled(counted):
    compiler.run(TINY, small(70), look=False, minutes=1, say=lambda text: None)
    assert len(counted) == 2
    compiler.run(TINY, small(1), look=False, minutes=1, say=lambda text: None)
    assert len(counted) == 3


def test_nothing_fits_and_that_is_said(counted):
    outcome = compiler.run(TINY, small(1), look=False, minutes=1, say=lambda text: None)
    assert outcome.change is None
    assert "no change that fits was found" in outcome.advice(TINY)
    assert outcome.as_json(TINY)["change"] is None


def test_search_ranks_and_stays_inside_the_memory(counted):
    said: list[str] = []
    tried = compiler.search(TINY, small(90), minutes=1, say=said.append)
    best = tried[0]
    assert best.report.fits
    assert [item.report.seconds_per_row for item in tried] == sorted(item.report.seconds_per_row for item in tried)
    # All weights on each device would not fit, and is not compiled.
    assert all(item.experiment.mesh.fsdp * item.experiment.mesh.tensor > 1 for item in tried)
    assert any("not compiled" in line for line in said)
    # Without recomputation a row takes 3 instead of 4, and 20 of the 60 that state leaves.
    assert best.report.remat == "none"
    assert len(counted) <= 16
    assert f"--train.batch_size {best.report.batch_size}" in compiler.flags(TINY, best.experiment)


def test_no_time_is_no_search(counted):
    said: list[str] = []
    compiler.search(TINY, small(1e9), minutes=1e-9, say=said.append)
    assert len(counted) <= 2
    assert said[-1] == "out of time: --minutes"


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("v5e:2x2", "v5e:2x4"),
        ("2*v5e:4x4", "2*v5e:4x8"),
        ("v5e:16x16", None),
        ("tpu7x:4x4x4", "tpu7x:4x4x8"),
        ("h100:8", "h100:2x8"),
        ("h100:2x8", "h100:4x8"),
        ("cpu", None),
    ],
)
def test_larger_topologies(name, after):
    assert compiler.larger(name) == after


def test_a_device_of_two_has_half_of_its_chip():
    half = CHIPS["tpu7x"].device
    assert half.hbm == 96 * 2**30
    assert half.peak * 2 == CHIPS["tpu7x"].peak


@TPU
def test_a_tpu_that_is_not_here():
    where = compiler.target("v5e:2x2")
    report = compiler.compile_step(TINY, where)
    assert report.fits
    assert (report.devices, report.chips) == (4, 4)
    assert report.hbm == 16 * 2**30
    assert 15 < where.available / 2**30 < 16
    assert report.unknown_loops == 0
    # The gradient, once: matrices in bfloat16, the rest in float32.
    sent = report.collectives["all-reduce"]["near"]
    assert 2 * 3 / 4 * 2 * report.parameters < sent < 2 * 3 / 4 * 4 * report.parameters


@TPU
def test_topologies_have_the_devices_that_their_names_say():
    for name, devices, chips in (
        ("v4:4x4x8", 128, 128),
        ("v5p:8x8x8", 512, 512),
        ("tpu7x:4x4x4", 128, 64),
        ("2*v5e:2x2", 8, 8),
    ):
        where = compiler.target(name)
        assert (len(where.devices), where.chips) == (devices, chips)
        # The compiler keeps up to a GiB or two of the HBM for itself (v5p has a little more than its page says).
        assert -1 < (where.chip.hbm - where.available) / 2**30 < 2.5
    with pytest.raises(InputError, match="v5e has no topology 3x5"):
        compiler.target("v5e:3x5")


@TPU
@pytest.mark.slow
def test_two_slices_know_what_crosses():
    where = compiler.target("2*v5e:2x2")
    with pytest.raises(InputError, match=r"mesh.dcn_data = 1, and there are 2 slices"):
        compiler.compile_step(TINY, where)
    both = [
        compiler.compile_step(
            dataclasses.replace(
                TINY, mesh=Mesh(data=-1, dcn_data=2), train=dataclasses.replace(TINY.train, batch_size=rows)
            ),
            where,
        )
        for rows in (16, 32)
    ]
    few, many = ({kind: sent["far"] for kind, sent in report.collectives.items()} for report in both)
    # Gradients cross, and nothing that grows with the batch; so small ones are not scattered inside a slice first.
    assert few == many
    assert 0 < few["all-reduce"] == sum(few.values()) <= 8 * both[0].parameters
    assert sum(sent["near"] for sent in both[0].collectives.values()) > 0


@TPU
@pytest.mark.slow
def test_the_compiler_refuses_what_is_too_large():
    upw = config.load(ROOT / "experiments" / "upw_image.py")
    where = compiler.target("v5e:2x2")
    report = compiler.compile_step(upw, where)
    assert not report.fits
    assert report.memory["peak"] > where.available
    assert report.verdict.startswith("Ran out of memory")
    assert "\n" not in report.verdict
    assert report.collectives == report.roofline == {}


@H100
@pytest.mark.parametrize(
    ("mesh", "summaries"), [(Mesh(2, 2), True), (Mesh(2, window=2), False), (Mesh(2, tensor=2), True)], ids=str
)
def test_compiles_for_h100s_that_are_not_here(mesh, summaries):
    wide = Stream(width=128, layers=2, heads=2, kv_heads=2)
    model = Model(wide, wide, wide, window=8, halo=2 if summaries else 0, summaries=summaries)
    made = dataclasses.replace(TINY, model=model, mesh=mesh)
    report = compiler.compile_step(made, compiler.target("h100:2x2"))
    assert report.fits
    assert report.devices == 4
    assert set(report.collectives) >= {"all-reduce"}
