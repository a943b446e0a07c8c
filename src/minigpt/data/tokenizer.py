"""Text <-> token ids: bytes, characters, a BPE trained here, or one of tiktoken's, and one file format for all."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from minigpt.config import UserError
from minigpt.files import write_text

END_OF_TEXT = "<|endoftext|>"
TIKTOKEN_NAMES = ("gpt2", "cl100k_base", "o200k_base")

# Words with one leading space, numbers of up to three digits, punctuation, newlines, spaces: the split of tiktoken's
# cl100k_base, without possessive quantifiers, which not every regex engine has.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer(Protocol):
    """What every tokenizer can do. Text never becomes a special token: `end_of_text` is put by whoever means it."""

    vocab_size: int
    end_of_text: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; `decode(encode(text)) == text`."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel where that pays."""

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

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(END_OF_TEXT.encode() if token == self.end_of_text else bytes([token]) for token in tokens)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class CharsTokenizer:
    """Each character of a fixed alphabet is a token."""

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + 1
        self.end_of_text = len(alphabet)
        self._ids = {character: i for i, character in enumerate(alphabet)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> CharsTokenizer:
        """The alphabet of these texts, in code point order."""
        return cls("".join(sorted(set().union(*map(set, texts)))))

    def encode(self, text: str) -> list[int]:
        """Raises UserError for a character outside the alphabet, naming it and its place."""
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            i = next(i for i, character in enumerate(text) if character not in self._ids)
            raise UserError(
                f"character {text[i]!r} (U+{ord(text[i]):04X}) at position {i} is not among the {len(self.alphabet)} "
                "characters this tokenizer was made from; leave it out, or train with bytes or bpe:N, which know all"
            ) from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        symbols = [*self.alphabet, END_OF_TEXT]
        return "".join(symbols[token] for token in tokens).encode()

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "chars", "alphabet": self.alphabet}


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), served by tiktoken."""

    def __init__(self, pattern: str, ranks: Sequence[bytes], special_tokens: dict[str, int]) -> None:
        """Args: tiktoken's split regex; the token bytes in merge order; ids beyond the ranks for special tokens."""
        import tiktoken  # not needed, and not paid for, by the other tokenizers

        self.pattern, self.ranks, self.special_tokens = pattern, list(ranks), dict(special_tokens)
        self.end_of_text = special_tokens[END_OF_TEXT]
        self._encoding = tiktoken.Encoding(
            "minigpt",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens=self.special_tokens,
        )
        self.vocab_size = self._encoding.n_vocab

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn merges from texts until there are `vocab_size` tokens, or nothing left to merge.

        `tokenizers` finds the merges. It writes bytes as printable characters; here they become bytes again, as
        tiktoken wants them.
        """
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,  # the last id is end_of_text
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        learner.train_from_iterator(texts, trainer)
        symbols = _byte_symbols()
        by_id = sorted(learner.get_vocab().items(), key=lambda item: item[1])
        ranks = [bytes(symbols[character] for character in token) for token, _ in by_id]
        return cls(SPLIT_PATTERN, ranks, {END_OF_TEXT: len(ranks)})

    @classmethod
    def named(cls, name: str) -> BPETokenizer:
        """One of tiktoken's encodings, with all its special tokens, from its cache or the network."""
        import tiktoken

        try:
            encoding = tiktoken.get_encoding(name)
        except Exception as error:
            raise UserError(
                f"data.tokenizer={name}: tiktoken could not download its tables ({type(error).__name__}); set "
                "TIKTOKEN_CACHE_DIR to a folder that holds them, or use bpe:N or bytes, which need no download"
            ) from None
        by_rank = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
        special = dict(encoding._special_tokens)
        # cl100k_base and o200k_base leave gaps between their special tokens, which an untrained model may draw.
        for gap in set(range(len(by_rank), encoding.n_vocab)) - set(special.values()):
            special[f"<|unused_{gap}|>"] = gap
        return cls(encoding._pat_str, [token for token, _ in by_rank], special)

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=2)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(tokens)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "bpe",
            "pattern": self.pattern,
            "ranks": [base64.b64encode(token).decode() for token in self.ranks],
            "special_tokens": self.special_tokens,
        }


def make_tokenizer(name: str, train_texts: Iterable[str], all_texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, trained where it is one that is trained.

    An alphabet is taken from all texts, since it is no statistic and val must be readable; merges only from train.
    """
    if name == "bytes":
        return BytesTokenizer()
    if name == "chars":
        return CharsTokenizer.of(all_texts)
    if name.startswith("bpe:"):
        return BPETokenizer.train(train_texts, int(name.removeprefix("bpe:")))
    if name in TIKTOKEN_NAMES:
        return BPETokenizer.named(name)
    return load_tokenizer(Path(name))


def tokenizer_from_dict(saved: dict[str, Any]) -> Tokenizer:
    """The inverse of `Tokenizer.to_dict`.

    Raises:
        UserError: the dictionary is not one of ours.
    """
    try:
        match saved["kind"]:
            case "bytes":
                return BytesTokenizer()
            case "chars":
                return CharsTokenizer(saved["alphabet"])
            case "bpe":
                ranks = [base64.b64decode(token) for token in saved["ranks"]]
                return BPETokenizer(saved["pattern"], ranks, saved["special_tokens"])
            case kind:
                raise UserError(f"unknown tokenizer kind {kind!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a tokenizer of minigpt ({type(error).__name__}: {error})") from None


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write the file that goes with a model: everything needed to encode and decode, without the network."""
    write_text(path, json.dumps(tokenizer.to_dict()))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a file written by `save_tokenizer`.

    Raises:
        UserError: the file is missing or not one of ours.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"tokenizer {path}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError:
        raise UserError(f"tokenizer {path}: not a JSON file") from None
    try:
        return tokenizer_from_dict(saved)
    except UserError as error:
        raise UserError(f"tokenizer {path}: {error}") from None


def _byte_symbols() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte -> the byte: itself if printable, else 256, 257, ... in order."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    symbols = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return symbols | {chr(256 + i): byte for i, byte in enumerate(others)}
