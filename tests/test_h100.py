import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

H100 = Path(__file__).parents[1] / "experiments" / "h100.py"
ABSENT = ("grain", "tyro", "array_record", "tensorboardX", "tensorflow_datasets")


@pytest.mark.slow
def test_it_needs_no_more_than_jax_and_its_kin(tmp_path):
    lack = tmp_path / "lack"
    lack.mkdir()
    for name in ABSENT:
        (lack / f"{name}.py").write_text("raise ImportError('not on this machine')\n")
    before = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, H100, out, "12", "1"], env=before | {"PYTHONPATH": str(lack)}, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in (out / "h100.jsonl").read_text().splitlines()]
    assert [line["rc"] for line in lines] == [0] * 4, done.stderr
    assert done.returncode == 0
    assert [line["part"] for line in lines] == ["kernels", "train tiny", "train family-128", "learn"]
    assert (out / "gca.jsonl").stat().st_size
    assert lines[0]["failed"] == 0
    assert all(line["result"]["step_s"] > 0 for line in lines[1:])
    # 8 steps teach little, but that of each byte, to guess which takes 24 bits a pixel, only 4 values occur.
    assert 1.9 < lines[-1]["result"]["bits_per_pixel"] < 12
    assert {path.name for path in out.glob("*.pb")} == {"tiny.xplane.pb", "family-128.xplane.pb"}
