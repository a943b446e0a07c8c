"""A file of any kind -> its rows: texts, long ones of a text file in pieces.

`datasets` has readers of its own, but they turn \\r\\n into \\n, hold a whole file as one string, guess types, and
name no line of an error.
"""

from __future__ import annotations

import codecs
import csv
import json
import shlex
import tokenize
from collections.abc import Iterator
from itertools import chain

from minigpt.config import UserError
from minigpt.data.pieces import cut_up
from minigpt.data.scan import chunks
from minigpt.data.sources import File
from minigpt.data.tables import LONGEST_ROW, listed, require_column, table_rows
from minigpt.files import reason

PIECE = 1 << 20
"""Characters that a document is handed on in at most; a longer one comes in pieces."""

Row = tuple[str | None, bool]
"""A text, or a piece of one, and whether it ends there."""


def read_rows(file: File, column: str, errors: str) -> Iterator[Row]:
    """Rows of a file of any kind.

    Args:
        file: found by `find_source`.
        column: of the table, or key of the JSON objects, that holds the text.
        errors: data.encoding_errors.

    Raises:
        UserError: the file cannot be read or understood; named, with the line where that is known.
    """
    match file.kind:
        case "text":
            yield from _text_rows(file, errors)
        case "python":
            yield from _python_rows(file)
        case "jsonl":
            yield from _json_rows(file, column, errors)
        case "parquet" | "arrow":
            for text in table_rows(file, column):
                yield text, True
        case _:
            yield from _csv_rows(file, column, errors)


def _text_rows(file: File, errors: str) -> Iterator[Row]:
    """A file is one document; a mark of byte order at its start is no part of it."""
    text = ""
    for part in _decoded(file, errors):
        *pieces, text = cut_up(text + part, PIECE // 2, PIECE)
        for piece in pieces:
            yield piece, False
    yield text, True


def _python_rows(file: File) -> Iterator[Row]:
    try:
        with tokenize.open(file.path) as source:  # honours a source file's own encoding line
            yield source.read(), True
    except OSError as error:
        raise UserError(f"data.source: {file.path}: {reason(error)}") from None
    except (SyntaxError, UnicodeDecodeError):
        return  # a file with a broken encoding on purpose, as lib2to3 has in some versions


def _json_rows(file: File, column: str, errors: str) -> Iterator[Row]:
    def wrong(number: int, what: str) -> UserError:
        return UserError(f"data.source: {file.path}, line {number}: {what}")

    lines = "JSON Lines has one object in each line"
    of_an_array = f"{lines}; an array is made into lines with: jq -c '.[]' {shlex.quote(str(file.path))} > lines.jsonl"
    for number, line in enumerate(_lines(file, errors), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            array = number == 1 and line.lstrip().startswith("[")
            raise wrong(number, f"not JSON; {of_an_array if array else f'{lines} ({error})'}") from None
        if isinstance(row, list):
            raise wrong(number, f"an array; {of_an_array}")
        if not isinstance(row, dict):
            raise wrong(number, f"not an object; {lines}, with a key {column!r}")
        if column not in row:
            raise wrong(number, f"no key {column!r}; it has {listed(list(row))}: give one as data.text_column")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise wrong(number, f"{column} is {type(text).__name__}, not text")
        if text and "\\u" in line:  # JSON may spell half a surrogate pair, which is no character
            text = text.encode("utf-8", "replace").decode()
        yield text, True


def _csv_rows(file: File, column: str, errors: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_ROW)
    # Strict: else a quotation mark that nothing closes makes one text of all rows behind it.
    rows = csv.reader(_lines(file, errors), delimiter="\t" if file.kind == "tsv" else ",", strict=True)
    try:
        names = next(rows, [])
        require_column(file, column, names)
        i = names.index(column)
        for row in rows:
            if row:
                if len(row) <= i:
                    raise UserError(f"data.source: {file.path}, line {rows.line_num}: no field for {column!r}")
                yield row[i], True
    except csv.Error as error:
        raise UserError(f"data.source: {file.path}, line {rows.line_num}: not CSV ({error})") from None


def _decoded(file: File, errors: str) -> Iterator[str]:
    """A file's text, a part at a time, without a mark of byte order."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace" if errors == "replace" else "strict")
    try:
        for chunk in chain(chunks(file), [b""]):
            yield decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        raise UserError(f"data.source: {file.path} is not UTF-8 text") from None  # it was when it was scanned


def _lines(file: File, errors: str) -> Iterator[str]:
    """Lines with their ends; only \\n ends a line."""
    parts: list[str] = []
    length = 0
    for text in _decoded(file, errors):
        *whole, rest = text.split("\n")
        for line in whole:
            yield "".join([*parts, line, "\n"])
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > LONGEST_ROW:
            raise UserError(f"data.source: {file.path} has a line of more than {LONGEST_ROW >> 20} MB: is it text?")
    if length:
        yield "".join(parts)
