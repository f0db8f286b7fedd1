"""Words: text ↔ ids.  The six special tokens are 0 … 5 in every vocabulary."""

import enum
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pixtok.errors import InputError


class Special(enum.IntEnum):
    """Ids of the special tokens."""

    UNK = 0
    BOS = 1
    EOS = 2
    PAD = 3
    IMAGE = 4
    END_IMAGE = 5


SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<|image|>", "<|/image|>")


class Vocabulary(Protocol):
    """What pixtok asks of a vocabulary.  Text that looks like a special token is text."""

    size: int
    """Number of ids, the six special ones included."""
    fingerprint: str
    """Equal for two vocabularies if and only if they give the same ids."""

    def encode(self, text: str) -> list[int]:
        """Text → ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, special tokens left out."""
        ...


class Bytes:
    """UTF-8 bytes: id = 6 + byte.  Exact for every text."""

    size = len(SPECIALS) + 256
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return [len(SPECIALS) + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - len(SPECIALS) for i in ids if i >= len(SPECIALS)).decode(errors="replace")


class NoWords:
    """The special tokens alone, for images without text: every text is empty."""

    size = len(SPECIALS)
    fingerprint = "none"

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class File:
    """A Hugging Face `tokenizer.json`.

    Where its ids 0 … 5 are pixtok's special tokens it is used as it is; otherwise its ids are moved up by 6.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file is missing or is no tokenizer."""
        try:
            content = path.read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except OSError as error:
            raise InputError(
                f"no vocabulary at {path} ({error.strerror}): give a tokenizer.json, 'bytes' or 'none'"
            ) from None
        except Exception as error:  # tokenizers raises plain Exception for every malformed file
            raise InputError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        own = [self._tokenizer.token_to_id(token) for token in SPECIALS]
        self._shift = 0 if own == list(Special) else len(SPECIALS)
        # Ids need not be contiguous: the largest one counts.
        self.size = max(self._tokenizer.get_vocab().values()) + 1 + self._shift
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> list[int]:
        ids = (i + self._shift for i in self._tokenizer.encode(text, add_special_tokens=False).ids)
        # A vocabulary may list the special tokens as plain words; text must not open an image.
        return [i if i >= len(SPECIALS) else int(Special.UNK) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        words = [i - self._shift for i in ids if i >= len(SPECIALS)]
        return self._tokenizer.decode(words, skip_special_tokens=False)


def load(name: str) -> Vocabulary:
    """The vocabulary of that name: `bytes`, `none`, or the path of a `tokenizer.json`.  Raises InputError."""
    if name == "bytes":
        return Bytes()
    if name == "none":
        return NoWords()
    return File(Path(name))


def train(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE (Sennrich et al., 2016) of at most `size` ids; needs no network.

    Raises InputError when `size` cannot hold the special tokens and the 256 bytes.
    """
    if size < Bytes.size:
        raise InputError(f"a vocabulary needs at least {Bytes.size} ids (special tokens and bytes); got {size}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
