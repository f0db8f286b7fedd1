import numpy as np
import pytest

from pixtok import document, fold, words
from pixtok.document import NO_TARGET, Document
from pixtok.words import Special

VOCAB_SIZE, FACTOR, SIDE = 300, 32, 4


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(256, size=(height, width, 3), dtype=np.uint8)


def slots_of(*parts) -> document.Slots:
    made = Document("d", parts)
    return document.tokenize(made, words.Bytes(), vocab_size=VOCAB_SIZE, fold_factor=FACTOR, side=SIDE)


def contents(slots: document.Slots) -> list[int]:
    """What each slot holds: a word id, or V + its window's first pixel."""
    held = slots.word_S.tolist()
    for slot, pixels in zip(slots.window_slot_M, slots.pixel_MW, strict=True):
        assert held[slot] == Special.PAD
        held[slot] = VOCAB_SIZE + int(fold.ids(pixels[:1], FACTOR)[0])
    return held


DOCUMENTS = {
    "landscape": (image(5, 13),),
    "portrait": (image(13, 5), "caption"),
    "square": ("before", image(8, 8)),
    "one pixel": (image(1, 1),),
    "text only": ("just text",),
    "interleaved": ("a", image(4, 9), "b", image(1, 1), image(6, 2), "c"),
    "empty": (),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_slot_is_the_target_of_the_one_before(name):
    slots = slots_of(*DOCUMENTS[name])
    held = contents(slots)
    assert held[0] == Special.BOS
    assert held[-1] == Special.EOS
    assert slots.target_S.tolist() == [*held[1:], NO_TARGET]


def test_windows_follow_one_another_between_their_tags():
    first, second = image(4, 9), image(6, 2)
    slots = slots_of("ab", first, second)
    assert slots.word_S[3] == Special.IMAGE
    assert slots.window_slot_M.tolist() == [4, 5, 6, 9, 10]
    assert slots.word_S[[7, 8, 11]].tolist() == [Special.END_IMAGE, Special.IMAGE, Special.END_IMAGE]
    assert slots.shape_M2.tolist() == [[4, 4], [4, 4], [4, 1], [4, 2], [2, 2]]
    np.testing.assert_array_equal(slots.pixel_MW[3, :8], fold.pack(second)[:4].ravel())
    assert (slots.pixel_MW[3, 8:] == fold.PADDING).all()


@pytest.mark.parametrize("cut", [1, 3, 8, 12])
def test_pieces_lose_no_target_and_no_window(cut):
    whole = slots_of(*DOCUMENTS["interleaved"])
    pieces = [whole.piece(0, cut), whole.piece(cut, len(whole.word_S))]
    assert np.concatenate([piece.target_S for piece in pieces]).tolist() == whole.target_S.tolist()
    assert contents(pieces[0]) + contents(pieces[1]) == contents(whole)
    np.testing.assert_array_equal(np.concatenate([piece.pixel_MW for piece in pieces]), whole.pixel_MW)


def test_a_row_keeps_its_documents_apart():
    pieces = [slots_of("a", image(5, 5)), slots_of("bc"), slots_of(image(3, 9), "d")]
    lengths = [len(piece.word_S) for piece in pieces]
    row = document.pack(pieces, document.empty_row(sum(lengths) + 3, 9, SIDE))
    assert row.segment_BS.tolist() == [1] * lengths[0] + [2] * lengths[1] + [3] * lengths[2] + [0] * 3
    assert row.position_BS.tolist() == [*range(lengths[0]), *range(lengths[1]), *range(lengths[2]), 0, 0, 0]
    assert row.target_BS.tolist() == [t for piece in pieces for t in piece.target_S] + [NO_TARGET] * 3
    used = sum(len(piece.window_slot_M) for piece in pieces)
    assert (row.window_slot_BM[used:] == len(row.word_BS)).all()
    assert (row.shape_BM2[:used].prod(-1) > 0).all()
    assert (row.shape_BM2[used:] == 0).all()
    assert (row.word_BS[row.window_slot_BM[:used]] == Special.PAD).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit in a row"):
        document.pack([slots_of("long text")], document.empty_row(4, 1, SIDE))
    with pytest.raises(ValueError, match="do not fit in a row"):
        document.pack([slots_of(image(9, 9))], document.empty_row(40, 1, SIDE))


def test_mixed_text_is_parsed_in_order():
    text = "see <|image|> a/b.png <|/image|><|image|>c.jpg<|/image|> and\nmore"
    assert list(document.parse(text)) == [(False, "see "), (True, "a/b.png"), (True, "c.jpg"), (False, " and\nmore")]
    assert list(document.parse("")) == []
