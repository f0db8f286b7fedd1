import json
from pathlib import Path

import pytest

from helpers import run_python
from pixtok.errors import InputError
from pixtok.files import Lines, location
from test_train import EXPERIMENT

BUCKET = Path(__file__).with_name("bucket.py")


def test_paths_that_cannot_be_used_are_bad_input():
    with pytest.raises(InputError, match=r"pixtok knows no ftp:// paths"):
        location("ftp://host/run")
    with pytest.raises(InputError, match=r"pip install 'pixtok\[gcs\]'"):
        location("s3://bucket/run")


def test_lines_begin_anew_and_grow(tmp_path):
    path = location(tmp_path / "new" / "log.jsonl")
    for kept, more in ((["old"], "a"), (["a"], "b")):
        with Lines(path, kept) as lines:
            lines.add(more)
            assert path.read_text().splitlines() == [*kept, more]


def test_lines_of_a_bucket_are_there_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("pixtok.files.is_local", lambda path: False)
    with Lines(location(tmp_path / "log.jsonl"), []) as lines:
        lines.add("a")
        assert (tmp_path / "log.jsonl").read_text() == ""
        lines.flush()
        assert (tmp_path / "log.jsonl").read_text() == "a\n"


@pytest.mark.slow
def test_a_run_lives_in_a_bucket(dataset, tmp_path):
    """Trained, resumed, scored and drawn from, and nothing of it is written anywhere else."""
    here, buckets = tmp_path / "here", tmp_path / "buckets"
    for folder in (here, buckets / "mine"):
        folder.mkdir(parents=True)
    (here / "small.py").write_text(EXPERIMENT.format(path=str(dataset)))

    def pixtok(*args: object) -> str:
        done = run_python(BUCKET, *args, cwd=here, BUCKETS=str(buckets))
        assert done.returncode == 0, done.stderr
        return done.stdout

    pixtok("train", "small.py", "--run_dir", "gs://mine/run", "--train.steps", 4)
    pixtok("train", "small.py", "--run_dir", "gs://mine/run", "--train.steps", 8)
    run_dir = buckets / "mine" / "run"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))
    assert json.loads((run_dir / "summary.json").read_text())["goodput"]["starts"] == 2
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"4", "8"}
    assert any(path.name.startswith("events") for path in (run_dir / "tensorboard").iterdir())
    scored = json.loads(pixtok("eval", "gs://mine/run"))
    assert scored["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-5)
    assert pixtok("sample", "gs://mine/run", "--size", "4x4") == "gs://mine/run/samples/000.png\n"
    assert (run_dir / "samples" / "000.png").is_file()
    assert {path.name for path in here.iterdir()} <= {"small.py", "__pycache__"}
