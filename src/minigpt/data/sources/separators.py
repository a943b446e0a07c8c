"""Text in parts -> documents, cut at a separator; the separator may straddle two parts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

USUAL = "<|endoftext|>"
"""Separator that is recognised by default, as in TinyStories."""
_LITERAL_USUAL = re.escape(USUAL)
_PATTERNS: dict[str | None, str] = {
    # Not in quotation marks or backticks, where text or code only mentions it, unless they end and begin speech.
    None: rf"""{_LITERAL_USUAL}(?:(?!["'`])|(?<!["'`]{_LITERAL_USUAL})|(?<=[.!?]["']{_LITERAL_USUAL}))(?:\r?\n)?""",
    "line": r"\r?\n",
    "blank_lines": r"\r?\n(?:[ \t]*\r?\n)+",
}
LONGEST = 1 << 12
"""Characters of a separator, with all that its pattern looks at, that are found wherever the parts are cut."""
MOST_HELD = 1 << 20
"""Characters of a longer separator that are held in memory; it is cut there."""


def pattern_of(separator: str | None) -> re.Pattern[str] | None:
    """The pattern of data.document_separator; None for `none`."""
    if separator == "none":
        return None
    if separator is None or separator in _PATTERNS:
        return re.compile(_PATTERNS[separator])
    if len(separator) > 2 and separator[0] == separator[-1] == "/":
        return re.compile(separator[1:-1], re.MULTILINE)
    return re.compile(rf"{re.escape(separator)}(?:\r?\n)?")


class Splitter:
    """Cuts text that is fed in parts; holds back the few characters in which a separator may begin."""

    def __init__(self, separator: str | None) -> None:
        """Args: separator, the value of data.document_separator."""
        self._pattern = pattern_of(separator)
        self._held = ""
        self._at = 0
        """Where the text not yet given out begins; a pattern may look back at what is held before it."""
        self._begins = True
        """Whether a document begins there."""

    def feed(self, text: str, *, final: bool = False) -> Iterator[tuple[str, bool]]:
        """(Text, whether a document ends with it) as far as it is certain; with `final`, to the end."""
        if self._pattern is None:
            yield text, final
            return
        self._held += text
        search, found = self._at, None
        while search <= len(self._held) and (found := self._pattern.search(self._held, search)):
            start, stop = found.span()
            if not final and len(self._held) - stop < LONGEST and len(self._held) - start < MOST_HELD:
                break
            if start < stop or start > self._at or not self._begins:
                yield self._held[self._at : start], True
                self._at, self._begins = stop, True
            # A separator without length, such as (?=Chapter), is found again at the start of its document.
            search, found = max(stop, start + 1), None
        stop = len(self._held) if final else min(found.start() if found else sys.maxsize, len(self._held) - LONGEST)
        if stop > self._at or final:
            yield self._held[self._at : stop], final
            self._at, self._begins = stop, False
        kept = max(0, self._at - LONGEST)
        self._held, self._at = self._held[kept:], self._at - kept
