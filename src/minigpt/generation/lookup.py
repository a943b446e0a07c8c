"""A text's tokens -> a guess of the next ones: what followed where the text said the same before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LOOKED_UP = (4, 3, 2)
"""Numbers of tokens that a draft is looked up by: after one alone too much may follow."""


def lookup(tokens: Sequence[int], most: int) -> list[int]:
    """What followed where the text's last tokens stood before (Saxena 2023).

    The guess of prompt-lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding: the longest of LOOKED_UP
    that stood before counts, and of its places the latest.

    Returns:
        At most so many tokens, none where nothing stood before.
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
