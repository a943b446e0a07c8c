"""JSON -> objects with their place: JSON Lines, one array, or pretty-printed objects, in bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from minigpt.data.sources.tables import LONGEST_ROW

_SPACE = re.compile(r"[ \t\r\n]*")


class JsonRow(NamedTuple):
    """An object of a file."""

    where: str
    """For errors: `line 7`, or `object 7`."""
    row: dict[str, Any]
    is_escaped: bool
    """Whether its source has escapes, which may be half of a surrogate pair."""


class NotJsonError(ValueError):
    """Text is not JSON of a form that is read; says where."""


def is_json_lines(head: str) -> bool:
    """Whether JSON has one value in each line, by its first line that is not blank."""
    first = next((line.strip() for line in head.split("\n") if line.strip()), "")
    return not first.startswith("[") and (not first.startswith("{") or first[-1] not in "{[," or _is_json(first))


def by_line(lines: Iterable[str]) -> Iterator[JsonRow]:
    """The objects of JSON Lines.

    Raises:
        NotJsonError: a line is not a JSON object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NotJsonError(f"line {number}: not JSON; JSON Lines has one object in each line ({error})") from None
        yield _row(value, f"line {number}", line)


def over_lines(parts: Iterable[str]) -> Iterator[JsonRow]:
    """The objects of one array, or pretty-printed ones, one after the other.

    Raises:
        NotJsonError: it is neither, or an object is longer than LONGEST_ROW.
    """
    scanner, number = _Scanner(parts), 0
    is_array = scanner.take("[")
    more = not scanner.take("]") if is_array else True
    while more:
        number += 1
        value, source = scanner.value(f"object {number}")
        yield _row(value, f"object {number}", source)
        more = scanner.take(",") if is_array else scanner.take("{", keep=True)
        if is_array and not more and not scanner.take("]"):
            raise NotJsonError(f"after object {number}: not JSON; neither a comma nor the end of the array follows")
    if scanner.remains():
        raise NotJsonError(f"after object {number}: not JSON; more text follows its end")


class _Scanner:
    """Reads values from parts of text: a value that is incomplete is read again from twice the text."""

    def __init__(self, parts: Iterable[str]) -> None:
        self._parts = iter(parts)
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def take(self, character: str, *, keep: bool = False) -> bool:
        """Whether this character is next, after white space; passes it unless kept."""
        while (found := _SPACE.match(self._text, self._at)) and found.end() == len(self._text):
            self._at = found.end()
            if not self._more(1):
                break
        self._at = found.end() if found else self._at
        is_next = self._text.startswith(character, self._at)
        self._at += is_next and not keep
        return is_next

    def value(self, where: str) -> tuple[Any, str]:
        """The next value and its source."""
        self.take("", keep=True)
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise NotJsonError(f"{where}: not JSON that is read; it is too deeply nested") from None
            except ValueError as error:
                if len(self._text) - self._at > LONGEST_ROW or not self._more(len(self._text) - self._at):
                    raise NotJsonError(f"{where}: not JSON ({str(error).split(': line')[0]})") from None
                continue
            source, self._at = self._text[self._at : end], end
            return value, source

    def remains(self) -> bool:
        """Whether anything but white space follows."""
        self.take("", keep=True)
        return self._at < len(self._text)

    def _more(self, least: int) -> bool:
        """Buffer at least this many unread characters, or all that are left; drop those read. False at the end."""
        parts, length = [self._text[self._at :]], 0
        for part in self._parts:
            parts.append(part)
            length += len(part)
            if length >= least:
                break
        self._text, self._at = "".join(parts), 0
        return length > 0


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _row(value: Any, where: str, source: str) -> JsonRow:
    if not isinstance(value, dict):
        kind = "an array" if isinstance(value, list) else type(value).__name__
        raise NotJsonError(f"{where}: {kind}, not an object with a key for its text")
    return JsonRow(where, value, "\\u" in source)
