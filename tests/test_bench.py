import dataclasses
import json

import pytest
from models import SMALL

from pixtok import cli, config
from pixtok.bench import trace
from pixtok.bench.settings import Settings
from pixtok.bench.train import experiment, images, table
from pixtok.config import Stream
from pixtok.errors import InputError

HLO = """
%body (p: f32[8]) -> f32[8] {
  ROOT %dot.3 = f32[8]{0} dot(%a, %b), metadata={op_name="jit(f)/transpose(jvp(UnifiedModel))/encoder/dot"}
}
ENTRY %main {
  %while.1 = (f32[8]{0}, s32[]) while(%t), metadata={op_name="jit(f)/jvp(UnifiedModel)/encoder/stack/while"}
  %fusion.2 = (f32[8]{0}, f32[]) fusion(%w), kind=kLoop, metadata={op_name="jit(f)/jvp(UnifiedModel.nats)/chain/add"}
  %copy.5 = f32[8]{0} copy(%x)
  %add.4 = f32[8]{0} add(%x, %y), metadata={op_name="jit(f)/add"}
}
"""


def test_operations_belong_to_the_module_that_they_lie_in():
    assert trace.groups(HLO) == {
        "dot.3": "encoder",
        "fusion.2": "pixel head",
        "add.4": trace.REST,
        "copy.5": trace.REST,
    }


def test_a_batch_is_full_of_images():
    made = experiment(SMALL, Settings(rows=2, size=7))
    rows = images(made, 7)
    assert rows.shape_BM2.prod(-1).sum(1).tolist() == [49, 49]
    assert (rows.segment_BS == 1).all()


@pytest.mark.slow
def test_a_step_is_measured_and_split(monkeypatch, capsys):
    monkeypatch.setitem(config.PRESETS, "tiny", dataclasses.replace(SMALL, vocab_size=6))
    cli.run(["bench", "train", "tiny", "--rows", "4", "--size", "6", "--steps", "2", "--split", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["step_s"] > 0
    assert found["pixels_per_s"] == pytest.approx(4 * 36 / found["step_s"])
    assert found["mfu"] is None  # nobody knows the peak of a CPU
    assert sum(found["split"].values()) == pytest.approx(1)
    assert min(found["split"][name] for name in ("encoder", "trunk", "decoder", "pixel head")) > 0
    assert found["GiB"] > 0.1
    assert "encoder" in [row[0].strip() for row in table([found])]


def test_what_cannot_be_measured_is_bad_input():
    with pytest.raises(InputError, match="no preset nothing"):
        cli.run(["bench", "train", "nothing"])
    with pytest.raises(InputError, match="not tiny"):
        cli.run(["bench", "train", "tiny", "--peer", "eager"])
    with pytest.raises(InputError, match="--rows must be at least 1"):
        cli.run(["bench", "train", "tiny", "--rows", "0"])


def test_a_peer_takes_turns(monkeypatch, capsys):
    pytest.importorskip("torch", reason="needs PyTorch, which `make test-cluster` installs")
    stream = Stream(width=24, layers=1, heads=2, kv_heads=1)
    small = dataclasses.replace(config.UPW, encoder=stream, trunk=stream, decoder=stream, fold_factor=64, window=4)
    monkeypatch.setitem(config.PRESETS, "upw-image", small)
    flags = ["--rows", "4", "--size", "8", "--steps", "2", "--peer", "eager"]
    cli.run(["bench", "train", "upw-image", *flags, "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["pairs"]) == 2
    ours, theirs = zip(*found["pairs"], strict=True)
    assert found["step_over_torch"] == pytest.approx((ours[0] / theirs[0] + ours[1] / theirs[1]) / 2)
    assert found["torch_GiB"] > 0.1
    assert [row[0].strip() for row in table([found])][1:] == ["upw-image", "torch, eager"]
