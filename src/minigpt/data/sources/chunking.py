"""Text of any length, long or in many short parts -> pieces and groups of about one size."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Behind a line's end that has something before it and a letter behind it, or between a word and the space before the
# next: the split pattern of every byte-level BPE that is known to us cuts there, whatever else stands around.
_CERTAIN_CUT = re.compile(r"(?<=\S\n)(?=[^\W\d_])|(?<=[^\W\d_])(?= [^\W\d_])")


def cut_up(text: str, least: int, most: int | None = None) -> Iterator[str]:
    """Cut a long text where every tokenizer cuts too, so that the pieces' tokens are those of the whole.

    Args:
        text: of any length.
        least: characters of each piece but the last, which may have fewer.
        most: of any piece: one without a certain place is cut there. Without it, a piece is as long as it has to be.
    """
    start = 0
    while len(text) - start > (most or least):
        stop = len(text) if most is None else start + most
        found = _CERTAIN_CUT.search(text, start + least, stop)
        if not found and most is None:
            break
        cut = found.start() if found else stop
        yield text[start:cut]
        start = cut
    yield text[start:]


def grouped(items: Iterable[T], size: Callable[[T], int], limit: int, most: int = sys.maxsize) -> Iterator[list[T]]:
    """Some items at a time, in order: until their sizes reach the limit, or until there are `most` of them."""
    group: list[T] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit or len(group) >= most:
            yield group
            group, total = [], 0
    if group:
        yield group
