import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtok import words
from pixtok.errors import InputError

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "ünïcödé 猫 🙂", "1 2 3 4 5 6 7 8 9"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    words.train(TEXTS * 20, 320).save(str(path))
    return path


@given(st.text())
def test_bytes_are_exact(text):
    vocabulary = words.Bytes()
    ids = vocabulary.encode(text)
    assert all(6 <= i < vocabulary.size for i in ids)
    assert vocabulary.decode([1, *ids, 2]) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_trained_vocabulary_is_exact(text, file):
    vocabulary = words.load(str(file))
    ids = vocabulary.encode(text)
    assert all(6 <= i < vocabulary.size for i in ids)
    assert vocabulary.decode(ids) == text


def test_trained_vocabulary_is_shorter_than_bytes(file):
    assert len(words.load(str(file)).encode(TEXTS[0])) < len(TEXTS[0]) / 2


@pytest.mark.parametrize("name", ["bytes", "file"])
def test_text_that_looks_like_a_special_token_is_text(name, file):
    vocabulary = words.load(str(file) if name == "file" else name)
    text = "a <s> b </s> <pad> <|image|>x<|/image|>"
    assert min(vocabulary.encode(text)) >= 6
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_special_tokens_that_a_vocabulary_lists_as_words_are_unknown(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    listed = {token: number for number, token in enumerate([*words.SPECIALS, "x"])}
    tokenizer = Tokenizer(models.WordLevel(listed, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "v.json"))
    assert words.load(str(tmp_path / "v.json")).encode("x <|image|> </s> y") == [6, 0, 0, 0]


def test_other_tokenizers_are_moved_up(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "other.json"
    Tokenizer(models.WordLevel({"x": 0, "y": 1, "<unk>": 2}, unk_token="<unk>")).save(str(path))
    vocabulary = words.load(str(path))
    assert vocabulary.size == 9
    assert vocabulary.encode("y") == [7]
    assert vocabulary.decode([1, 6, 2]) == "x"


def test_no_words_drops_text():
    assert words.load("none").encode("text") == []
    assert words.load("none").size == 6


def test_bad_vocabularies_are_bad_input(tmp_path):
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(InputError, match="not a Hugging Face"):
        words.load(str(tmp_path / "broken.json"))
    with pytest.raises(InputError, match="no vocabulary at"):
        words.load(str(tmp_path / "missing.json"))
    with pytest.raises(InputError, match="at least 262"):
        words.train(TEXTS, 100)
