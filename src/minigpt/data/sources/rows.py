"""A file of any kind -> its rows, one text each; long texts come in chunks.

The readers of `datasets` turn \\r\\n into \\n, hold a whole file as one string, guess types, and name no line of an
error.
"""

from __future__ import annotations

import csv
import re
import tokenize
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat

from minigpt.config import DataConfig
from minigpt.data.sources.chat import Parts
from minigpt.data.sources.chunking import cut_up
from minigpt.data.sources.columns import Columns, NoTextError, columns_of
from minigpt.data.sources.encodings import HEAD, TextDecoder
from minigpt.data.sources.json_rows import NotJsonError, by_line, is_json_lines, over_lines
from minigpt.data.sources.messages import unreadable
from minigpt.data.sources.names import File
from minigpt.data.sources.scan import chunks, not_in_encoding, what_else
from minigpt.data.sources.separators import Splitter
from minigpt.data.sources.tables import LONGEST_ROW, required_columns, table_rows
from minigpt.errors import UserError
from minigpt.files import listed

DELIMITERS = {"csv": ",;\t|", "tsv": "\t,;|"}
"""Possible delimiters by kind of file, the usual one first."""
HAVE_COLUMNS = ("jsonl", *DELIMITERS, "parquet", "arrow")
"""Kinds of files with columns."""
HEADING_LINES = 20
"""Lines of a header at most: its quoted names may contain line breaks."""
_HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Surrogates, which utf-7 and unicode_escape can encode and UTF-8 cannot: lone ones become U+FFFD."""
TEXT_CHUNK = 1 << 20
"""Most characters of a chunk; a longer document comes in several."""

Row = tuple[str | None, bool]
"""A document or a chunk of one, and whether the document ends with it."""


def read_rows(file: File, config: DataConfig) -> Iterator[Row]:
    """Rows of a file of any kind, found by `find_source`.

    Raises:
        UserError: the file cannot be read or parsed; names the file and, if known, the line.
    """
    match file.kind:
        case "text":
            yield from _text_rows(file, config)
        case "python":
            yield from _python_rows(file)
        case _:
            for parts in column_rows(file, config):
                yield None if parts is None else "".join(text for text, _ in parts), True


def column_rows(file: File, config: DataConfig) -> Iterator[Parts | None]:
    """Rows of a file with columns in parts, see `Columns.parts`.

    Raises:
        UserError: as of `read_rows`.
    """
    columns = Columns.of(config)
    match file.kind:
        case "jsonl":
            yield from _json_rows(file, columns, config.encoding_errors)
        case "parquet" | "arrow":
            yield from table_rows(file, columns)
        case _:
            yield from _csv_rows(file, columns, config)


def _text_rows(file: File, config: DataConfig) -> Iterator[Row]:
    """A file is one document, or several with separators between; without its byte-order mark."""
    splitter, text = Splitter(config.document_separator), ""
    for part, final in chain(zip(_decoded(file, config.encoding_errors), repeat(False)), [("", True)]):
        for piece, ends in splitter.feed(part, final=final):
            *full_chunks, text = cut_up(text + piece, TEXT_CHUNK // 2, TEXT_CHUNK)
            for chunk in full_chunks:
                yield chunk, False
            if ends:
                yield text, True
                text = ""


def _python_rows(file: File) -> Iterator[Row]:
    try:
        with tokenize.open(file.path) as source:  # honours a source file's own encoding line
            yield source.read(), True
    except OSError as error:
        raise unreadable(file.path, error) from None
    except (SyntaxError, UnicodeDecodeError):
        return  # the encoding is broken on purpose, as in a test file of lib2to3


def _json_rows(file: File, columns: Columns, errors: str) -> Iterator[Parts | None]:
    head, parts = "", _decoded(file, errors)
    for part in parts:
        head += part
        if len(head) > TEXT_CHUNK or "\n" in head.lstrip():
            break
    rest = chain([head], parts)
    try:
        for where, row, is_escaped in by_line(_lines(file, rest)) if is_json_lines(head) else over_lines(rest):
            try:
                found = columns.parts(row)
            except NoTextError as error:
                raise UserError(f"data.source: {file.path}, {where}: {error}") from None
            if found and is_escaped:  # JSON may escape a lone surrogate, which UTF-8 cannot encode
                found = [(text.encode("utf-8", "replace").decode(), is_answer) for text, is_answer in found]
            yield found
    except NotJsonError as error:
        raise UserError(f"data.source: {file.path}, {error}") from None


def _csv_rows(file: File, columns: Columns, config: DataConfig) -> Iterator[Parts | None]:
    delimiter = csv_delimiter(file, config)
    # Strict: otherwise an unclosed quotation mark would join all later rows into one text.
    rows = csv.reader(_lines(file, _decoded(file, config.encoding_errors)), delimiter=delimiter, strict=True)

    def wrong(what: str) -> UserError:
        return UserError(f"data.source: {file.path}, line {rows.line_num}: {what}")

    try:
        names = next(rows, None)
        if names is None:
            return  # an empty file
        hint = f" (fields separated by {delimiter!r}; data.delimiter sets another)"
        i = max(map(names.index, required_columns(file, columns, names, hint, chat=False)))
        for row in rows:
            if row:
                if any(row[len(names) :]):
                    raise wrong(
                        f"{len(row)} fields, but the header has {len(names)} ({listed(names)}): quote texts with "
                        f"the delimiter {delimiter!r}, or set data.delimiter"
                    )
                if len(row) <= i:
                    raise wrong(f"no field for {names[i]!r}")
                yield columns.parts(dict(zip(names, row, strict=False)))
    except NoTextError as error:
        raise wrong(str(error)) from None
    except csv.Error as error:
        raise wrong(f"not CSV ({error})") from None


def csv_delimiter(file: File, config: DataConfig) -> str:
    """Delimiter of a CSV file: data.delimiter, or the first in DELIMITERS that yields the columns in the header.

    Not by `csv.Sniffer`: it counts characters in the rows, and prose misleads it.
    """
    if config.delimiter is not None:
        return config.delimiter_character
    csv.field_size_limit(LONGEST_ROW)
    lines = list(islice(_lines(file, _decoded(file, config.encoding_errors)), HEADING_LINES))
    headings = {character: _heading(lines, character) for character in DELIMITERS[file.kind]}
    wanted = Columns.of(config).settings.values()
    with_columns = (
        character
        for character, names in headings.items()
        if all(columns_of(column, names, chat=False) for column in wanted)
    )
    return next(with_columns, None) or max(headings, key=lambda character: len(headings[character]))


def _heading(lines: list[str], delimiter: str) -> list[str]:
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _decoded(file: File, errors: str) -> Iterator[str]:
    """A file's text in chunks, without its byte-order mark."""
    decoder = TextDecoder(file.encoding, "replace" if errors == "replace" else "strict")
    begins = True
    try:
        for number, chunk in enumerate(chain(chunks(file), [b""])):
            # Prepared text was scanned for this before, a stream was not.
            if number == 0 and chunk and (what := what_else(chunk[:HEAD], file)):
                raise UserError(f"data.source: {file.path} {what}")
            text = decoder.decode(chunk, final=not chunk)
            if _HALF_PAIR.search(text):
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            yield text.removeprefix("\ufeff") if begins else text
            begins = begins and not text
    except UnicodeError:
        raise not_in_encoding(file, decoder.bad_byte or 0) from None


def _lines(file: File, decoded: Iterable[str]) -> Iterator[str]:
    """Lines with their line breaks; only \\n is one."""
    parts: list[str] = []
    length = 0
    for text in decoded:
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
