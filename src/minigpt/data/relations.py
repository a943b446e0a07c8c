"""Ground truth for attention: which span of a text refers to which earlier span; stored as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt.errors import UserError
from minigpt.files import reason

Span = tuple[int, int]


@dataclass(frozen=True)
class Relation:
    """One span of a text refers to an earlier one: a head for this relation attends from source to target."""

    name: str
    source: Span
    """Characters [start, stop) that refer: the queries."""
    target: Span
    """Characters [start, stop) referred to: the keys. They end before the source begins, as attention is causal."""


Example = tuple[str, list[Relation]]
"""A text and its relations, in the order of their sources."""


def to_json_line(text: str, relations: Sequence[Relation]) -> str:
    """One line of JSON without its line break. ASCII only, so no character of the text can break the line."""
    return json.dumps({"text": text, "relations": [asdict(relation) for relation in relations]})


def read_json_lines(path: str | Path) -> Iterator[Example]:
    """Texts and relations from a UTF-8 file of `to_json_line` lines; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or a line is malformed; names file and line.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    example = _parse(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: {error}") from None
                yield example
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _parse(line: bytes) -> Example:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    text = _get(data, "text", str, "a string")
    return text, [_relation(item, len(text)) for item in _get(data, "relations", list, "a list")]


def _relation(item: Any, length: int) -> Relation:
    name = _get(item, "name", str, "a string")
    source, target = (_span(_get(item, key, list, "a list"), key, length) for key in ("source", "target"))
    if target[1] > source[0]:
        raise UserError(f"target {list(target)} must end before source {list(source)} begins: attention looks back")
    return Relation(name, source, target)


def _get(data: Any, key: str, kind: type[Any], kind_name: str) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get(key), kind):
        raise UserError(f'needs "{key}", {kind_name}, in {json.dumps(data)[:80]}')
    return data[key]


def _span(value: list[Any], key: str, length: int) -> Span:
    if len(value) != 2 or any(type(end) is not int for end in value):
        raise UserError(f"{key} {json.dumps(value)[:80]} must be two whole numbers, [start, stop]")
    start, stop = value
    if not 0 <= start < stop <= length:
        raise UserError(f"{key} {value} must be [start, stop] with 0 <= start < stop <= {length}, the text's length")
    return start, stop
