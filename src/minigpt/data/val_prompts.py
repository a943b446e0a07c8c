"""The val split -> a few beginnings of its documents, for runs that are given no prompts of their own."""

from __future__ import annotations

from collections.abc import Iterator

from minigpt.data.shards import PreparedData
from minigpt.data.tokenizers.base import Tokenizer
from minigpt.errors import UserError

N_PROMPTS = 3
LONGEST = 24
"""Characters: a few words."""
N_PLACES = 64
"""Documents, or places inside them, that are looked at."""
_READ_TOKENS = 512
"""Tokens read at each place: enough for a line to end and the next one to begin."""


def val_prompts(data: PreparedData, context_length: int, *, documents_only: bool = False) -> list[str]:
    """Up to three different prompts that the tokenizer knows and that leave most of the context to write in.

    They are the first words of documents, evenly spaced over the val split, or of lines where there are fewer than
    three documents. They depend on the text and not on the seed, so samples of several runs can be compared. They hold
    printable characters only, since they stand in commands; a text without any gets the empty prompt, which begins a
    document.

    Args:
        data: prepared text.
        context_length: of the model, in tokens.
        documents_only: the model is trained on each document by itself, so a line is no beginning to it.
    """
    # The only document of a val split may be the end of a text that was cut anywhere.
    few = len(data.val.document_starts) < N_PROMPTS and not documents_only
    places = (_lines, _documents) if few else (_documents,) if documents_only else (_documents, _lines)
    found: dict[str, None] = {}
    for texts in places:
        cut = (_cut(text, length, data.tokenizer, context_length // 4) for text, length in texts(data))
        # Words before marks: of Python files a statement rather than the quotes of a docstring.
        for text in sorted(filter(None, cut), key=lambda text: not text[0].isalnum()):
            if len(found) < N_PROMPTS:
                found[text] = None
    return list(found) or [""]


def _documents(data: PreparedData) -> Iterator[tuple[str, int]]:
    """Each with the most characters to take: of a short one half, so that something is left to write."""
    starts, tokens = data.val.document_starts, data.val.tokens
    for i in _spread(len(starts)):
        end = int(starts[i + 1]) if i + 1 < len(starts) else len(tokens)
        document = _text(data, int(starts[i]), end)
        yield document, min(LONGEST, len(document) // 2)


def _lines(data: PreparedData) -> Iterator[tuple[str, int]]:
    """What follows a line break, or a space where no line ends, or nothing of the two."""
    for start in _spread(len(data.val.tokens)):
        text = _text(data, start, len(data.val.tokens))
        _, mark, line = text.partition("\n") if "\n" in text.strip() else text.partition(" ")
        yield line if mark and line.strip() else text, LONGEST


def _spread(n: int) -> Iterator[int]:
    """Evenly spaced numbers below n."""
    n_places = min(n, N_PLACES)
    return (i * n // n_places for i in range(n_places))


def _text(data: PreparedData, start: int, end: int) -> str:
    """Text of a document's tokens from some place on, without what is no whole character at its ends."""
    tokens = data.val.tokens.read(start, min(end, start + _READ_TOKENS)).tolist()
    if data.tokenizer.end_of_text in tokens:
        tokens = tokens[: tokens.index(data.tokenizer.end_of_text)]
    return data.tokenizer.decode_bytes(tokens).decode("utf-8", errors="ignore")


def _cut(text: str, most_characters: int, tokenizer: Tokenizer, most_tokens: int) -> str:
    """The first words of a text that can be printed and that fit; empty where there are none."""
    text = text.lstrip()
    text = text[: next((i for i, character in enumerate(text) if not character.isprintable()), len(text))]
    if len(text) > most_characters:
        text = _without_end(text[: most_characters + 1])
    while text:
        try:
            if len(tokenizer.encode(text)) <= most_tokens:
                return text.rstrip()
        except UserError:  # the tokenizer is not lossless and writes what it cannot read
            return ""
        text = _without_end(text)
    return ""


def _without_end(text: str) -> str:
    """A text without its last word, or without its last character where it is a single word."""
    words = text.rstrip().rpartition(" ")[0].rstrip()
    return words or text[:-1]
