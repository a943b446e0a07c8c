"""Stand-in for part B."""

from __future__ import annotations

from typing import Any

from minigpt.data.tokenizers.base import Tokenizer


def tokenizer_data(tokenizer: Tokenizer) -> dict[str, Any]:
    return tokenizer.to_dict()
