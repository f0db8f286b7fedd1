"""The benchmark's own arithmetic, and that it survives what it may meet."""

import importlib.util
import json
import subprocess
import sys
import time

import bench
import jax
import numpy as np
import pytest
import tune

from helpers import ROOT
from pixtok_kernels import tuning
from pixtok_kernels.shapes import Case, draw

TINY = Case(B=1, M=3, W=4, P=2, S=3, H=2, K=1, D=8)


def test_pairs_are_those_of_the_definition():
    a = draw(TINY, np.float32, ragged=False)
    span = np.asarray(a.span_BM2)
    own, halo = TINY.W * (TINY.W + 1) // 2, TINY.W * np.asarray(a.halo_count_BM)
    assert bench.pairs(TINY, causal=False) == (own + halo + TINY.W * (span[..., 1] - span[..., 0])).sum()
    assert bench.pairs(TINY, causal=True) == np.tril(np.ones((12, 12))).sum()


def test_a_lane_that_fails_is_a_row_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "cases", lambda device: [TINY])
    rows, emit = bench.recorder(tmp_path / "rows.jsonl")
    bench.times("cpu", ["none", "library", "causal"], 100, time.monotonic() + 60, emit)
    failed, ours, causal = ([row for row in rows if row["attention"] == name] for name in ("none", "library", "causal"))
    assert all(row["ms"] > 0 and row["speed_up"] > 0 for row in ours)
    assert [row["pass"] for row in ours] == [row["pass"] for row in causal] == ["forward", "both"]
    assert [row["error_line"] for row in failed] == ["ValueError: no lane is called none"] * 2
    bench.times("cpu", ["library"], 100, time.monotonic() - 1, emit)
    assert "skipped" in rows[-1]
    bench.summary("cpu", rows, emit)
    assert rows[-1]["kind"] == "target"
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert "not measured" in capsys.readouterr().out


def test_search_changes_one_field_after_the_other_and_survives_what_does_not_compile():
    def cost(blocks: tuning.Blocks) -> float:
        if blocks.lanes == 512:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
        return abs(blocks.rows - 2048) + 10 * abs(blocks.lag - 3) + blocks.lanes / 128

    best, least = tune.search(tuning.Blocks(), {"rows": (512, 2048), "lag": (3, 5), "lanes": (128, 512)}, cost)
    assert (best.rows, best.lag, best.lanes, least) == (2048, 3, 128, 1)


def test_tuned_blocks_serve_their_device_and_their_shapes(monkeypatch):
    case = Case(B=1, M=9, W=256, P=0, S=9, H=4, K=2, D=64)
    monkeypatch.setattr(tuning, "_read", lambda kind: {tuning.key(case, 2): {"rows": 2048}})
    assert tuning.blocks(case, 2) == tuning.Blocks()  # this is no TPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert tuning.blocks(case, 2) == tuning.Blocks(rows=2048)
    assert tuning.blocks(case._replace(W=64), 2) == tuning.Blocks()
    monkeypatch.setattr(tuning, "_read", lambda kind: {tuning.key(case, 2): {"rows": 0}})
    with pytest.raises(ValueError, match="rows and fetch must be positive"):
        tuning.blocks(case, 2)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, which compiles for TPU, is not installed")
def test_schedules_are_read_from_the_compiler(tmp_path):
    """In a process of its own: what the compiler writes is settled when it is loaded."""
    code = """
import sys, pathlib, schedule
from pixtok_kernels.shapes import Case
schedule.dump_to(pathlib.Path(sys.argv[1]))
for row in schedule.ours(Case(B=1, M=64, W=256, P=0, S=256, H=2, K=2, D=64), "v5e", pathlib.Path(sys.argv[1])):
    print(row.pass_, row.cycles, row.matrix_unit)
"""
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT / "kernels", capture_output=True, text=True, check=True
    )
    rows = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in made.stdout.splitlines()}
    assert rows.keys() == {"forward", "backward"}
    # The matrix units alone take 256 and 640 cycles; nothing is scheduled ten times as long as that.
    assert 256 < rows["forward"][0] < 2560
    assert 640 < rows["backward"][0] < 6400
    assert all(0.2 < busy < 1 for _, busy in rows.values())
