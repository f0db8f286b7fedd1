"""The benchmark's own arithmetic, and that it survives what it may meet."""

import json
import time

import bench
import numpy as np

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
