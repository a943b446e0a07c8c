"""Byte-level byte-pair encoding, trained here or one of tiktoken's encodings."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from minigpt.cores import in_threads
from minigpt.data.sources.chunking import cut_up, grouped
from minigpt.data.tokenizers.tiktoken_tables import load_tables
from minigpt.errors import UserError

END_OF_TEXT = "<|endoftext|>"
MAX_VOCAB_SIZE = 1_000_000
"""Files with larger ids are refused: their embedding would exhaust memory, by mistake or intent."""

# Words with one leading space, numbers of up to three digits, punctuation, newlines, spaces: the pattern of tiktoken's
# cl100k_base without possessive quantifiers, which not every regex engine has.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "bpe": SPLIT_PATTERN,
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Patterns that split text before bytes are merged. Files with another pattern are refused: it could skip characters
and so lose text, or backtrack for hours. Each of these covers all text and cuts wherever `cut_up` does: no match
continues from a non-space to a space or from a line break to a letter, or looks further back."""

LONGEST_WORD = 1024
"""Longest word, in characters, to learn merges from: learning takes time quadratic in the length of a word."""
_LEARNING_PATTERN = SPLIT_PATTERN.replace("+", f"{{1,{LONGEST_WORD}}}").replace("*", f"{{0,{LONGEST_WORD}}}")
"""SPLIT_PATTERN, but cutting longer runs without a break, such as a genome or a line of a million spaces."""
LONGEST_WHITE_SPACE = 1 << 19
"""Longest run of white space encoded in one part: on twice as many characters, tiktoken's regex engine fails."""

THREAD_CHARACTERS = 1 << 16
"""Characters per task of a thread: enough to make the overhead negligible."""


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), served by tiktoken."""

    begin_of_text: int | None = None
    lossless = True

    def __init__(self, pattern: str, ranks: Sequence[bytes], special_tokens: dict[str, int]) -> None:
        """Args: pattern, one of SPLITS; ranks, token bytes in merge order; special tokens with ids after the ranks.

        Raises:
            UserError: some text could not be encoded, or some id not decoded.
        """
        import tiktoken  # only here: the other tokenizers do not need it

        _check(pattern, ranks, special_tokens)
        self.pattern, self.ranks, self.special_tokens = pattern, list(ranks), dict(special_tokens)
        self.end_of_text = special_tokens[END_OF_TEXT]
        self.vocab_size = len(self.ranks) + len(self.special_tokens)
        # Separates texts that are encoded in one call; random, so that no text contains it.
        self._mark = f"\0{uuid.uuid4().hex}\0"
        self._encoding = tiktoken.Encoding(
            "minigpt",
            pat_str=_grouped(pattern),
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens=self.special_tokens | {self._mark: self.vocab_size},
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn merges from texts until there are `vocab_size` tokens, or nothing left to merge.

        `tokenizers` learns them, with printable characters for bytes; they are converted back for tiktoken. Memory
        grows with the number of different words, time with the length of the text. So callers pass an evenly spread
        sample of a large text; 2,500 bytes for each token of the vocabulary are plenty. Runs without a break are cut
        into words of LONGEST_WORD characters. No signal interrupts the call; `learn_bpe` does the same in a child
        process.
        """
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,  # the last id is end_of_text
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = _words_to_learn_from()
        learner.train_from_iterator(map(well_formed, texts), trainer)
        symbols = byte_symbols()
        by_id = sorted(learner.get_vocab().items(), key=lambda item: item[1])
        ranks = [bytes(symbols[character] for character in token) for token, _ in by_id]
        return cls(SPLIT_PATTERN, ranks, {END_OF_TEXT: len(ranks)})

    @classmethod
    def named(cls, name: str) -> BPETokenizer:
        """One of tiktoken's encodings, with all its special tokens.

        Raises:
            UserError: see `load_tables`.
        """
        tables = load_tables(name)
        ranks, special = tables["mergeable_ranks"], dict(tables["special_tokens"])
        # cl100k_base and o200k_base have gaps between their special tokens; an untrained model may sample these ids.
        for gap in set(range(len(ranks), max(special.values()))) - set(special.values()):
            special[unused_token(gap)] = gap
        return cls(SPLITS[name], sorted(ranks, key=ranks.__getitem__), special)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> BPETokenizer:
        """The inverse of `to_dict`."""
        ranks = [base64.b64decode(token, validate=True) for token in saved["ranks"]]
        return cls(saved["pattern"], ranks, saved["special_tokens"])

    def encode(self, text: str) -> list[int]:
        parts = _without_endless_white_space(well_formed(text))
        return [token for part in parts for token in self._encoding.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many texts; long ones are cut, so that even a single text uses all cores."""
        chunks = [
            [chunk for part in _without_endless_white_space(text) for chunk in cut_up(part, THREAD_CHARACTERS)]
            for text in texts
        ]
        groups = list(grouped(chain.from_iterable(chunks), len, THREAD_CHARACTERS))
        encoded = chain.from_iterable(in_threads(self._encode_all, groups))  # tiktoken releases the GIL
        parts = [[next(encoded) for _ in of_text] for of_text in chunks]
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        joined = self._encoding.encode_to_numpy(  # faster than a list of Python integers
            well_formed(self._mark.join(texts)), allowed_special={self._mark}, disallowed_special=()
        )
        marks = np.flatnonzero(joined == self.vocab_size).tolist()
        starts = [0, *(mark + 1 for mark in marks)]
        return [joined[start:stop] for start, stop in zip(starts, [*marks, len(joined)], strict=True)]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        if beyond := next((token for token in tokens if token >= self.vocab_size), None):
            raise KeyError(f"token {beyond}: the tokenizer has {self.vocab_size}")
        return self._encoding.decode_bytes(tokens)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "bpe",
            "pattern": self.pattern,
            "ranks": [base64.b64encode(token).decode() for token in self.ranks],
            "special_tokens": self.special_tokens,
        }


def _words_to_learn_from() -> Any:
    """The pre-tokenizer for learning: splits text and maps bytes to printable characters."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(_LEARNING_PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _without_endless_white_space(text: str) -> Iterator[str]:
    """The text in parts, cut only inside runs of white space, after every LONGEST_WHITE_SPACE characters of a run."""
    start = end = 0
    # Every run that is too long covers one of these positions, so only these are checked.
    for i in range(LONGEST_WHITE_SPACE, len(text), LONGEST_WHITE_SPACE):
        if i < end or not text[i].isspace():
            continue
        begin = i - LONGEST_WHITE_SPACE + len(text[i - LONGEST_WHITE_SPACE : i].rstrip())
        end = re.compile(r"\s*").match(text, i).end()  # type: ignore[union-attr]
        for cut in range(begin + LONGEST_WHITE_SPACE, end, LONGEST_WHITE_SPACE):
            yield text[start:cut]
            start = cut
    yield text[start:]


def well_formed(text: str) -> str:
    """The text with "?" for each lone surrogate: valid in a Python string, but not in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", errors="replace").decode()
    return text


def byte_symbols() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte -> the byte: itself if printable, else 256, 257, ... in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def unused_token(token: int) -> str:
    """Name of an id without a token."""
    return f"<|unused_{token}|>"


def _grouped(pattern: str) -> str:
    """An equivalent pattern, up to twice as fast: the alternatives without lookahead are in one group.

    tiktoken's engine matches such a group in one pass, but top-level alternatives one by one. Possessive quantifiers
    prevent that. These patterns do not need them: backtracking into a greedy quantifier never finds another match.
    """
    head, tail = pattern.split(r"|\s+(?!\S)")
    head = re.sub(r"(\+|\?|\*|\{1,3\})\+", r"\1", head)
    return rf"(?:{head})|\s+(?!\S){tail}"


def _check(pattern: str, ranks: Sequence[bytes], special_tokens: dict[str, int]) -> None:
    ids = list(special_tokens.values())
    if pattern not in SPLITS.values():
        raise UserError("its split pattern is not one that minigpt uses")
    if len(set(ranks)) < len(ranks):
        raise UserError("a token appears twice among its ranks")
    if missing := {bytes([byte]) for byte in range(256)} - set(ranks):
        raise UserError(f"it has no token for the byte 0x{min(missing).hex()}")
    if not all(type(token) is int for token in ids):
        raise UserError("the id of a special token is not an integer")
    if len(ranks) + len(ids) > MAX_VOCAB_SIZE:
        raise UserError(f"it has more than {MAX_VOCAB_SIZE} tokens")
    if sorted(ids) != list(range(len(ranks), len(ranks) + len(ids))):
        raise UserError(f"the ids of its special tokens are not those that follow its {len(ranks)} ranks, each once")
    if END_OF_TEXT not in special_tokens:
        raise UserError(f"it has no special token {END_OF_TEXT}")
