import dataclasses
import json
import math

import pytest

from pixtok import config
from pixtok.config import PRESETS, Data, Experiment, Stream, Train
from pixtok.errors import InputError

GOOD = Experiment("x", PRESETS["tiny"], Data("d"), Train(steps=10, batch_size=4, warmup_steps=1))


def changed(name: str, value) -> Experiment:
    def change(node, path):
        head, *tail = path
        return dataclasses.replace(node, **{head: change(getattr(node, head), tail) if tail else value})

    return change(GOOD, name.split("."))


def test_json_round_trip():
    mixed = dataclasses.replace(GOOD, data=Data("d", mix=("e", "f"), weights=(1, 2, 0.5)))
    for experiment in (GOOD, mixed):
        assert config.from_json(Experiment, json.loads(json.dumps(dataclasses.asdict(experiment)))) == experiment


def test_settings_that_came_later_have_their_defaults():
    content = dataclasses.asdict(GOOD)
    del content["data"]["mix"], content["profile"]
    assert config.from_json(Experiment, content) == GOOD
    del content["train"]["steps"]
    with pytest.raises(InputError, match="another version of pixtok: it differs in steps"):
        config.from_json(Experiment, content)


def test_a_setting_of_another_version_is_bad_input():
    content = dataclasses.asdict(GOOD)
    content["train"]["momentum"] = 1
    with pytest.raises(InputError, match="Train was written by another version of pixtok: it differs in momentum"):
        config.from_json(Experiment, content)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    config.validate(changed("model", PRESETS[name]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.fold_factor", 12, "model.fold_factor must be a power of two from 1 to 256; got 12"),
        ("model.halo", 9, "model.halo must be from 0 to model.window = 8; got 9"),
        ("model.decoder.layers", -1, "model.decoder.layers must be at least 0; got -1"),
        ("model.vocab_size", 5, "model.vocab_size must be at least 6"),
        ("model.trunk.heads", 3, "model.trunk.width must be a multiple of model.trunk.heads = 3; got 128"),
        ("model.trunk.kv_heads", 3, "model.trunk.heads must be a multiple of model.trunk.kv_heads = 3; got 4"),
        ("model.encoder", Stream(width=12, layers=1, heads=2, kv_heads=1), "width / heads must be a multiple of 4"),
        ("model.trunk.layers", 0, "model.trunk.layers must be at least 1; got 0"),
        ("data.slots", 1, "data.slots must be at least 2; got 1"),
        ("data.mix", ("e", "d"), "data.mix must be other data sets, each once; got e, d"),
        ("data.weights", (1.0,), "data.weights must be left out without data.mix; got (1.0,)"),
        ("data", Data("d", mix=("e",), weights=(1.0,)), "for each data set, 2 in all; got 1.0"),
        ("data", Data("d", mix=("e",), weights=(1.0, math.nan)), "positive and finite number for each data set"),
        ("data.max_bad", 2.0, "data.max_bad must be a share"),
        ("train.steps", 0, "train.steps must be at least 1; got 0"),
        ("train.warmup_steps", 10, "train.warmup_steps must be from 0 to 9, less than train.steps; got 10"),
        ("train.seed", -1, "train.seed must be from 0 to 4294967295; got -1"),
        ("train.learning_rate", 0.0, "train.learning_rate must be positive and finite; got 0.0"),
        ("train.microbatches", 3, "train.batch_size must be a multiple of train.microbatches = 3; got 4"),
        ("checkpoint.every", 0, "checkpoint.every must be at least 1"),
        ("checkpoint.keep_every", 750, "checkpoint.keep_every must be a multiple of checkpoint.every = 500; got 750"),
        ("profile.start", 0, "profile.start must be at least 1; got 0"),
        ("profile.steps", -1, "profile.steps must be from 0 to 8, for train.steps = 10 and profile.start = 3; got -1"),
        ("profile.steps", 9, "profile.steps must be from 0 to 8, for train.steps = 10 and profile.start = 3; got 9"),
    ],
)
def test_what_cannot_run_is_refused(name, value, message):
    config.validate(GOOD)
    with pytest.raises(InputError) as error:
        config.validate(changed(name, value))
    assert message in str(error.value)


def test_experiment_files(tmp_path):
    with pytest.raises(InputError, match="no experiment at"):
        config.load(tmp_path / "missing.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="must define"):
        config.load(tmp_path / "empty.py")
    for code, message in (
        ("def config(fast=True): ...", "parameter fast of config must have a str, an int or a float"),
        ("def config(arm): ...", "parameter arm of config must have"),
        ("def config(init=1): ...", "parameter init of config is an option of pixtok"),
        ("config = 3", "must define"),
    ):
        (tmp_path / "odd.py").write_text(code)
        with pytest.raises(InputError, match=message):
            config.load(tmp_path / "odd.py")
