import io
import json
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from helpers import save_image
from pixtok.data.sources import Bad, open_source
from pixtok.errors import InputError


def read(path, tmp_path, **options) -> dict[str, list]:
    """id → parts, images as `image`; bad documents as their reason."""
    source = open_source(str(path), tmp_path / "scratch", **options)
    out = {}
    for entry in source.entries():
        item = entry.document
        if isinstance(item, Bad):
            out[item.id] = item.reason
        else:
            out[item.id] = ["image" if isinstance(part, bytes) else part for part in item.parts]
    assert len(out) == source.count
    return out


def test_folder_takes_captions_and_labels(tmp_path):
    root = tmp_path / "folder"
    save_image(root / "top.png", 2, 2)
    save_image(root / "cat" / "a.jpg", 2, 2)
    save_image(root / "cat" / "b.PNG", 2, 2)
    (root / "cat" / "b.txt").write_text("a caption\n")
    save_image(root / "dog" / "c.png", 2, 2)
    (root / "dog" / "c.json").write_text(json.dumps({"caption": "from json"}))
    (root / "dog" / "alone.txt").write_text("only text")
    (root / ".hidden.png").write_bytes(b"x")
    save_image(root / ".cache" / "hidden.png", 2, 2)
    assert read(root, tmp_path) == {
        "top.png": ["image"],
        "cat/a.jpg": ["image", "cat"],
        "cat/b.PNG": ["image", "a caption"],
        "dog/c.png": ["image", "from json"],
        "dog/alone.txt": ["only text"],
    }


def test_two_images_of_one_stem_are_two_documents(tmp_path):
    save_image(tmp_path / "f" / "a.jpg", 2, 2)
    save_image(tmp_path / "f" / "a.png", 2, 2)
    assert read(tmp_path / "f", tmp_path) == {"a.jpg": ["image"], "a.png": ["image"]}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_of_triples(tmp_path, mode):
    save_image(tmp_path / "i.jpg", 3, 3)
    content = (tmp_path / "i.jpg").read_bytes()
    with tarfile.open(tmp_path / "t.tar", mode) as archive:
        members = [
            ("0.jpg", content),
            ("0.txt", b" first "),
            ("1.txt", b"second"),  # members of one document may come in any order
            ("1.jpg", content),
            ("1.json", b'{"caption": "not this one"}'),
            ("2.json", b'{"text": "third"}'),
            ("2.jpg", content),
            ("3.jpg", content),
            ("3.txt", b"\xff\xfe bad utf-8"),
        ]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    got = read(tmp_path / "t.tar", tmp_path)
    assert got.pop("3.jpg").startswith("UnicodeDecodeError")
    assert got == {"0.jpg": ["image", "first"], "1.jpg": ["image", "second"], "2.jpg": ["image", "third"]}


def test_mixed_files_are_read_as_they_are(tmp_path):
    root = tmp_path / "mixed"
    save_image(root / "images" / "x.png", 2, 2)
    save_image(root / "docs" / "near.png", 2, 2)
    (root / "docs" / "a.txt").write_text("see <|image|>images/x.png<|/image|> and <|image|>near.png<|/image|>")
    (root / "b.txt").write_text("only words")
    (root / "c.txt").write_text("<|image|>missing.png<|/image|>")
    got = read(root, tmp_path)
    assert "missing.png" in got.pop("c.txt")
    assert got == {"docs/a.txt": ["see ", "image", " and ", "image"], "b.txt": ["only words"]}


def test_a_caption_that_mentions_a_tag_is_a_caption(tmp_path):
    save_image(tmp_path / "folder" / "a.png", 2, 2)
    (tmp_path / "folder" / "a.txt").write_text("quoting <|image|> markup")
    assert read(tmp_path / "folder", tmp_path) == {"a.png": ["image", "quoting <|image|> markup"]}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_that_was_cut_short_is_refused(tmp_path, mode):
    """At every length, but where only the zeros at its very end are missing."""
    with tarfile.open(tmp_path / "whole.tar", mode) as archive:
        for number in range(3):
            save_image(tmp_path / f"{number}.png", 9, 9, seed=number)
            archive.add(tmp_path / f"{number}.png", f"{number}.png")
    whole = (tmp_path / "whole.tar").read_bytes()
    assert len(read(tmp_path / "whole.tar", tmp_path)) == 3
    step = 256 if mode == "w" else len(whole) // 16
    content = 3 * 1024 if mode == "w" else len(whole) - step
    for length in range(0, content, step):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut.tar [^\n]*$"):
            open_source(str(tmp_path / "cut.tar"), tmp_path)


def test_mixed_text_in_a_tar_is_not_taken_for_text(tmp_path):
    (tmp_path / "m.txt").write_text("see <|image|>a.png<|/image|>")
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.add(tmp_path / "m.txt", "m.txt")
    assert "unpack the tar" in read(tmp_path / "m.tar", tmp_path)["m.txt"]


def test_glyphs_depend_on_the_seed_alone(tmp_path):
    first, again, other = (
        [
            (entry.split, entry.document)
            for entry in open_source("glyphs", tmp_path / str(run), seed=seed, limit=40).entries()
        ]
        for run, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first != other
    assert [split for split, _ in first].count("validation") == 2
    texts = [item.parts[1] for _, item in first]
    assert any(text.isdigit() for text in texts)
    assert any(text.isalpha() for text in texts)


def test_every_glyph_lies_inside_its_image():
    from pixtok.data import glyphs

    for number in range(300):
        image, text = glyphs.draw(np.random.default_rng(number))
        pixels = np.asarray(image).astype(int)
        ground = pixels[0, 0]
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert text
        assert (border == ground).all(), f"{number}: {text} touches the border"
        assert (pixels != ground).any()


class PixtokToy(tfds.core.GeneratorBasedBuilder):
    """A registered TFDS data set with labels, as most are."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            file = io.BytesIO()
            Image.new("RGB", (4, 3), (number, 0, 0)).save(file, "PNG")
            file.seek(0)
            yield number, {"image": file, "label": number % 2}


def test_a_tfds_name_gives_images_with_the_names_of_their_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    assert set(map(tuple, read("pixtok_toy", tmp_path).values())) == {("image", "cat"), ("image", "dog")}
    splits = [entry.split for entry in open_source("pixtok_toy", tmp_path / "scratch").entries()]
    assert splits == ["train"] * 3 + ["test"] * 2
    assert (tmp_path / "tfds" / "pixtok_toy").is_dir()


def test_other_sources_are_bad_input(tmp_path, dataset):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no tar")
    for name, message in (
        (tmp_path / "empty", "holds no images and no text"),
        (tmp_path / "file", "neither a folder nor a tar"),
        (tmp_path / "missing" / "x.tar", "no source at"),
        (dataset, "is a data set that `pixtok data build` made"),
        ("no_such_tfds_name", "no source at no_such_tfds_name"),
    ):
        with pytest.raises(InputError, match=message):
            open_source(str(name), tmp_path / "scratch")
