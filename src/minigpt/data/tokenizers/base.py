"""Tokenizers: bytes, characters, BPE (trained here, tiktoken's, Hugging Face's), and their common file format."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minigpt.data.tokenizers.bpe import END_OF_TEXT, BPETokenizer, well_formed
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.data.tokenizers.learning import learn_bpe
from minigpt.data.tokenizers.tiktoken_tables import TIKTOKEN_NAMES
from minigpt.errors import UserError
from minigpt.files import reason, write_text

MAX_FILE_BYTES = 64 << 20
"""Larger tokenizer files are refused unread; Llama 3's has 9 MB."""


class Tokenizer(Protocol):
    """Interface of all tokenizers. Text is never encoded to a special token; callers add `end_of_text` themselves."""

    vocab_size: int
    end_of_text: int
    begin_of_text: int | None
    """Token that a prompt begins with, as Llama's <s>; None: the prompts of its models begin with their text."""
    lossless: bool
    """Whether `decode(encode(text)) == text`. False for a Hugging Face tokenizer that normalises text or adds a space
    before it. All tokenizers encode a lone surrogate, which is not valid in UTF-8, as "?"."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many texts, in parallel where faster: read-only arrays of an unsigned integer type."""

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """UTF-8 bytes of the tokens; a single token may be part of a character."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, from which `tokenizer_from_dict` restores the tokenizer."""


def first_token(tokenizer: Tokenizer) -> int:
    """The token before a document's first: `begin_of_text` where there is one, else the end of the text before it."""
    return tokenizer.end_of_text if tokenizer.begin_of_text is None else tokenizer.begin_of_text


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of the tokens; invalid UTF-8, such as half a character, becomes U+FFFD."""
    return tokenizer.decode_bytes(tokens).decode("utf-8", errors="replace")


class BytesTokenizer:
    """Each UTF-8 byte is a token: no training, no unknown tokens, long sequences."""

    vocab_size = 257
    end_of_text = 256
    begin_of_text: int | None = None
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

    begin_of_text: int | None = None
    lossless = True

    def __init__(self, alphabet: str) -> None:
        """Args: alphabet, each character once; its index is its id.

        Raises:
            UserError: a character appears twice, or is a lone surrogate.
        """
        if len(set(alphabet)) < len(alphabet):
            raise UserError("a character appears twice in its alphabet")
        if well_formed(alphabet) != alphabet:
            raise UserError("its alphabet has a lone surrogate, which is not a character")
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + 1
        self.end_of_text = len(alphabet)
        points = _code_points(alphabet)
        # Code point -> id. end_of_text marks unknown characters; the last entry stands for all code points above.
        self._ids = np.full(int(points.max(initial=0)) + 2, self.end_of_text, dtype=np.uint32)
        self._ids[points] = np.arange(len(points))

    @classmethod
    def of(cls, texts: Iterable[str]) -> CharsTokenizer:
        """A tokenizer for all characters of these texts, in code point order."""
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
                "characters of this tokenizer: remove it, or train with data.tokenizer bytes or bpe:N"
            )
        return tokens

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        symbols = [*self.alphabet, END_OF_TEXT]
        return "".join(symbols[token] for token in tokens).encode()

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "chars", "alphabet": self.alphabet}


def make_tokenizer(name: str, train_texts: Iterable[str], all_texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, trained if necessary.

    Merges are learned from train only. An alphabet is taken from all texts: it leaks no statistics of val, and val must
    be encodable.
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
        UserError: `to_dict` did not write this, or the tokenizer could not encode every text or decode every id.
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
                return HuggingFaceTokenizer(saved["tokenizer"], saved.get("end_of_text"), saved.get("vocab_size"))
            case kind:
                raise UserError(f"unknown tokenizer kind {kind!r:.40}")
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # from malformed content
        raise UserError(f"not a tokenizer of minigpt ({type(error).__name__}: {error})") from None


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write all that is needed to encode and decode, without network, to a file."""
    write_text(path, json.dumps(tokenizer.to_dict()))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a file written by `save_tokenizer`, or Hugging Face's tokenizer.json of a BPE: see `HuggingFaceTokenizer`.

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


@functools.lru_cache(maxsize=2)  # a run reads the same file several times; GPT-2's takes a tenth of a second
def _parsed(content: bytes) -> Tokenizer:
    try:
        saved = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # RecursionError: deeply nested brackets
        raise UserError("not a JSON file") from None
    if isinstance(saved, dict) and "model" in saved and "kind" not in saved:
        return HuggingFaceTokenizer(saved)
    return tokenizer_from_dict(saved)


def _code_points(text: str) -> np.ndarray:
    """(len(text),) uint32 of a text without lone surrogates."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
