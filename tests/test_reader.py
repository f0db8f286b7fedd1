"""What a model reads, against its own whole forward passes."""

import dataclasses

import numpy as np
import pytest
from models import PATCHES, READING, SMALL, STEM, batch, compiled, image, variables

from pixtok.draw import Draw
from pixtok.reader import Reader
from pixtok.words import Bytes, Special

UPW = dataclasses.replace(SMALL, objective="reference", variant="upw")


def reader(config, limit: int = 6) -> Reader:
    return Reader(config, variables(config, 2.0)["params"], Bytes(), limit)


def by_recomputation(config, picture, limit: int) -> str:
    words: list[int] = []
    for _ in range(limit):
        row = batch((picture,), config=config, slots=24, windows=9)
        windows = int((row.shape_BM2.prod(-1) > 0).sum())
        start = int(row.window_slot_BM[0, windows - 1]) + 2
        row.word_BS[0, start : start + len(words)] = words
        row.segment_BS[:], row.position_BS[:] = 1, np.arange(24)
        logits = np.array(compiled(config, "logits")(variables(config, 2.0), row))[0, start + len(words) - 1]
        logits = logits[: Bytes.size]
        logits[[special for special in Special if special != Special.EOS]] = -np.inf
        words.append(int(np.argmax(logits)))
    return Bytes().decode(words[: (*words, Special.EOS).index(Special.EOS)])


@pytest.mark.parametrize(
    "config", [SMALL, READING, PATCHES, UPW, STEM], ids=["full", "words", "patches", "upw", "stem"]
)
def test_reading_is_reading_by_recomputation(config):
    pictures = [image(4, 5, seed) for seed in range(3)]
    expected = [by_recomputation(config, picture, 6) for picture in pictures]
    assert reader(config).read(pictures) == expected
    assert any(expected)


def test_images_of_any_sizes_and_batches_read_as_they_do_alone():
    pictures = [image(4, 5, 0), image(7, 2, 0), image(4, 5, 1), image(4, 5, 2), image(7, 2, 1)]
    alone = [reader(PATCHES).read([picture])[0] for picture in pictures]
    done = []
    assert reader(PATCHES).read(pictures, batch_size=2, progress=done.append) == alone
    assert sum(done) == 5
    assert len(set(alone)) > 1


def test_words_that_the_vocabulary_lacks_and_special_ones_are_never_read():
    more = dataclasses.replace(READING, vocab_size=300)
    params = variables(more, 2.0)["params"]
    best = reader(more, 4).read([image(2, 2)])
    assert len(best[0]) == 4
    # The best word moves to where no word of a text is: the next best is read.
    word_EV = params["head"]["word"]
    for taken in (Special.IMAGE, Special.PAD, 280):
        moved_EV = word_EV.at[:, taken].set(3 * word_EV[:, 6:262].mean(1) + 3 * word_EV[:, 6 + ord(best[0][0])])
        found = Reader(more, {**params, "head": {"word": moved_EV}}, Bytes(), 4).read([image(2, 2)])
        assert found == best


def test_what_is_drawn_differs():
    assert len(set(reader(READING, 20).read([image(2, 2)] * 20, how=Draw(seed=3)))) > 1
