import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers import save_image
from pixtok.config import PRESETS, Data
from pixtok.data import mixture, packing
from pixtok.data.build import Settings, build
from pixtok.data.index import Dataset
from pixtok.data.pipeline import Batch, Loader
from pixtok.errors import InputError

MODEL = dataclasses.replace(PRESETS["tiny"], window=4)
WEIGHTS = (0.5, 0.2, 0.3)


def loader(path, split="train", batch_size=4, stages=None, **data) -> Loader:
    """`path`: of one data set, or of several."""
    first, *mix = path if isinstance(path, list) else [path]
    settings = {"slots": 40, "windows": 24, "mix": tuple(map(str, mix)), **data}
    return Loader(Data(str(first), **settings), MODEL, split=split, batch_size=batch_size, seed=3, stages=stages)


@pytest.fixture(scope="module")
def sources(dataset, tmp_path_factory) -> list[Path]:
    """Three data sets: images with captions; text alone, without a validation split; images in the midst of text."""
    root = tmp_path_factory.mktemp("sources")
    (root / "texts").mkdir()
    (root / "mixed").mkdir()
    for number in range(20):
        (root / "texts" / f"{number:02d}.txt").write_text(f"text number {number} " * (1 + number % 4))
    for number in range(12):
        save_image(root / "mixed" / f"{number:02d}.png", 4 + number % 5, 9, seed=number)
        tag = f"<|image|>{number:02d}.png<|/image|>"
        (root / "mixed" / f"{number:02d}.txt").write_text(f"{number} before {tag} and after" * (1 + number % 2))
    build(str(root / "texts"), root / "texts-data", Settings(validation=0, test=0))
    build(str(root / "mixed"), root / "mixed-data", Settings(validation=0.25, test=0))
    return [dataset, root / "texts-data", root / "mixed-data"]


@pytest.fixture(params=["captions", "mixed", "mixture"])
def made(request, sources) -> Loader:
    """A loader of batches of 8: of one data set, and of all three."""
    if request.param == "mixture":
        return loader(sources, batch_size=8, weights=WEIGHTS)
    return loader(sources[0 if request.param == "captions" else 2], batch_size=8)


def same(a: Batch, b: Batch) -> None:
    for name, x, y in zip(a.rows._fields, a.rows, b.rows, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert (a.documents, a.bad) == (b.documents, b.bad)


def joined(parts: list[Batch]) -> Batch:
    rows = type(parts[0].rows)(*(np.concatenate(arrays) for arrays in zip(*(part.rows for part in parts), strict=True)))
    return Batch(rows, [row for part in parts for row in part.documents], [bad for part in parts for bad in part.bad])


def contents(batches) -> list[tuple]:
    """What tells rows apart: their documents and their words and pixels."""
    return [
        (tuple(documents), batch.rows.word_BS[row].tobytes(), batch.rows.pixel_BMW[row].tobytes())
        for batch in batches
        for row, documents in enumerate(batch.documents)
    ]


def shares(processes: int, batch_size: int = 8) -> list[range]:
    size = batch_size // processes
    return [range(p * size, (p + 1) * size) for p in range(processes)]


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_batch_is_the_same_on_any_number_of_processes(made, processes):
    for step in (0, 1, 7, 10**6):
        whole = made.batch(step)
        assert len(whole.documents) == 8
        same(joined([made.batch(step, positions) for positions in shares(processes)]), whole)
    odd, few = made.batch(5, [1, 4, 6]), made.batch(5)
    np.testing.assert_array_equal(odd.rows.word_BS, few.rows.word_BS[[1, 4, 6]])


def test_a_change_of_the_number_of_processes_repeats_and_drops_nothing(made):
    counts = itertools.cycle([1, 8, 2, 4])
    parts = []
    with made.epoch() as batches:
        rows = contents(batches)
    if len(made.sources) == 1:
        steps = -(-made.row_count // 8)
    else:  # until the last data set is through
        steps = max(-(-s.row_count // int(8 * w)) for s, w in zip(made.sources, WEIGHTS, strict=True)) + 2
    for step, processes in zip(range(steps), counts, strict=False):
        for positions in shares(processes):
            with made.stream(step, positions) as batches:
                parts.append(next(batches))
    walked = contents(parts)
    edges = np.cumsum([0, *map(len, made.datasets)])
    for source, first, end in zip(made.sources, edges, edges[1:], strict=False):
        own = [row for row in walked if first <= row[0][0] < end][: source.row_count]
        assert sorted(own) == sorted(row for row in rows if row[0] and first <= row[0][0] < end)


@pytest.mark.parametrize(("workers", "positions"), [(0, None), (0, (1, 2)), (1, (1, 2))])
def test_a_stream_goes_on_from_any_step(sources, workers, positions):
    made = loader(sources, weights=WEIGHTS, workers=workers)
    with made.stream(5, positions) as batches:
        for step, batch in zip(range(5, 8), batches, strict=False):
            same(batch, made.batch(step, positions))


def test_positions_are_ascending_rows_of_the_batch(dataset):
    made = loader(dataset)
    for positions in ((), (1, 1), (2, 1), (-1, 0), (3, 4)):
        with pytest.raises(ValueError, match="ascending numbers from 0 to 3"):
            made.batch(0, positions)


def test_an_epoch_holds_every_document_once_and_the_next_comes_in_another_order(dataset):
    made = loader(dataset)
    steps = [made.document_ids(step) for step in range(-(-made.row_count // 4))]
    data = Dataset(dataset)
    train = [item.id for item in data.read(np.flatnonzero(data.index.split_N == 0).tolist())]
    assert set(itertools.chain(*steps)) == set(train)
    (source,) = made.sources
    rows = [source.shuffled(i) for i in range(2 * made.row_count)]
    assert sorted(rows[: made.row_count]) == sorted(rows[made.row_count :]) == list(range(made.row_count))
    assert rows[: made.row_count] != rows[made.row_count :]


def test_the_order_is_that_of_earlier_versions(dataset):
    """Runs that began under them go on with it; where it changes, so must `packing.VERSION`, and they are refused."""
    assert packing.VERSION == 2
    (source,) = loader(dataset, slots=26).sources
    order = [4, 6, 16, 7, 5, 3, 1, 12, 15, 0, 2, 13, 14, 8, 11, 10, 9, 14, 1, 15]
    assert [source.shuffled(i) for i in range(20)] == order
    assert source.plan.piece_P[:14].tolist() == [19, 3, 14, 1, 12, 4, 10, 9, 25, 2, 20, 16, 18, 21]


def test_a_mixture_follows_its_weights_and_their_changes(sources):
    made = loader(sources, weights=WEIGHTS)
    assert made.stages == [(0, WEIGHTS)]
    old = [made.batch(step) for step in range(30)]
    edges = np.cumsum([0, *map(len, made.datasets)])

    def owners(batches) -> list[int]:
        return [int(np.searchsorted(edges, row[0], "right")) - 1 for batch in batches for row in batch.documents]

    np.testing.assert_allclose(np.bincount(owners(old)) / 120, WEIGHTS, atol=1 / 120)
    stages = mixture.resumed(made.stages, 10, (1, 1, 2))
    changed = loader(sources, weights=(1, 1, 2), stages=stages)
    assert changed.stages == [(0, WEIGHTS), (10, (1, 1, 2))]
    new = [changed.batch(step) for step in range(30)]
    for step in range(10):
        same(old[step], new[step])
    np.testing.assert_allclose(np.bincount(owners(new[10:])) / 80, (0.25, 0.25, 0.5), atol=1 / 80)
    # Each data set goes through its rows in the same order, whatever the weights.
    for source in range(3):
        ours, theirs = (
            [row for row, owner in zip(contents(batches), owners(batches), strict=True) if owner == source]
            for batches in (old, new)
        )
        assert all(a == b for a, b in zip(ours, theirs, strict=False))
    made.follow(stages)
    same(made.batch(20), new[20])


def test_without_weights_data_sets_are_mixed_as_large_as_they_are(sources):
    made = loader(sources)
    rows = [source.row_count for source in made.sources]
    assert made.row_count == sum(rows)
    assert made.stages == [(0, tuple(rows))]
    walked = contents(made.batch(step) for step in range(-(-made.row_count // 4)))[: made.row_count]
    with made.epoch() as batches:
        assert sorted(walked) == sorted(contents(batches)[: made.row_count]), "an epoch of all is one of each"


def test_the_epoch_of_a_split_counts_every_target_once(sources):
    made = loader(sources, "validation", weights=WEIGHTS)
    assert [source.dataset.path for source in made.sources] == [sources[0], sources[2]], "the other has none"
    with made.epoch() as batches:
        rows = [batch.rows for batch in batches]
    targets = sum(int((r.target_BS >= 0).sum()) for r in rows)
    pieces = [source.plan.pieces for source in made.sources]
    slots = sum(int((p.stop_P - p.start_P).sum()) for p in pieces)
    last = sum(int((p.stop_P == [p.stop_P[p.document_P == n].max() for n in p.document_P]).sum()) for p in pieces)
    assert last == made.documents == sum(Dataset(path).manifest.documents["validation"] for path in sources)
    assert slots - len(np.concatenate([p.document_P for p in pieces])) <= targets <= slots - made.documents
    assert slots == sum(int((r.segment_BS > 0).sum()) for r in rows) == round(made.slot_share * made.row_count * 40)
    with made.epoch(1) as batches:
        (first,) = batches
    firsts = np.array([row[0] for row in first.documents])
    assert 0 < (firsts < len(made.datasets[0])).sum() < 4, "the first rows are of all data sets"
    with made.epoch(positions=(0, 3)) as batches, made.epoch() as whole:
        for part, batch in zip(batches, whole, strict=True):
            np.testing.assert_array_equal(part.rows.word_BS, batch.rows.word_BS[[0, 3]])


def test_a_document_that_rots_is_named_and_left_out(sources, monkeypatch):
    from pixtok.data import images

    dataset, last = Dataset(sources[0]), Dataset(sources[2])
    made = loader([sources[0], sources[2]])
    edge = len(dataset)
    step, victim = next(
        (step, number - edge)
        for step in range(9)
        for row in made.batch(step).documents
        for number in row
        if number >= edge
    )
    (document,) = last.read([victim])
    encoded = next(part for part in document.parts if isinstance(part, bytes))
    decode = images.decode

    def rotten(content, size=None):
        if content == encoded:
            raise images.ImageError("rotten")
        return decode(content, size)

    good = made.batch(step).rows
    assert f"{last.path}/{document.id}" in made.document_ids(step)
    monkeypatch.setattr(images, "decode", rotten)
    batch = made.batch(step)
    assert set(batch.bad) == {(edge + victim, document.id, "rotten", str(last.path))}
    assert batch.rows.segment_BS.max(1).sum() == good.segment_BS.max(1).sum() - len(batch.bad)
    assert edge + victim not in itertools.chain(*batch.documents)


def test_other_settings_are_bad_input(dataset, photos, tmp_path):
    small = tmp_path / "small"
    build(str(photos), small, Settings(image_size=8))
    loader(small, image_size=8)
    with pytest.raises(InputError, match=r"built with --image_size 8, which is less than data.image_size = 9"):
        loader(small, image_size=9)
    with pytest.raises(InputError, match="does not exist"):
        loader(tmp_path / "missing")
    with pytest.raises(InputError, match="is not a built data set"):
        loader(photos)
    with pytest.raises(InputError, match="vocabulary of 262 ids"):
        Loader(Data(str(dataset)), dataclasses.replace(MODEL, vocab_size=6), split="train", batch_size=1, seed=0)
    with pytest.raises(InputError, match="must be one of train, validation, test"):
        loader(dataset, "dev")
    old = tmp_path / "old"
    shutil.copytree(dataset, old)
    (old / "dataset.json").write_text((old / "dataset.json").read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(InputError, match="data format 0"):
        loader(old)


def test_data_sets_that_do_not_mix_are_bad_input(sources, photos, tmp_path):
    silent = tmp_path / "silent"
    build(str(photos), silent, Settings(vocabulary="none"))
    with pytest.raises(InputError, match=r"silent was built with another vocabulary than .*photos: build one of them"):
        loader([sources[0], silent])
    with pytest.raises(InputError, match=r"data.path: .*missing does not exist"):
        loader([sources[0], tmp_path / "missing"])
    with pytest.raises(InputError, match=r"texts-data: the data set holds no validation documents"):
        loader([sources[1]], "validation")
    with pytest.raises(InputError, match=r"each data set, 3 in all; got 0.5, 0.5"):
        loader(sources, weights=(0.5, 0.5))
