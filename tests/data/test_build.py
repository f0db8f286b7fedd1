import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from helpers import save_image
from pixtok import words
from pixtok.config import PRESETS, Data
from pixtok.data import images
from pixtok.data.build import Settings, assign_splits, build, train_vocabulary
from pixtok.data.index import SPLITS, Dataset
from pixtok.data.pipeline import Loader
from pixtok.errors import InputError


def test_records_and_index_say_the_same(dataset, photos):
    data = Dataset(dataset)
    assert len(data) == 24
    for position, item in enumerate(data.read(range(24))):
        first, last = data.index.start_N[position : position + 2]
        for part, (height, length) in zip(item.parts, data.index.part_T2[first:last].tolist(), strict=True):
            if isinstance(part, str):
                assert (height, length) == (0, len(part.encode()))
            else:
                assert images.decode(part)[0].shape[:2] == (height, length)
                assert part == (photos / item.id).read_bytes()


def test_splits_hold_every_document_once(dataset):
    counts = Dataset(dataset).manifest.documents
    assert counts == {"train": 17, "validation": 5, "test": 2}


def test_equal_documents_share_a_split():
    digests = [bytes([number % 20]) for number in range(200)]
    splits = assign_splits(digests, [None] * 200, 0.2, 0.1)
    for digest in set(digests):
        assert len({split for d, split in zip(digests, splits, strict=True) if d == digest}) == 1
    assert np.bincount(splits).tolist() == [140, 40, 20]


def test_splits_of_the_source_are_kept():
    digests = [bytes([number]) for number in range(100)]
    own = ["train"] * 90 + ["test"] * 10
    splits = assign_splits(digests, own, 0.1, 0.1)
    assert (splits[90:] == SPLITS.index("test")).all()
    assert (splits[:90] == SPLITS.index("validation")).sum() == 10
    # A training document that is in the test split too is tested on, not trained on.
    assert assign_splits([b"x", b"x", b"y"], ["train", "test", "train"], 0.0, 0.0).tolist() == [2, 2, 0]


def test_images_are_brought_down_once(photos, tmp_path):
    manifest = build(str(photos), tmp_path / "small", Settings(image_size=6))
    sizes = Dataset(tmp_path / "small").index.part_T2
    assert manifest.image_size == 6
    assert sizes[sizes[:, 0] > 0].max() == 6


def test_bad_files_are_counted_named_and_skipped(photos, tmp_path, monkeypatch):
    root = tmp_path / "some-bad"
    shutil.copytree(photos, root)
    (root / "empty.png").touch()
    (root / "notes.pdf").write_text("no image")
    whole = (root / "cat" / "01.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    manifest = build(str(root), tmp_path / "out", Settings(max_bad=0.2))
    assert manifest.bad == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["cut.png", "empty.png", "notes.pdf"]
    assert all(line["reason"] for line in lines)
    assert sum(manifest.documents.values()) == 24

    with pytest.raises(InputError, match=r"3 bad of 27 documents are more than max_bad = 0.01.*--max_bad accepts more"):
        build(str(root), tmp_path / "refused", Settings())
    assert not (tmp_path / "refused").exists()
    assert not (tmp_path / "refused.partial").exists()
    assert (tmp_path / "refused.bad.jsonl").read_bytes() == (tmp_path / "out" / "bad.jsonl").read_bytes()
    monkeypatch.setattr("pixtok.data.build._ENOUGH_BAD", 1)
    with pytest.raises(InputError, match="2 bad of 27 documents"):
        build(str(root), tmp_path / "refused", Settings())


def test_an_existing_place_is_not_touched(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(InputError, match="exists"):
        build(str(photos), tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_a_vocabulary_travels_with_its_data_set(photos, tmp_path):
    vocabulary = tmp_path / "v" / "words.json"
    assert train_vocabulary(str(photos), vocabulary, 280) == 280
    build(str(photos), tmp_path / "out", Settings(vocabulary=str(vocabulary)))
    vocabulary.unlink()
    data = Dataset(tmp_path / "out")
    assert data.vocabulary().size == 280
    assert data.vocabulary().fingerprint == data.manifest.fingerprint
    counted = data.index.part_T2[data.index.part_T2[:, 0] == 0, 1].sum()
    texts = [part for item in data.read(range(24)) for part in item.parts if isinstance(part, str)]
    assert counted == sum(len(data.vocabulary().encode(text)) for text in texts)
    assert counted < sum(len(words.Bytes().encode(text)) for text in texts)


def test_a_large_data_set_spans_files(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("pixtok.data.build.RECORD_FILE_BYTES", 1000)
    manifest = build(str(photos), tmp_path / "out")
    assert manifest.records > 3
    data = Dataset(tmp_path / "out")
    assert len({item.id for item in data.read(range(24))}) == 24
    assert data.read([23, 0])[0].id == data.read([23])[0].id


def test_a_tfds_data_set_keeps_its_splits(tmp_path):
    manifest = build("glyphs", tmp_path / "glyphs", Settings(limit=64))
    assert manifest.documents == {"train": 56, "validation": 4, "test": 4}
    item = Dataset(tmp_path / "glyphs").read([0])[0]
    assert item.id.startswith("train/")
    assert images.decode(next(part for part in item.parts if isinstance(part, bytes)))[0].shape == (32, 64, 3)
    assert not list((tmp_path / "glyphs").glob("tfds"))


def test_captions_come_before_or_after_their_image(tmp_path):
    def first_kinds(caption, name):
        build("glyphs", tmp_path / name, Settings(limit=32, caption=caption))
        return {type(item.parts[0]) for item in Dataset(tmp_path / name).read(range(32))}

    assert first_kinds("before", "a") == {str}
    assert first_kinds("after", "b") == {bytes}
    assert first_kinds("either", "c") == {str, bytes}


def test_a_folder_of_the_users_next_to_the_data_set_stays(photos, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("precious")
    build(photos, tmp_path / "out")
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="out cannot be made: "):
        build(photos, tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["dataset.json", "index.npz", "documents-00000.array_record"])
@pytest.mark.parametrize("left", [0, 10])
def test_a_damaged_data_set_says_so(dataset, tmp_path, name, left):
    shutil.copytree(dataset, tmp_path / "damaged")
    file = tmp_path / "damaged" / name
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(InputError, match=r"damaged is damaged \(.*\): build it again"):
        Dataset(tmp_path / "damaged")


def test_a_damaged_record_says_so(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "damaged")
    file = tmp_path / "damaged" / "documents-00000.array_record"
    content = bytearray(file.read_bytes())
    for at in range(1000, len(content) - 70_000, 1000):  # none but the index at the end
        content[at] ^= 255
    file.write_bytes(content)
    message = r"damaged is damaged \(.*\): build it again"
    with pytest.raises(InputError, match=message):
        Dataset(tmp_path / "damaged").read(range(24))
    with pytest.raises(IndexError):  # which is no damage
        Dataset(tmp_path / "damaged").read([24])
    data = Data(str(tmp_path / "damaged"), slots=64, windows=32)
    loader = Loader(data, dataclasses.replace(PRESETS["tiny"], window=16), split="train", batch_size=2, seed=0)
    with loader.stream(0) as batches, pytest.raises(InputError, match=message):
        list(itertools.islice(batches, 30))


def test_one_usable_file_is_enough(tmp_path):
    save_image(tmp_path / "f" / "one.png", 3, 3)
    manifest = build(str(tmp_path / "f"), tmp_path / "out")
    assert manifest.documents == {"train": 1, "validation": 0, "test": 0}
