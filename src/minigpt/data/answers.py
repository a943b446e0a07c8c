"""Prompts and answers: where the answers lie in a document, their tokens, and the form in which a prompt is asked.

A document of a pair is prompt, line break, answer; one of a conversation has a line `ROLE: CONTENT` for each message.
Only answers are targets, each with the end_of_text after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minigpt.config import DataConfig
from minigpt.data.relations import Span
from minigpt.data.tokenizers.base import Tokenizer

NO_ANSWERS = np.zeros((0, 3), dtype=np.int64)


class PromptForm(NamedTuple):
    """The text around a prompt, as in training; the answer follows."""

    before: str = ""
    after: str = ""
    between: str | None = None
    """Text between an answer and the form of a further prompt; None where each prompt stands alone."""
    complete: str | None = None
    """Beginning of prompts that name their first role themselves: `before` is not put in front of these."""

    def __call__(self, prompt: str) -> str:
        is_complete = self.complete is not None and prompt.startswith(self.complete)
        return f"{'' if is_complete else self.before}{prompt}{self.after}"

    def inside(self, text: str) -> str | None:
        """The prompt of a text in this form; None for another text."""
        prompt = text.removesuffix(self.after).removeprefix(self.before)
        return prompt if self(prompt) == text else None


AS_IT_IS = PromptForm()
PAIR = PromptForm(after="\n")
CHAT = PromptForm("user: ", "\nassistant: ", "\n", "system: ")


def prompt_form(config: DataConfig) -> PromptForm:
    """The form of prompts for a model that was trained with this config."""
    if config.answer_column is None:
        return AS_IT_IS
    return CHAT if config.answers_in_messages else PAIR


def joined(parts: Iterable[tuple[str, bool]]) -> tuple[str, list[Span]]:
    """(text, whether it is an answer) -> the whole text, and the characters [start, stop) of each answer."""
    text, spans = "", list[Span]()
    for part, is_answer in parts:
        if is_answer and part:
            spans.append((len(text), len(text) + len(part)))
        text += part
    return text, spans


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, Sequence[Span]]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens of texts and places of their answers, which begin and end at token boundaries.

    An answer inside a text is followed by end_of_text; the caller stores the one at the text's end.

    Args:
        tokenizer: encodes each answer, and each text between answers, by itself.
        texts: each with the characters [start, stop) of its answers, in order.

    Returns:
        For each text its tokens, (n,), and its answers, (n_answers, 3) int64: first token, end after the end_of_text,
        and bytes of UTF-8.
    """
    pieces = [list(_pieces(text, spans)) for text, spans in texts]
    tokens = iter(tokenizer.encode_batch([piece for parts in pieces for piece, _ in parts]))
    end_of_text = np.array([tokenizer.end_of_text], dtype=np.int64)
    found = []
    for (text, spans), parts in zip(texts, pieces, strict=True):
        if not spans:
            found.append((next(tokens), NO_ANSWERS))
            continue
        n_tokens, n_characters = 0, 0
        encoded, answers = list[np.ndarray](), list[tuple[int, int, int]]()
        for piece, is_answer in parts:
            encoded.append(next(tokens))
            n_characters += len(piece)
            if is_answer:
                answers.append((n_tokens, n_tokens + len(encoded[-1]) + 1, len(piece.encode())))
                if n_characters < len(text):
                    encoded.append(end_of_text)
            n_tokens = sum(map(len, encoded))
        found.append((np.concatenate(encoded), np.array(answers, dtype=np.int64)))
    return found


def _pieces(text: str, spans: Sequence[Span]) -> Iterator[tuple[str, bool]]:
    """A text cut at the ends of its answers, and whether each piece is one; a text without answers is one piece."""
    starts = {start for start, _ in spans}
    if not spans:
        yield text, False
        return
    for start, stop in pairwise(sorted({0, len(text), *(place for span in spans for place in span)})):
        yield text[start:stop], start in starts
