"""The reading experiment: its images, its arms, its runs, its statistics, its page."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import arms
import ceiling
import compare
import figures
import pace
import report
import source
import stats
import study
from pixtok import cli, flops
from pixtok.config import validate
from pixtok.data import images
from pixtok.data.build import Settings, build
from pixtok.data.pipeline import Loader
from pixtok.errors import InputError
from results import Results

PHOTOS = np.random.default_rng(0).integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
HEIGHT_K = np.array(source.HEIGHTS, float)


def flat(height: float, contrast: int, seed: int = 0, fonts=source.FONTS) -> source.Scene:
    scenes = (source.scene((seed, n), PHOTOS, list(fonts), (2, 3), height, contrast) for n in range(1000))
    return next(scene for scene in scenes if scene.kind == "flat")


@pytest.mark.parametrize("height", source.HEIGHTS)
@pytest.mark.parametrize("contrast", [8, 128])
def test_digits_have_their_height_contrast_and_place(height, contrast):
    for seed in range(5):
        scene = flat(height, contrast, seed)
        change = scene.sign * (scene.image().astype(float) - scene.ground)
        assert change.min() > -0.51  # rounded, never cut off
        strongest = change.max() / contrast
        assert strongest <= 1 + 0.51 / contrast
        assert strongest > (0.9 if height >= 12 else 0.4)  # thin strokes of small digits cover pixels in part
        rows, columns = (np.flatnonzero((change > 0.3 * change.max()).any((axis, 2))) for axis in (1, 0))
        assert abs(np.ptp(rows) + 1 - height) <= 2  # italics and old numerals reach beyond a zero
        for middle, size in ((rows, source.HEIGHT), (columns, source.WIDTH)):
            assert abs((middle[0] + middle[-1] + 1) / 2 - size / 2) <= source.DRIFT + 1.5


def test_scenes_are_their_seeds_and_sets_have_their_own():
    sets = {name: next(source.training(name, PHOTOS, 1)).image() for name in ("train", "unlabelled", "labels-1000")}
    assert all((sets["train"] != other).any() for name, other in sets.items() if name != "train")
    again = next(source.training("train", PHOTOS, 1)).image()
    np.testing.assert_array_equal(sets["train"], again)
    few, many = (source.training(f"labels-{count}", PHOTOS, 5) for count in (1000, 16000))
    assert [one.text for one in few] == [one.text for one in many]
    assert {one.font for one in source.tests("held-out", PHOTOS, 3)} <= set(source.HELD_OUT)
    assert not set(source.HELD_OUT) & set(source.FONTS)
    assert {one.contrast for one in source.tests("contrast", PHOTOS, 1)} == set(source.CONTRASTS)
    assert {len(one.text) for one in source.tests("test", PHOTOS, 4)} == {2, 3}


def test_photographs_for_tests_are_not_those_for_training(photos):
    ours, theirs = source.photographs(str(photos))
    assert len(ours) == 21
    assert len(theirs) == 3
    assert not {one.tobytes() for one in ours} & {one.tobytes() for one in theirs}


@pytest.mark.parametrize("arm", ["vit8", "vit16", "window16"])
def test_parameters_are_matched(arm):
    words = flops.parameters(arms.MODELS["words"])
    assert flops.parameters(arms.MODELS[arm]) == pytest.approx(words, rel=0.05)


@pytest.mark.parametrize("arm", ["vit8", "vit16", "full", "upw", "local", "window4"])
def test_flops_are_matched(arm):
    assert arms.matched(arm) * arms.gflop(arm) == pytest.approx(arms.IMAGES * arms.gflop("words"), rel=0.05)
    assert arms.matched(arm) <= source.SIZES["train"] - source.VALIDATION  # no image is seen twice


def test_all_that_is_compared_shares_a_trunk():
    assert len({model.trunk for model in arms.MODELS.values()}) == 1


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """An empty folder of results, and tuning that chose."""
    monkeypatch.setattr(study, "RESULTS", tmp_path / "reading")
    study.RESULTS.mkdir()
    for cell in study.cells():
        for rate in study.RATES:
            put(study._tuning(cell, rate), validation=abs(np.log2(rate / 1e-3)))
    return study.RESULTS


def put(job: study.Job, validation: float = 1.0, tests=None) -> None:
    found = {
        "settings": study.settings(job),
        "validation": validation,
        "parameters": 10**6,
        "gflop_an_image": 1.0,
        "minutes": {"training": 1, "reading": 1},
        "made": "here",
        "tests": tests or {},
    }
    (study.RESULTS / f"{job.name}.json").write_text(json.dumps(found))


def test_every_run_is_a_command_that_pixtok_takes(results, monkeypatch):
    taken = []
    monkeypatch.setattr("pixtok.train.Trainer", lambda made, run_dir, **how: taken.append((made, run_dir, how["init"])))
    jobs = {job.arm + job.init: job for job in study.all_jobs()}
    assert {job.arm for job in jobs.values()} == set(arms.MODELS)
    for job in jobs.values():
        with pytest.raises(AttributeError):  # nothing is trained
            cli.run(["train", arms.__file__, *study.flags(job)])
        made, run_dir, init = taken.pop()
        validate(made)
        assert made.model == arms.MODELS[job.arm]
        assert made.train.steps == job.images // arms.BATCH
        assert made.train.learning_rate == study.settings(job)["rate"]
        assert made.data.path == str(study.DATA / job.data)
        assert run_dir == str(study.folder(job))
        before = study._before(job)
        assert init == (None if before is None else str(study.folder(before)))


def test_names_of_runs_are_their_own(results):
    jobs = [*study.all_jobs(), *(study._tuning(cell, 1e-3) for cell in study.cells())]
    assert len({job.name for job in jobs}) == len(jobs)
    assert len({study.folder(job) for job in jobs}) == len(jobs)
    stages = (study.longer(), study.again(), study.more())
    numbers = [{job.seed for job in stage} for stage in stages]  # fresh in each
    assert sum(map(len, numbers)) == len(set.union(*numbers))
    assert {job.seed for job in study.half()} == numbers[1] | numbers[2]  # as the patches that they are compared with
    begun = {job.init for job in jobs if job.init}
    assert begun <= {job.name for job in jobs}


def test_tuning_comes_before_all_other_stages_and_a_wrong_stage_before_any(monkeypatch):
    ran = []
    monkeypatch.setattr(
        study, "_all", lambda chains: ran.append([job.name for chain in chains for job in itertools.islice(chain, 1)])
    )
    study.main(["ablation", "tuning", "main"])
    tuning, others = ran
    assert tuning == [study._tuning(cell, study.RATES[0]).name for cell in study.cells()]
    study.main(["words-again-6"])
    assert ran.pop() == ["words-again-6"]
    assert ran.pop() == []
    assert {"pretrained", "words-data-1"} <= set(others)
    with pytest.raises(InputError, match="a stage is tuning, main"):
        study.main(["main", "longest"])
    assert len(ran) == 2


def test_a_run_that_fails_stops_none_but_those_after_it(results, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "__file__", str(tmp_path / "bad.py"))
    (tmp_path / "bad.py").write_text("import sys, json; sys.exit(json.loads(sys.argv[1])['name'] == 'pretrained')")
    with pytest.raises(InputError, match=r"^pretrained ended with exit code 1, see .*; run again to go on$"):
        study._all(study._chains("ablation"))
    ran = {file.name.rsplit("-", 1)[0] for file in study.RUNS.glob("*.log")}
    assert ran == {job.name for job in study.ablations() if not job.init}


def test_a_rate_at_an_end_is_followed(results):
    (cell, *_) = study.cells()
    for rate in study.RATES:
        put(study._tuning(cell, rate), validation=rate)
    tried = []
    for job in study.tuning(cell):
        tried.append(job.rate)
        put(job, validation=abs(np.log2(job.rate / 2.5e-4)))
    assert tried[:3] == list(study.RATES)
    assert tried[3:] == [2.5e-4, 1.25e-4]
    assert study.chosen(cell) == 2.5e-4


def test_what_was_trained_otherwise_is_not_done(results, monkeypatch):
    job = study._tuning("words-data", 1e-3)
    assert study.result(job) is not None
    monkeypatch.setattr(arms, "BATCH", 16)
    assert study.result(job) is None


def test_what_begins_with_other_weights_is_not_done(results, monkeypatch):
    monkeypatch.setattr(study, "chosen", lambda *cell: 1e-3)
    (job,) = [job for job in study.ablations() if job.name == "words-1000-pretrained"]
    put(job)
    folder = study.folder(job)
    assert study.result(job) is not None
    assert study.settings(job)["init"]["arm"] == "full"
    monkeypatch.setattr(arms, "matched", lambda arm: 800)
    assert study.result(job) is None
    assert study.folder(job) != folder  # what is there was trained otherwise, and pixtok would not go on with it


def test_a_rate_at_which_training_fails_is_not_chosen(results):
    put(study._tuning("words-data", 2e-3), validation=np.inf)
    assert study.chosen("words-data") == 1e-3


def test_without_tuning_no_rate_is_chosen(results):
    for file in results.glob("tuning-words-data-*"):
        file.unlink()
    with pytest.raises(InputError, match="words-data is not tuned yet"):
        study.chosen("words-data")


@pytest.mark.parametrize(
    ("one", "other", "far"), [("12", "12", 0), ("", "12", 2), ("21", "12", 2), ("123", "13", 1), ("4", "123", 3)]
)
def test_distance_is_levenshteins(one, other, far):
    assert study.distance(one, other) == far == study.distance(other, one)


def test_distances_survive_their_code():
    np.testing.assert_array_equal(study.decode(study.encode([0, 3, 1, 0])), [0, 3, 1, 0])


LAW = (np.log(9.0), 8.0, 0.02)


def drawn(rng, law=LAW, seeds: int = 1, count: int = 400, spread: float = 0.0) -> stats.Cell:
    """A cell of readers whose middles differ by `spread`."""
    distances = []
    for _ in range(seeds):
        own = (law[0] + spread * rng.standard_normal(), *law[1:])
        share_K = stats.curve(HEIGHT_K, own)
        distances.append((rng.random((count, len(HEIGHT_K))) > share_K).astype(np.uint8).ravel())
    heights = np.tile(HEIGHT_K, count)
    return stats.Cell(np.stack(distances), np.full(len(heights), 2), heights)


def test_a_psychometric_function_is_found_again():
    law = stats.fit(HEIGHT_K, stats.curve(HEIGHT_K, LAW))
    np.testing.assert_allclose(law, LAW, rtol=0.02, atol=2e-3)
    for level in (0.5, 0.9):
        at = stats.threshold(HEIGHT_K, LAW, level)
        assert stats.curve(np.array(at), LAW) == pytest.approx(level)
    assert stats.threshold(HEIGHT_K, (np.log(30.0), 8.0, 0.0), 0.5) == 20
    assert stats.threshold(HEIGHT_K, (np.log(3.0), 8.0, 0.0), 0.9) == 6
    assert stats.threshold(HEIGHT_K, (np.log(9.0), 8.0, 0.2), 0.9) == 20


def test_intervals_over_images_are_neither_too_narrow_nor_too_wide():
    rng = np.random.default_rng(1)
    summaries = [stats.summary(drawn(rng), draws=30) for _ in range(40)]
    truth = {"exact": stats.curve(HEIGHT_K, LAW).mean()}
    truth |= {f"h{level}": stats.threshold(HEIGHT_K, LAW, level / 100) for level in (50, 90)}
    for name, value in truth.items():
        found = [stats.estimate(summary, name) for summary in summaries]
        assert np.mean([one.low <= value <= one.high for one in found]) >= 0.85
        spread = np.std([one.value for one in found])
        assert np.mean([one.high - one.low for one in found]) < 1.5 * 2 * 1.96 * spread


def test_intervals_over_seeds_cover_what_seeds_change():
    rng = np.random.default_rng(2)
    found = [stats.estimate(stats.summary(drawn(rng, seeds=3, spread=0.1), draws=15), "h50") for _ in range(40)]
    middle = stats.threshold(HEIGHT_K, LAW, 0.5)
    assert np.mean([one.low <= middle <= one.high for one in found]) >= 0.85
    alone = [stats.estimate(stats.summary(drawn(rng, seeds=3), draws=15), "h50") for _ in range(10)]
    widths = [np.mean([one.high - one.low for one in some]) for some in (found, alone)]
    assert widths[0] > 2 * widths[1]


def test_a_difference_is_taken_image_by_image():
    rng = np.random.default_rng(3)
    cell = drawn(rng)
    better = cell._replace(distance_TN=cell.distance_TN * (rng.random(cell.distance_TN.shape) > 0.05))
    one, other = (stats.summary(some, draws=60) for some in (better, cell))
    paired = stats.estimate(one, "exact", other)
    assert 0 < paired.low <= paired.value == pytest.approx((one.value_V - other.value_V)[0])
    alone = stats.estimate(other, "exact")
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


def test_seeds_that_differ_alike_do_not_widen_what_is_taken_seed_by_seed():
    rng = np.random.default_rng(4)
    cells = [drawn(rng, seeds=1, law=(np.log(9.0 + shift), 8.0, 0.02)) for shift in (-1, 0, 1, 2)]
    one = cells[0]._replace(distance_TN=np.concatenate([cell.distance_TN for cell in cells]))
    worse = one._replace(distance_TN=one.distance_TN | (rng.random(one.distance_TN.shape) < 0.1))
    both = stats.summary(worse, draws=40), stats.summary(one, draws=40)
    found = [stats.estimate(both[0], "exact", both[1], by_seed=by_seed) for by_seed in (False, True)]
    assert found[0].value == found[1].value < 0
    assert found[0].low < 0 < found[0].high  # seeds hide it
    assert found[1].high < 0


def test_wrong_characters_are_counted():
    cell = stats.Cell(
        np.tile([[0, 2, 1, 0]], (1, 8)).astype(np.uint8), np.tile([2, 2, 3, 3], 8), np.repeat(HEIGHT_K, 4)
    )
    found = stats.summary(cell, draws=5)
    assert found.value_V[stats.NAMES.index("cer")] == pytest.approx(3 / 10)
    assert found.value_V[stats.NAMES.index("exact")] == 0.5


def test_the_ceiling_is_what_folding_leaves():
    faint = flat(12, 8)
    middle = np.full_like(faint.ground, 64 - 4 * faint.sign + 32)  # ink within the bin of 64 … 127
    hidden = source.Scene(**{**vars(faint), "ground": middle})
    np.testing.assert_allclose(ceiling.exact(hidden, [1, 64]), [1, 0.1 ** len(faint.text)])
    assert ceiling.psnr(faint.image(), 1) == np.inf
    assert 20 < ceiling.psnr(faint.image(), 32) < ceiling.psnr(faint.image(), 4)


@pytest.fixture
def tests_of_eight(tmp_path, monkeypatch, results, photos) -> Path:
    """Test sets of few images, in place of those of the study."""
    _, theirs = source.photographs(str(photos))
    monkeypatch.setattr(source, "TESTS", {"test": 40, "held-out": 4, "contrast": 4})
    monkeypatch.setattr(stats, "DRAWS", 20)
    for name, each in source.TESTS.items():
        scenes = list(source.tests(name, theirs, each))
        fields = {key: [getattr(one, key) for one in scenes] for key in ("text", "height", "contrast", "kind", "font")}
        np.savez(tmp_path / f"{name}.npz", image=np.stack([one.image() for one in scenes]), **fields)
        source.stamp(tmp_path, name, each, theirs)
    return tmp_path


def reads(folder: Path, job: study.Job, smallest: float) -> None:
    """A result: all is read exactly from some height on, nothing below."""
    tests = {}
    for name in job.reads:
        with np.load(folder / f"{name}.npz") as test:
            far = np.where(test["height"] >= smallest, 0, 1).tolist()
            tests[name] = {
                "distances": study.encode(far),
                "wrong": [[n, "7"] for n in np.flatnonzero(far)[:3].tolist()],
            }
    put(job, tests=tests)


@pytest.mark.parametrize(
    ("smallest", "first", "second"),
    [
        ({"words": 8, "vit16": 14, "vit8": 8}, "HOLDS", "HOLDS"),
        ({"words": 14, "vit16": 14, "vit8": 8}, "FAILS", "FAILS"),
        ({"words": 8, "vit16": 30, "vit8": 30}, "no comparison, vit8-long reads 0.0%", "no comparison, vit8-long"),
        ({"words": 8, "vit8": 8}, "no comparison, not all runs of vit16-data are there", "HOLDS"),
    ],
)
def test_the_page_says_first_what_was_found(smallest, first, second, tests_of_eight, photos, capsys, monkeypatch):
    readme = tests_of_eight / "README.md"
    readme.write_text(f"# Title\n\n{report._MARKS[0]}\nold\n{report._MARKS[1]}\n\nrest\n")
    monkeypatch.setattr(report, "__file__", str(tests_of_eight / "report.py"))
    again = smallest | {"words": 22 - smallest["words"]}  # fresh seeds of 8 read 14, of 14 read 8
    for job in study.main_jobs() + study.longer() + study.again() + study.more() + study.half():
        if job.arm in smallest:
            reads(tests_of_eight, job, (again if "again" in job.name or "half" in job.name else smallest)[job.arm])
    report.main(str(photos), tests_of_eight)
    said = capsys.readouterr().out.splitlines()
    assert first in said[0]
    assert second in said[1]
    assert first.replace("data", "long") in said[2]
    assert second in said[3]
    assert "second addendum" in said[3]
    other = {"HOLDS": "FAILS", "FAILS": "HOLDS"}
    assert other.get(first, first.replace("data", "again")) in said[4]
    assert other.get(second, second) in said[5]
    assert "third addendum" in said[5]
    assert second in said[6]
    assert "H2" in said[6]
    assert "fourth addendum" in said[6]
    assert other.get(second, second) in said[7]
    assert "sixth addendum" in said[7]
    assert said[8].count("points: 8 × 8, ") == 1
    assert ("8 × 8, no comparison" in said[8]) == ("no comparison" in second)
    assert ("8 × 8, +0.0 (+0.0 to +0.0)" in said[8]) == (second == "HOLDS")
    assert "16 × 16, no comparison" in said[8]
    page = study.RESULTS.with_suffix(".html").read_text()
    shown = re.findall(r"<strong>(.*?)</strong>", page)
    assert [len(shown), page.count("<svg")] == [9, 4]
    assert first in shown[0]
    assert "data:image/png" in page
    assert report.MISSING in page  # upw, full and all ablations
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{report._MARKS[0]}\n{said[0]}")
    assert text.endswith(f"{report._MARKS[1]}\n\nrest\n")
    assert "| words | data | 5 |" in text
    assert "| words | more images, fresh seeds | 4 |" in text
    assert "| words | more images, eight more seeds | 8 |" in text
    assert "| words | more images, seven seeds | 7 |" in text
    assert "| words | more images, fifteen seeds | 15 |" in text
    assert "| words | more images, twelve seeds at 0.0005 | 12 |" in text
    assert "| words | more images, twelve seeds | 12 |" in text
    rows = {line.split(":")[0]: line for line in text.splitlines() if line.startswith("| words-")}
    pooled = {8: ("-21.4 (", "-10.0 ("), 14: ("-16.1 (", "-27.5 (")}[smallest["words"]]  # four read otherwise
    for name, value in zip(("seven", "fifteen"), pooled, strict=True):
        row = rows[f"| words-{name} − vit8-{name}"].split(" | ")
        assert row[1].startswith("no comparison" if "no" in second else value)
    (by_height,) = [line for line in text.splitlines() if line.startswith("| words-half − vit8-twelve |")]
    if second == "HOLDS":  # of the heights that vit8 reads, from 8 px, words-half reads those from 14
        shown = [cell.split(" ")[0] for cell in by_height.split(" | ")[1:]]
        assert shown == ["+0.0"] * 2 + ["-100.0"] * 3 + ["+0.0"] * 3
    usual, fresh = (75.0, 37.5) if smallest["words"] == 8 else (37.5, 75.0)
    shares = [usual] * 3 + [fresh] * 4 + [usual] * 8
    assert f"| {', '.join(map(str, shares))} |" in text
    tuned = len(study.RATES) * len(study.cells())
    assert f", {tuned} of them to choose learning rates," in text
    pictures = re.findall(r"]\(\.\./results/(.*?)\)", text)
    assert len(pictures) == 4 + len(set(smallest) & {"words", "vit16", "vit8"})
    for picture in pictures:
        assert min(images.read(study.RESULTS.parent / picture).shape[:2]) > 30


def test_what_is_trained_once_more_stands_beside_the_first_time(tests_of_eight, monkeypatch):
    for job in study.main_jobs():
        reads(tests_of_eight, job, 8)
    first = study.RESULTS
    monkeypatch.setattr(study, "RESULTS", first / study.REPEATED)
    study.RESULTS.mkdir()
    for cell in study.cells():
        for rate in study.RATES:
            put(study._tuning(cell, rate), validation=-rate if cell == "words-data" else rate)  # others are chosen
    for job in study.main_jobs():
        if job.tuned != "vit8-data" or job.seed != 3:  # not yet
            reads(tests_of_eight, job, 14 if job.arm == "words" else 8)
    monkeypatch.setattr(study, "RESULTS", first)
    both = Results(tests_of_eight), Results(tests_of_eight, study.REPEATED)
    rows = {name: rest for name, *rest in report.repeated_table(*both)}
    assert rows["words-data"] == ["75.0 % (75.0 to 75.0), rate 0.001", "37.5 % (37.5 to 37.5), rate 0.002"]
    assert rows["words-data − vit16-data: exact, points"] == ["+0.0 (+0.0 to +0.0)", "-37.5 (-37.5 to -37.5)"]
    assert rows["words-data − vit8-data: exact, points"] == ["+0.0 (+0.0 to +0.0)", report.NONE]
    assert rows["fold4-1"] == rows["words-long"] == [report.MISSING] * 2
    names, shares = figures.fold_shares({"": both[0], ", once more": both[1]}, {one: [] for one in source.CONTRASTS})
    shown = dict(zip(names, shares.tolist(), strict=True))
    assert shown["F = 16"] == [0.75] * len(source.CONTRASTS)
    assert shown["F = 16, once more"] == [0.375] * len(source.CONTRASTS)
    assert np.isnan(shown["F = 4, once more"]).all()
    (runs,) = re.findall(r"here; (\d+) runs, ", report._cost(study.repeated_jobs(), study.REPEATED))
    assert int(runs) == len(list((first / study.REPEATED).glob("*.json")))


@pytest.mark.parametrize(
    ("words", "vit16", "verdict", "beyond", "shown"),
    [
        (
            8,
            30,
            "HOLDS",
            r"h90 of words-data is at least 1[\d.]+ px below that of vit16-data; of vit16-data it may be above 20 px",
            r"≤ -1[\d.]+",
        ),
        (
            30,
            8,
            "FAILS",
            r"h90 of words-data is at least 1[\d.]+ px above that of vit16-data; of words-data it may be above 20 px",
            r"≥ \+1[\d.]+",
        ),
        (20, 30, "UNDECIDED", "above 20 px", r"≤ -1\.1"),
        (
            30,
            30,
            "UNDECIDED",
            "; h90 of words-data and of vit16-data may be above 20 px, so that no difference is known;",
            "both > 20",
        ),
    ],
)
def test_what_lies_beyond_the_heights_decides_only_what_it_can(words, vit16, verdict, beyond, shown, tests_of_eight):
    for job in study.main_jobs():
        smallest = {"words-data": words, "vit16-data": vit16}.get(job.tuned, 10)
        reads(tests_of_eight, job, smallest)
    found = report.first(Results(tests_of_eight))
    assert f": {verdict};" in found
    assert re.search(beyond, found)
    (row,) = [
        row for row in report.beside_table(Results(tests_of_eight)) if row[0].startswith("words-data − vit16-data")
    ]
    assert re.fullmatch(shown, row[-1])


@pytest.mark.parametrize(
    ("px", "upper", "said"),
    [
        (-5.4, True, "at least 5.4 px below"),
        (0.3, True, "at most 0.3 px above"),
        (0.3, False, "at least 0.3 px above"),
        (-5.4, False, "at most 5.4 px below"),
    ],
)
def test_a_difference_with_one_end_is_said_as_such(px, upper, said):
    assert report._limit(px, upper=upper) == said


def test_results_made_anew_are_compared_with_those_of_a_commit(results, monkeypatch, capsys):
    monkeypatch.setattr(study, "chosen", lambda *cell: 1e-3)
    first, second, third = study.main_jobs()[:3]
    for job in (first, second):
        put(job, tests={"test": {"distances": study.encode([0, 1, 2, 0]), "wrong": []}})
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=results, check=True)
    compare.main()
    whole = len(list(results.glob("*.json")))
    assert capsys.readouterr().out == f"{whole} results are those of HEAD\n"
    put(first, tests={"test": {"distances": study.encode([0, 0, 2, 0]), "wrong": []}}, validation=0.5)
    put(third)
    compare.main("HEAD")
    lines = capsys.readouterr().out.splitlines()
    assert f"{third.name}: not in HEAD" in lines
    (line,) = [line for line in lines if line.startswith(f"{first.name}: ")]
    assert "validation 0.5000 (before 1.0000)" in line
    assert "test: 1 of 4 images differ, exact 75.0 % (before 50.0 %)" in line
    assert lines[-1] == f"{whole - 1} results are those of HEAD"
    (results / f"{first.name}.json").unlink()
    monkeypatch.setattr(arms, "BATCH", 16)
    put(second)
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert f"{second.name}: other settings, not compared" in lines
    assert f"{first.name}: not here" in lines
    with pytest.raises(InputError, match=r"^none is no commit$"):
        compare.main("none")


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["report.py"], "usage: python report.py CIFAR, a folder"),
        (["source.py", str(tmp_path / "none")], "none"),
        (["source.py", str(tmp_path / "empty")], "empty"),
    ):
        with pytest.raises(SystemExit, match="2"):
            source.command(source.photographs, words)
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    with pytest.raises(InputError, match=r"has no test.npz: python experiments/reading/source.py CIFAR makes it"):
        Results(tmp_path)


def test_other_photographs_are_told(tests_of_eight, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    (tmp_path / "other").mkdir()
    for number, photo in enumerate(PHOTOS):
        (tmp_path / "other" / f"{number}.png").write_bytes(images.encode(photo))
    with pytest.raises(InputError, match=r"other does not hold the photographs that the tests of .* were made with"):
        report.main(str(tmp_path / "other"), tests_of_eight)


def test_one_seed_decides_nothing(tests_of_eight):
    for job in study.main_jobs():
        if job.seed == 1:
            reads(tests_of_eight, job, 8)
    assert "not all runs of words-data and vit8-data are there" in report.second(Results(tests_of_eight))


def small(folder: Path) -> Path:
    """A data set of 40 images."""
    tar = folder / "some.tar"
    source.pack(source.training("train", PHOTOS, 40), tar, texts=True)
    build(str(tar), folder / "train", Settings(caption="after", validation=0.1, test=0))
    return folder / "train"


def test_all_arms_see_the_same_images_in_the_same_order(tmp_path):
    path, orders = str(small(tmp_path)), []
    for arm in ("words", "vit8", "vit16"):
        made = arms.config(arm, images=48, seed=3, data=path)
        loader = Loader(made.data, made.model, split="train", batch_size=8, seed=3)
        with loader.stream(0) as batches:
            orders.append([next(batches).documents for _ in range(4)])
    assert orders[0] == orders[1] == orders[2]


def test_the_pace_of_arms_tells_how_long_the_study_takes(results, monkeypatch, capsys):
    paces = {arm: pace.Pace(30.0, 0.01 * (1 + number), 6.0, 0.001) for number, arm in enumerate(sorted(arms.MODELS))}
    monkeypatch.setattr(pace, "measured", lambda core, arm: paces[arm])
    guard, *_ = study.main_jobs()
    own = paces["vit8"]
    assert own.minutes(guard) == pytest.approx((30 + own.step * guard.images / 8 + 6 + 16) / 60)
    pretrained = next(job for job in study.ablations() if not job.reads)
    assert own.minutes(pretrained) == pytest.approx((30 + own.step * pretrained.images / 8) / 60)
    monkeypatch.setattr(study, "DATA", results)
    with pytest.raises(InputError, match=r"has no test\.npz"):
        pace.main([])
    (results / "test.npz").touch()
    with pytest.raises(InputError, match=r"^stages are tuning, main, longer, again, more, half, ablation; got most$"):
        pace.main(["main", "most"])
    pace.main(["tuning", "again"])
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    count = len(study.cells()) * len(study.RATES)
    assert lines["tuning"][0] == f"{count}"
    assert lines["tuning"][2] == f"{count * 2 / 60:.1f}"  # as recorded
    assert lines["again"][2] == "-"  # nothing is
    hours = sum(paces[job.arm].minutes(job) for job in study.all_tuning() + study.again()) / 60
    assert float(lines["all"][1]) == pytest.approx(hours, abs=0.06)
    longest = max(paces[job.arm].minutes(job) for job in study.again())
    assert float(lines["again"][3]) == pytest.approx(longest, abs=0.6)


@pytest.mark.slow
def test_the_pace_of_an_arm_is_measured_by_a_run_that_leaves_nothing(tests_of_eight, monkeypatch):
    small(tests_of_eight)
    monkeypatch.setattr(study, "DATA", tests_of_eight)
    monkeypatch.setattr(study, "RUNS", tests_of_eight / "runs")
    monkeypatch.setattr(pace, "PART", arms.matched("vit16") // 48)
    found = pace.measure("vit16")
    assert 0 < found.image < found.step < found.begin
    assert not list(study.RUNS.iterdir())


@pytest.mark.slow
def test_a_run_trains_reads_and_leaves_a_result(tests_of_eight, monkeypatch):
    small(tests_of_eight)
    monkeypatch.setattr(study, "DATA", tests_of_eight)
    monkeypatch.setattr(study, "RUNS", tests_of_eight / "runs")
    job = study.Job("vit8-data-1", "vit8", 48, 1, tuned="vit8-data", reads=("test",))
    study.run(job)
    found = study.result(job)
    assert found is not None
    assert len(study.decode(found["tests"]["test"]["distances"])) == 8 * 40
    assert 0 < found["validation"] < 6
    assert set(found["tests"]) == {"test"}
