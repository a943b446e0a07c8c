"""Text <-> token ids: bytes, characters, a BPE (here, tiktoken's, Hugging Face's), and one file format for all."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minigpt.data.tokenizers.bpe import END_OF_TEXT, SPLIT_PATTERN, TIKTOKEN_NAMES, BPETokenizer, well_formed
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.data.tokenizers.learning import learn_bpe
from minigpt.errors import UserError
from minigpt.files import reason, write_text

__all__ = [
    "END_OF_TEXT",
    "SPLIT_PATTERN",
    "TIKTOKEN_NAMES",
    "BPETokenizer",
    "BytesTokenizer",
    "CharsTokenizer",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "decode",
    "load_tokenizer",
    "make_tokenizer",
    "save_tokenizer",
    "tokenizer_from_dict",
]

MAX_FILE_BYTES = 64 << 20
"""Larger tokenizer files are refused unread; that of Llama 3 has 9 MB."""


class Tokenizer(Protocol):
    """What every tokenizer can do. Text never becomes a special token: `end_of_text` is put by whoever means it."""

    vocab_size: int
    end_of_text: int
    lossless: bool
    """Whether `decode(encode(text)) == text`; not where a file of Hugging Face's normalises text or puts a space
    before it. A lone surrogate, which UTF-8 cannot hold, is read as "?" by all."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many texts, in parallel where that pays: read-only arrays of some unsigned integer type."""

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """UTF-8 of the tokens; a token may hold part of a character."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types that `tokenizer_from_dict` turns back into this tokenizer."""


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of the tokens; what is no whole character becomes U+FFFD."""
    return tokenizer.decode_bytes(tokens).decode("utf-8", errors="replace")


class BytesTokenizer:
    """Each byte of the UTF-8 text is a token: no training, no unknowns, long sequences."""

    vocab_size = 257
    end_of_text = 256
    lossless = True

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8) for text in texts]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(END_OF_TEXT.encode() if token == self.end_of_text else bytes([token]) for token in tokens)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class CharsTokenizer:
    """Each character of a fixed alphabet is a token."""

    lossless = True

    def __init__(self, alphabet: str) -> None:
        """Args: the characters, each once; a character's place is its id.

        Raises:
            UserError: a character stands there twice, or is a lone surrogate.
        """
        if len(set(alphabet)) < len(alphabet):
            raise UserError("a character appears twice in its alphabet")
        if well_formed(alphabet) != alphabet:
            raise UserError("its alphabet has a lone surrogate, which is no character")
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + 1
        self.end_of_text = len(alphabet)
        points = _code_points(alphabet)
        # Id of each code point up to the highest; the last entry stands for all above. No character has end_of_text.
        self._ids = np.full(int(points.max(initial=0)) + 2, self.end_of_text, dtype=np.uint32)
        self._ids[points] = np.arange(len(points))

    @classmethod
    def of(cls, texts: Iterable[str]) -> CharsTokenizer:
        """The alphabet of these texts, in code point order; they are read one by one."""
        characters: set[str] = set()
        for text in texts:
            characters.update(well_formed(text))
        return cls("".join(sorted(characters)))

    def encode(self, text: str) -> list[int]:
        """Raises UserError for a character outside the alphabet, naming it and its place."""
        return self._encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Raises what `encode` does."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        text = well_formed(text)
        tokens: np.ndarray = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if (unknown := tokens == self.end_of_text).any():
            i = int(unknown.argmax())
            raise UserError(
                f"character {text[i]!r} (U+{ord(text[i]):04X}) at position {i} is not among the {len(self.alphabet)} "
                "characters this tokenizer was made from: write without it, or train with data.tokenizer bytes or bpe:N"
            )
        return tokens

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        symbols = [*self.alphabet, END_OF_TEXT]
        return "".join(symbols[token] for token in tokens).encode()

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "chars", "alphabet": self.alphabet}


def make_tokenizer(name: str, train_texts: Iterable[str], all_texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, trained where it is one that is trained.

    An alphabet is taken from all texts, since it is no statistic and val must be readable; merges only from train.
    """
    if name == "bytes":
        return BytesTokenizer()
    if name == "chars":
        return CharsTokenizer.of(all_texts)
    if name.startswith("bpe:"):
        return learn_bpe(train_texts, int(name.removeprefix("bpe:")))
    if name in TIKTOKEN_NAMES:
        return BPETokenizer.named(name)
    return load_tokenizer(Path(name))


def tokenizer_from_dict(saved: dict[str, Any]) -> Tokenizer:
    """The inverse of `Tokenizer.to_dict`.

    Raises:
        UserError: the dictionary is not one of ours, or some text or id would be beyond the tokenizer it describes.
    """
    try:
        match saved["kind"]:
            case "bytes":
                return BytesTokenizer()
            case "chars":
                return CharsTokenizer(saved["alphabet"])
            case "bpe":
                return BPETokenizer.from_dict(saved)
            case "huggingface":
                return HuggingFaceTokenizer(saved["tokenizer"])
            case kind:
                raise UserError(f"unknown tokenizer kind {kind!r:.40}")
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # whatever a strange file leads to
        raise UserError(f"not a tokenizer of minigpt ({type(error).__name__}: {error})") from None


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write the file that goes with a model: everything needed to encode and decode, without the network."""
    write_text(path, json.dumps(tokenizer.to_dict()))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a file written by `save_tokenizer`, or the tokenizer.json of a byte-level BPE of Hugging Face's.

    Raises:
        UserError: the file is missing, too large, damaged, or neither of the two.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"tokenizer {path}: {reason(error)}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"tokenizer {path}: is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return _parsed(content)
    except UserError as error:
        raise UserError(f"tokenizer {path}: {error}") from None


@functools.lru_cache(maxsize=2)  # a run reads the same one several times; GPT-2's takes a tenth of a second
def _parsed(content: bytes) -> Tokenizer:
    try:
        saved = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # the latter for brackets in brackets in brackets
        raise UserError("not a JSON file") from None
    if isinstance(saved, dict) and "model" in saved and "kind" not in saved:
        return HuggingFaceTokenizer(saved)
    return tokenizer_from_dict(saved)


def _code_points(text: str) -> np.ndarray:
    """(len(text),) uint32 of a text without lone surrogates."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
