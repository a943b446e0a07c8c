"""Default prompts for samples: the first words of a few documents of the val split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from minigpt.data.answers import AS_IT_IS, PromptForm
from minigpt.data.shards import PreparedData
from minigpt.data.tokenizers.base import Tokenizer
from minigpt.errors import UserError

N_PROMPTS = 3
LONGEST = 24
"""Characters of a prompt at most: a few words."""
N_PLACES = 64
"""Documents, or places inside them, that are tried."""
_READ_TOKENS = 512
"""Tokens read at each place: enough to find the next line."""


def val_prompts(
    data: PreparedData, context_length: int, *, documents_only: bool = False, form: PromptForm = AS_IT_IS
) -> list[str]:
    """Up to three different prompts that the tokenizer can encode, of at most a quarter of the context.

    They are the first words of documents evenly spaced over the val split, or of lines if there are fewer than three
    documents. They depend on the text and not on the seed, so samples of several runs can be compared. They have
    printable characters only, since they appear in commands. Text without any gives the empty prompt, which starts a
    document. Text of prompts and answers gives whole prompts, of at most three quarters of the context.

    Args:
        data: prepared text.
        context_length: of the model, in tokens.
        documents_only: take no lines, as a model trained on single documents never starts inside one.
        form: of the text's prompts, if it has answers.
    """
    if data.val.answers is not None:
        return list(
            islice(dict.fromkeys(_asked(data, data.val.answers, form, 3 * context_length // 4)), N_PROMPTS)
        ) or [""]
    # With few documents, lines go first: the only document may be the end of a text that was cut anywhere.
    few = len(data.val.document_starts) < N_PROMPTS and not documents_only
    places = (_lines, _documents) if few else (_documents,) if documents_only else (_documents, _lines)
    found: dict[str, None] = {}
    for texts in places:
        cut = (_cut(text, length, data.tokenizer, context_length // 4) for text, length in texts(data))
        # Words before punctuation: of Python files, statements before the quotes of a docstring.
        for text in sorted(filter(None, cut), key=lambda text: not text[0].isalnum()):
            if len(found) < N_PROMPTS:
                found[text] = None
    return list(found) or [""]


def _asked(data: PreparedData, answers: np.ndarray, form: PromptForm, most_tokens: int) -> Iterator[str]:
    """Prompts before the first answers of documents."""
    starts = data.val.document_starts
    for i in _spread(len(starts)):
        start = int(starts[i])
        stop = int(answers[np.searchsorted(answers[:, 0], start), 0])
        if stop - start <= min(most_tokens, _READ_TOKENS):
            prompt = form.inside(_text(data, start, stop))
            if prompt is not None:
                yield prompt


def _documents(data: PreparedData) -> Iterator[tuple[str, int]]:
    """Documents, each with the most characters to take: half of a short one, so that the model can continue it."""
    starts, tokens = data.val.document_starts, data.val.tokens
    for i in _spread(len(starts)):
        end = int(starts[i + 1]) if i + 1 < len(starts) else len(tokens)
        document = _text(data, int(starts[i]), end)
        yield document, min(LONGEST, len(document) // 2)


def _lines(data: PreparedData) -> Iterator[tuple[str, int]]:
    """Text after a line break; without one after a space; without either, from the place itself."""
    for start in _spread(len(data.val.tokens)):
        text = _text(data, start, len(data.val.tokens))
        _, mark, line = text.partition("\n") if "\n" in text.strip() else text.partition(" ")
        yield line if mark and line.strip() else text, LONGEST


def _spread(n: int) -> Iterator[int]:
    """Evenly spaced numbers below n."""
    n_places = min(n, N_PLACES)
    return (i * n // n_places for i in range(n_places))


def _text(data: PreparedData, start: int, end: int) -> str:
    """Text of a document from a token on, without partial characters at its ends."""
    tokens = data.val.tokens.read(start, min(end, start + _READ_TOKENS)).tolist()
    if data.tokenizer.end_of_text in tokens:
        tokens = tokens[: tokens.index(data.tokenizer.end_of_text)]
    return data.tokenizer.decode_bytes(tokens).decode("utf-8", errors="ignore")


def _cut(text: str, most_characters: int, tokenizer: Tokenizer, most_tokens: int) -> str:
    """The first printable words of a text that fit both limits; empty if none do."""
    text = text.lstrip()
    text = text[: next((i for i, character in enumerate(text) if not character.isprintable()), len(text))]
    if len(text) > most_characters:
        text = _without_end(text[: most_characters + 1])
    while text:
        try:
            if len(tokenizer.encode(text)) <= most_tokens:
                return text.rstrip()
        except UserError:  # a tokenizer that is not lossless may decode to text that it cannot encode
            return ""
        text = _without_end(text)
    return ""


def _without_end(text: str) -> str:
    """A text without its last word; a single word loses its last character."""
    words = text.rstrip().rpartition(" ")[0].rstrip()
    return words or text[:-1]
