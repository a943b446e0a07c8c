"""A tokenizer -> what tokenizer.js needs to give the same ids: plain types for the page's data."""

from __future__ import annotations

import base64
from typing import Any

from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer, Tokenizer
from minigpt.data.tokenizers.bpe import BPETokenizer
from minigpt.errors import UserError
from minigpt.pages.live.split_patterns import javascript_pattern


def tokenizer_data(tokenizer: Tokenizer) -> dict[str, Any]:
    """The data of a tokenizer.

    Raises:
        UserError: JavaScript cannot cut text exactly as this tokenizer does.
    """
    return {
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "begin_of_text": tokenizer.begin_of_text,
        **_of_kind(tokenizer),
    }


def _of_kind(tokenizer: Tokenizer) -> dict[str, Any]:
    match tokenizer:
        case BytesTokenizer():
            return {"kind": "bytes"}
        case CharsTokenizer():
            return {"kind": "chars", "alphabet": tokenizer.alphabet}
        case BPETokenizer():
            return _bpe(tokenizer)
    raise UserError(f"the live page cannot run a tokenizer of the type {type(tokenizer).__name__}")


def _bpe(tokenizer: BPETokenizer) -> dict[str, Any]:
    """The bytes of all tokens in merge order, one after the other, and the names of the special tokens after them."""
    special = tokenizer.special_tokens
    return {
        "kind": "bpe",
        "pattern": javascript_pattern(tokenizer.pattern, oniguruma=False),
        "bytes": base64.b64encode(b"".join(tokenizer.ranks)).decode(),
        "lengths": [len(token) for token in tokenizer.ranks],
        "special": sorted(special, key=special.__getitem__),
    }
