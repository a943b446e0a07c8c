"""Prompt-lookup drafts: what followed an earlier occurrence of the last tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LOOKED_UP = (4, 3, 2)
"""Lengths of the n-grams to match, longest first; a single token predicts too little."""


def prompt_lookup_draft(tokens: Sequence[int], most: int) -> list[int]:
    """The draft of prompt-lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding).

    Finds the latest earlier occurrence of the text's last n tokens, for the largest n of LOOKED_UP that has one.

    Returns:
        At most `most` tokens that followed there; empty if there is no match.
    """
    text = np.array(tokens)
    for n in LOOKED_UP:
        if most < 1 or len(text) <= n:
            continue
        places = np.flatnonzero(text[:-n] == text[-n])
        for i in range(1, n):
            places = places[text[places + i] == text[i - n]]
        if len(places):
            found: list[int] = text[places[-1] + n :][:most].tolist()
            return found
    return []
