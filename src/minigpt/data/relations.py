"""Ground truth for attention: which span of a text refers to which earlier span; JSON Lines, CSV or Parquet.

A table has a row for each relation, with the columns of `COLUMNS`; the rows of a text follow one another. JSON Lines
may be such a table, or have a line for each text, as `to_json_line` writes it.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt.errors import UserError
from minigpt.files import listed, reason

Span = tuple[int, int]
COLUMNS = ("text", "name", "source_start", "source_stop", "target_start", "target_stop")
"""Columns of a table of relations; others are ignored. The last four count characters of the text."""
BATCH = 1000
"""Rows of a Parquet file in memory at once."""


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


def read_relations(path: str | Path) -> Iterator[Example]:
    """Texts and relations from a file: a table if it ends in .csv, .tsv or .parquet, and else JSON Lines.

    Raises:
        UserError: the file cannot be read, or a row is malformed; names file and row.
    """
    try:
        ending = Path(path).suffix.lower()
        if ending == ".parquet":
            yield from _examples(path, "row", _parquet_rows(path))
        elif ending in {".csv", ".tsv"}:
            yield from _examples(path, "row", _csv_rows(path, "\t" if ending == ".tsv" else ","))
        else:
            yield from _read_json_lines(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def _read_json_lines(path: str | Path) -> Iterator[Example]:
    lines = _json_rows(path)
    first = next(lines, None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    if isinstance(first[1], dict) and "relations" not in first[1] and "source_start" in first[1]:
        yield from _examples(path, "line", lines)
        return
    for number, data in lines:
        try:
            text = _get(data, "text", str, "a string")
            example = text, [_relation(item, len(text)) for item in _get(data, "relations", list, "a list")]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        yield example


def _json_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not empty."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, _parse(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: {error}") from None


def _csv_rows(path: str | Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Number of each row, counted from the header as in a spreadsheet, and its values."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the csv module's 128 kB
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            _require_columns(path, reader.fieldnames or ())
            for number, row in enumerate(reader, 2):
                yield number, row | {name: _whole(row[name]) for name in COLUMNS[2:]}
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text at byte {error.start}") from None
        except csv.Error as error:
            raise UserError(f"{path}, row {reader.line_num}: {error}") from None


def _parquet_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Number of each row, from 1, and its values."""
    import pyarrow
    import pyarrow.parquet

    try:
        with Path(path).open("rb") as content, pyarrow.parquet.ParquetFile(content) as file:
            _require_columns(path, file.schema_arrow.names)
            batches = file.iter_batches(BATCH, columns=list(COLUMNS))
            yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1)
    except (pyarrow.ArrowException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is damaged or not Parquet ({' '.join(str(error).split())[:200]})") from None


def _examples(path: str | Path, unit: str, rows: Iterator[tuple[int, Any]]) -> Iterator[Example]:
    """Texts and relations of the rows of a table; consecutive rows of one text are one example."""
    for _, own in itertools.groupby(rows, lambda row: row[1].get("text") if isinstance(row[1], dict) else None):
        text, relations = "", []
        for number, row in own:
            try:
                text = _get(row, "text", str, "a string")
                ends = {key: [row.get(f"{key}_start"), row.get(f"{key}_stop")] for key in ("source", "target")}
                relations.append(_relation({"name": row.get("name"), **ends}, len(text)))
            except ValueError as error:
                raise UserError(f"{path}, {unit} {number}: {error}") from None
        yield text, sorted(relations, key=lambda relation: relation.source)


def _require_columns(path: str | Path, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(f"{path}: has no column {listed(missing)}; it has {listed(names)}")


def _whole(value: str | None) -> int | str | None:
    """A whole number where it is one; else the value, which `_span` refuses."""
    try:
        return int(value or "")
    except ValueError:
        return value


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at character {error.pos + 1})") from None


def _relation(item: Any, length: int) -> Relation:
    name = _get(item, "name", str, "a string")
    source, target = (_span(_get(item, key, list, "a list"), key, length) for key in ("source", "target"))
    if target[1] > source[0]:
        raise UserError(f"target {list(target)} must end before source {list(source)} begins: attention looks back")
    return Relation(name, source, target)


def _get(data: Any, key: str, kind: type[Any], kind_name: str) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get(key), kind):
        raise UserError(f'needs "{key}", {kind_name}, in {_quoted(data)}')
    return data[key]


def _quoted(value: object) -> str:
    """The beginning of a value as JSON. Parquet has types without a form in JSON, such as bytes and times."""
    return json.dumps(value, default=repr)[:80]


def _span(value: list[Any], key: str, length: int) -> Span:
    if len(value) != 2 or any(type(end) is not int for end in value):
        raise UserError(f"{key} {_quoted(value)} must be two whole numbers, [start, stop]")
    start, stop = value
    if not 0 <= start < stop <= length:
        raise UserError(f"{key} {value} must be [start, stop] with 0 <= start < stop <= {length}, the text's length")
    return start, stop
