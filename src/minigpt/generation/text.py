"""Prompts as text -> token ids, and drawn tokens -> text as it may be shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from operator import index
from typing import SupportsIndex

import numpy as np
from torch import Tensor

from minigpt.data.tokenizers.base import Tokenizer
from minigpt.errors import UserError
from minigpt.generation.sampling import Mask

Prompt = str | Sequence[int] | Tensor
"""Text, or token ids: a list, or a tensor or array of one axis."""


def token_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a text; those that are given as such are checked.

    Raises:
        UserError: it is neither text nor token ids, or has a character or token that the tokenizer does not know.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    ok = isinstance(values, Sequence) and all(isinstance(each, SupportsIndex) and each is not True for each in values)
    if not ok or isinstance(values, bytes):
        raise UserError(f"prompt={prompt!r}: expected text, or a list or a 1-D tensor of token ids")
    tokens = [index(each) for each in values]
    if wrong := [token for token in tokens if not 0 <= token < tokenizer.vocab_size]:
        raise UserError(f"prompt: there is no token {wrong[0]}, as there are {tokenizer.vocab_size}")
    return tokens


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, context_length: int, *, from_start: bool = False) -> list[int]:
    """Token ids of a prompt; an empty one, or each text with `from_start`, begins where a document begins.

    Raises:
        UserError: the prompt does not fit the context, or has a character that the tokenizer does not know.
    """
    tokens = token_ids(tokenizer, prompt)
    if (from_start and isinstance(prompt, str)) or not tokens:
        tokens = [tokenizer.end_of_text, *tokens]
    if len(tokens) > context_length:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, but the model reads at most {context_length}: "
            "shorten it, or train with a longer model.context_length"
        )
    return tokens


class Beginning:
    """Bytes that new text must begin with: tokens are drawn among those that agree with what is left of them.

    A tokenizer writes the spaces at a prompt's end as the beginning of the next word (" name"), and a model that is
    handed a lone " " has hardly ever seen one there. So they are taken back, and demanded of the new text instead.
    """

    def __init__(self, texts: Sequence[bytes], text: bytes) -> None:
        """Args: texts of all tokens, see `token_texts`."""
        self.text, self._texts = text, texts

    def __call__(self, drawn: Sequence[int]) -> Mask | None:
        """Which tokens agree with what is left after those that were drawn; None where nothing is left."""
        left = self.text
        for token in drawn:
            left = left[len(self._texts[token]) :]
        if not left:
            return None
        return np.array([bool(text) and (text.startswith(left) or left.startswith(text)) for text in self._texts])


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """The text of each token; the end of a document has none."""
    return [
        b"" if token == tokenizer.end_of_text else tokenizer.decode_bytes([token])
        for token in range(tokenizer.vocab_size)
    ]


class TextStream:
    """Tokens one by one -> text to show: never half a character, and nothing of a stop string.

    What could still become a stop string is held back until it cannot.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), n_skipped: int = 0) -> None:
        """Args: n_skipped characters at the beginning are not shown, as they stand in the prompt."""
        self.tokenizer, self.stop, self.n_skipped = tokenizer, stop, n_skipped
        self.stopped = False
        """Whether a stop string came; nothing is shown after it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, token: int) -> str:
        """What can be shown now."""
        return self._shown(self._decoder.decode(self.tokenizer.decode_bytes([token])), final=False)

    def end(self) -> str:
        """What is left when no token follows."""
        return self._shown(self._decoder.decode(b"", final=True), final=True)

    def _shown(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        skipped = min(self.n_skipped, len(text))
        self.n_skipped -= skipped
        held = self._held + text[skipped:]
        found = [place for place in (held.find(each) for each in self.stop) if place >= 0]
        if found:
            self.stopped = True
            return held[: min(found)]
        n_held = 0 if final else max((_overlap(held, each) for each in self.stop), default=0)
        shown, self._held = held[: len(held) - n_held], held[len(held) - n_held :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is a beginning of the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
