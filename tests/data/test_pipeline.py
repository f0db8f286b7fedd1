import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from pixtok.config import PRESETS, Data
from pixtok.data.index import Dataset
from pixtok.data.pipeline import Loader
from pixtok.errors import InputError

MODEL = dataclasses.replace(PRESETS["tiny"], window=4)


def loader(path, split="train", **data) -> Loader:
    settings = {"slots": 96, "windows": 24, **data}
    return Loader(Data(str(path), **settings), MODEL, split=split, batch_size=4, seed=3)


def same(a, b) -> None:
    for name, x, y in zip(a._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("shards", [2, 4])
def test_a_batch_is_the_same_for_any_number_of_shards(dataset, shards):
    for step in (0, 1, 7, 10**6):
        whole = loader(dataset).batch(step).rows
        parts = [loader(dataset).batch(step, shard=p, shards=shards).rows for p in range(shards)]
        for name, array in zip(whole._fields, whole, strict=True):
            dealt = np.stack([getattr(part, name) for part in parts], 1).reshape(array.shape)
            np.testing.assert_array_equal(dealt, array, err_msg=name)


@pytest.mark.parametrize(("workers", "shards"), [(0, 1), (1, 1), (0, 4)])
def test_a_stream_goes_on_from_any_step(dataset, workers, shards):
    with loader(dataset, workers=workers).stream(5, shards=shards) as batches:
        for step, batch in zip(range(5, 8), batches, strict=False):
            same(batch.rows, loader(dataset).batch(step, shards=shards).rows)


def test_an_epoch_holds_every_document_once_and_the_next_comes_in_another_order(dataset):
    made = loader(dataset)
    steps = [made.document_ids(step) for step in range(-(-made.row_count // 4))]
    data = Dataset(dataset)
    train = [item.id for item in data.read(np.flatnonzero(data.index.split_N == 0).tolist())]
    assert set(itertools.chain(*steps)) == set(train)
    rows = [int(made._order[i]) for i in range(2 * made.row_count)]
    assert sorted(rows[: made.row_count]) == sorted(rows[made.row_count :]) == list(range(made.row_count))
    assert rows[: made.row_count] != rows[made.row_count :]


def test_the_epoch_of_a_split_counts_every_target_once(dataset):
    made = loader(dataset, "validation")
    with made.epoch() as batches:
        rows = [batch.rows for batch in batches]
    targets = sum(int((r.target_BS >= 0).sum()) for r in rows)
    pieces = made.plan.pieces
    slots = int((pieces.stop_P - pieces.start_P).sum())
    assert targets == slots - made.documents  # all but the last slot of each document
    assert sum(len(r.word_BS) for r in rows) % 4 == 0
    with made.epoch(1) as batches:
        assert len(list(batches)) == 1


def test_a_document_that_rots_is_named_and_left_out(dataset, tmp_path, monkeypatch):
    from pixtok.data import images

    made = loader(dataset)
    victim = made.document_ids(0)[0]
    document = next(item for item in made.dataset.read(range(24)) if item.id == victim)
    encoded = next(part for part in document.parts if isinstance(part, bytes))
    decode = images.decode

    def rotten(content, size=None):
        if content == encoded:
            raise images.ImageError("rotten")
        return decode(content, size)

    good = made.batch(0).rows
    monkeypatch.setattr(images, "decode", rotten)
    batch = made.batch(0)
    assert [(bad.id, bad.reason) for bad in batch.bad] == [(victim, "rotten")]
    assert batch.rows.segment_BS.max(1).sum() == good.segment_BS.max(1).sum() - 1


def test_other_settings_are_bad_input(dataset, photos, tmp_path):
    from pixtok.data.build import Settings, build

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
