"""Encoding of prompts to token ids, and streaming decoding of generated tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

import numpy as np

from minigpt.data.tokenizers.base import Tokenizer, first_token
from minigpt.errors import UserError
from minigpt.generation.sampling import Mask

if TYPE_CHECKING:
    from torch import Tensor

Prompt: TypeAlias = "str | Sequence[int] | Tensor"
"""Text, or token ids: a list, or a tensor or array of one axis."""


def token_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Encode a text, or check token ids.

    Raises:
        UserError: neither text nor token ids, or a character or token unknown to the tokenizer.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    ok = isinstance(values, Sequence) and all(isinstance(each, SupportsIndex) and each is not True for each in values)
    if not ok or isinstance(values, bytes):
        raise UserError(f"prompt={prompt!r}: expected text, or a list or a 1-D tensor of token ids")
    tokens = [index(each) for each in values]
    if wrong := [token for token in tokens if not 0 <= token < tokenizer.vocab_size]:
        raise UserError(f"prompt: there is no token {wrong[0]}: the vocabulary has {tokenizer.vocab_size}")
    return tokens


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, context_length: int, *, from_start: bool = False) -> list[int]:
    """Token ids of a prompt, as the model expects its beginning.

    Before a text comes the tokenizer's begin-of-text, if it has one; else end-of-text before an empty prompt. With
    `from_start` end-of-text comes before any text.

    Raises:
        UserError: the prompt is longer than the context, or has a character unknown to the tokenizer.
    """
    tokens = token_ids(tokenizer, prompt)
    if from_start and isinstance(prompt, str):
        tokens = [tokenizer.end_of_text, *tokens]
    elif not tokens or (isinstance(prompt, str) and tokenizer.begin_of_text is not None):
        tokens = [first_token(tokenizer), *tokens]
    if len(tokens) > context_length:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, but the model reads at most {context_length}: "
            "shorten it, or train with a longer model.context_length"
        )
    return tokens


class TokenHealing:
    """Token healing for spaces at the end of a prompt: restricts the new text to begin with given bytes."""

    # BPE attaches a space to the following word (" name"), so a prompt that ends in a lone " " is rare in training. The
    # spaces are removed from the prompt, and the first tokens drawn must spell them.

    def __init__(self, texts: Sequence[bytes], text: bytes) -> None:
        """Args: texts of all tokens, see `token_texts`; text to begin with."""
        self.text, self._texts = text, texts

    def __call__(self, drawn: Sequence[int]) -> Mask | None:
        """(n,) mask of the tokens that fit the bytes still missing after `drawn`; None once none are missing."""
        left = self.text
        for token in drawn:
            left = left[len(self._texts[token]) :]
        if not left:
            return None
        return np.array([bool(text) and (text.startswith(left) or left.startswith(text)) for text in self._texts])


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token; empty for end-of-text."""
    return [
        b"" if token == tokenizer.end_of_text else tokenizer.decode_bytes([token])
        for token in range(tokenizer.vocab_size)
    ]


class TextStream:
    """Decodes tokens one by one, without partial UTF-8 characters or stop strings."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), n_skipped: int = 0) -> None:
        """Args: the first n_skipped characters are dropped, since they belong to the prompt (token healing)."""
        self.tokenizer, self.stop, self.n_skipped = tokenizer, stop, n_skipped
        self.stopped = False
        """Whether a stop string was found; no text follows it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, token: int) -> str:
        """The text that is complete with this token."""
        return self._shown(self._decoder.decode(self.tokenizer.decode_bytes([token])), final=False)

    def end(self) -> str:
        """The remaining text, when no token follows."""
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
        # What may be the beginning of a stop string waits for the next token.
        n_held = 0 if final else max((_overlap(held, each) for each in self.stop), default=0)
        shown, self._held = held[: len(held) - n_held], held[len(held) - n_held :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of the text that is a proper prefix of the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
