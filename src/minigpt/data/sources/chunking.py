"""Long text -> chunks, and many short items -> groups, of about equal size."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# After a line break between a non-space and a letter, or between a letter and a space before another letter. The split
# pattern of every known byte-level BPE cuts there, whatever the context.
_CERTAIN_CUT = re.compile(r"(?<=\S\n)(?=[^\W\d_])|(?<=[^\W\d_])(?= [^\W\d_])")


def cut_up(text: str, least: int, most: int | None = None) -> Iterator[str]:
    """Cut a long text where every tokenizer cuts too, so that the chunks' tokens are those of the whole.

    Args:
        text: of any length.
        least: characters of each chunk but the last.
        most: characters of any chunk: without a safe place before, it is cut there. None: chunks may be of any length.
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
    """Consecutive items in groups: a group ends when its sizes reach `limit`, or at `most` items."""
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
