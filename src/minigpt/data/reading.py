"""A source -> its documents, one after another, long ones in pieces: text of any length in bounded memory.

`datasets` does the reading. Files reach it through the generator here, since its own readers turn \\r\\n into \\n, hold
a whole file as one string, guess types, name no line of an error, and unpack whatever a hostile table says.
"""

from __future__ import annotations

import codecs
import csv
import json
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from minigpt.config import DataConfig, UserError
from minigpt.data.relations import Relation
from minigpt.data.scan import ALWAYS_ALLOWED, MOST_EXPANSION, Scans, chunks
from minigpt.data.sources import SYNTHETIC_DOCUMENTS, File, Source
from minigpt.data.synthetic import SYNTHETIC

PIECE = 1 << 20
"""Characters from which on a document is handed on in pieces."""
ROWS = 1000
"""Rows that are handed on together at most."""
MOST_AT_ONCE = 64 << 20
"""Bytes of a table's rows that are unpacked together, if they are more than one."""
ALWAYS_UNPACKED = 1 << 30
"""Characters that a table of any length may hold: where rows share entries of a dictionary, it may be very short."""
LONGEST_LINE = 256 << 20
"""Bytes of a line of JSON or CSV beyond which it is refused: it has to be held whole."""


class Piece(NamedTuple):
    """A document, or a part of a long one: parts follow one another, and the last one ends it."""

    text: str
    ends: bool = True
    relations: Sequence[Relation] = ()


def read(source: Source, config: DataConfig) -> Iterator[Piece]:
    """Every document of a source that is more than white space.

    Raises:
        UserError: a file cannot be read or understood; named, with the place where that is known.
    """
    if source.synthetic is not None:
        n_documents = config.max_documents or SYNTHETIC_DOCUMENTS
        documents = SYNTHETIC[source.synthetic](source.seed)
        for (text, relations), _ in zip(documents, range(n_documents), strict=False):
            yield Piece(text, True, relations)
        return
    if source.name == "python_stdlib":
        groups = _groups(source.files, config.text_column, config.encoding_errors)  # needs no package
    else:
        groups = _dataset_groups(source, config)
    begins = True
    for group in groups:
        for text, ends in zip(group["text"], group["ends"], strict=True):
            if text is None or (begins and ends and (not text or text.isspace())):
                continue
            *parts, last = _parts(text)
            for part in parts:
                yield Piece(part, False)
            yield Piece(last, ends)
            begins = ends


def refuse_broken_text(source: Source, scans: Scans, config: DataConfig) -> tuple[Source, list[str]]:
    """The source without the files that data.encoding_errors=skip leaves out, and their names.

    Raises:
        UserError: a file is not UTF-8 and the policy is `error`, or no text is left.
    """
    found = scans.of(source.files)
    if source.files and not sum(scan.n_bytes for scan in found):
        raise UserError(f"data.source={source.name}: no text in it, all files are empty")
    broken = [(f, scan.bad_byte) for f, scan in zip(source.files, found, strict=True) if scan.bad_byte is not None]
    if broken and config.encoding_errors == "error":
        file, place = broken[0]
        raise UserError(
            f"data.source: {file.path} is not UTF-8 text (byte {place}{_hint(file)}); convert it, for example with "
            "iconv -t utf-8, or set data.encoding_errors to replace or skip"
        )
    if config.encoding_errors != "skip" or not broken:
        return source, []
    left = tuple(file for file in source.files if file not in {f for f, _ in broken})
    if not left:
        raise UserError(f"data.source={source.name}: no file of it is UTF-8 text, so skipping them leaves nothing")
    return Source(source.name, left), [str(file.path) for file, _ in broken]


def _hint(file: File) -> str:
    start = next(iter(chunks(file)))[:2]
    return ", it looks like UTF-16" if start in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE} else ""


Group = dict[str, list[Any]]
"""Some rows as columns: text, and ends, as of a Piece. `datasets` takes many small rows slowly one by one."""


def _dataset_groups(source: Source, config: DataConfig) -> Iterator[Group]:
    """Rows through `datasets`."""
    kept = {"files": list(source.files), "column": config.text_column, "errors": config.encoding_errors}
    yield from _import_datasets(config).IterableDataset.from_generator(_groups, gen_kwargs=kept)


def open_stream(source: Source, config: DataConfig) -> Any:
    """A source's whole documents as an IterableDataset, whose state says where it stands.

    Rows are of several texts: {"text": [...], "ends": [True, ...]}.

    Raises:
        UserError: the source cannot be streamed.
    """
    if source.synthetic is not None:
        raise UserError(f"data.source={source.name}: is made here and needs no data.streaming")
    kept = {"files": list(source.files), "column": config.text_column, "errors": config.encoding_errors, "whole": True}
    return _import_datasets(config).IterableDataset.from_generator(_groups, gen_kwargs=kept)


def _import_datasets(config: DataConfig) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "data.source: reading files and datasets needs the package 'datasets': pip install datasets"
        ) from None
    datasets.disable_progress_bars()
    # It makes this folder though nothing is kept in it, by default in a home that perhaps cannot be written.
    datasets.config.HF_DATASETS_CACHE = Path(config.dir, "huggingface")
    return datasets


def _groups(files: Sequence[File], column: str, errors: str, whole: bool = False) -> Iterator[Group]:
    """Rows of files of any kind; on demand with the pieces of a long document joined."""
    texts: list[str | None] = []
    ends: list[bool] = []
    size = 0
    rows = _rows(files, column, errors)
    for text, end in _joined(rows) if whole else rows:
        texts.append(text)
        ends.append(end)
        size += len(text or "")
        if size >= PIECE or len(texts) == ROWS:
            yield {"text": texts, "ends": ends}
            texts, ends, size = [], [], 0
    if texts:
        yield {"text": texts, "ends": ends}


Row = tuple[str | None, bool]


def _rows(files: Sequence[File], column: str, errors: str) -> Iterator[Row]:
    for file in files:
        match file.kind:
            case "text":
                yield from _text_rows(file, errors)
            case "python":
                yield from _python_rows(file)
            case "jsonl":
                yield from _json_rows(file, column, errors)
            case "parquet" | "arrow":
                yield from _table_rows(file, column)
            case _:
                yield from _csv_rows(file, column, errors)


def _joined(rows: Iterable[Row]) -> Iterator[Row]:
    parts: list[str] = []
    for text, ends in rows:
        parts.append(text or "")
        if ends:
            yield "".join(parts), True
            parts = []


def _text_rows(file: File, errors: str) -> Iterator[Row]:
    """A file is one document; a mark of byte order at its start is no part of it."""
    text = ""
    for part in _decoded(file, errors):
        text += part
        while len(text) > PIECE:
            cut = certain_cut(text, PIECE)
            yield text[:cut], False
            text = text[cut:]
    yield text, True


def _python_rows(file: File) -> Iterator[Row]:
    try:
        with tokenize.open(file.path) as source:  # honours a source file's own encoding line
            yield source.read(), True
    except OSError as error:
        raise UserError(f"data.source: {file.path}: {(error.strerror or str(error)).lower()}") from None
    except (SyntaxError, UnicodeDecodeError):
        return  # a file with a broken encoding on purpose, as lib2to3 has in some versions


def _json_rows(file: File, column: str, errors: str) -> Iterator[Row]:
    def wrong(number: int, what: str) -> UserError:
        return UserError(f"data.source: {file.path}, line {number}: {what}")

    for number, line in enumerate(_lines(file, errors), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            array = number == 1 and line.lstrip().startswith("[")
            hint = "; an array is made into lines with: jq -c '.[]'" if array else f" ({error})"
            raise wrong(number, f"not JSON; JSON Lines has one object in each line{hint}") from None
        if not isinstance(row, dict):
            raise wrong(number, f"not an object; JSON Lines has one object in each line, with a key {column!r}")
        if column not in row:
            raise wrong(number, f"no key {column!r}; it has {_listed(list(row))}: give one as data.text_column")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise wrong(number, f"{column} is {type(text).__name__}, not text")
        if text and "\\u" in line:  # JSON may spell half a surrogate pair, which is no character
            text = text.encode("utf-8", "replace").decode()
        yield text, True


def _csv_rows(file: File, column: str, errors: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    # Strict: else a quotation mark that nothing closes makes one text of all rows behind it.
    rows = csv.reader(_lines(file, errors), delimiter="\t" if file.kind == "tsv" else ",", strict=True)
    try:
        names = next(rows, [])
        _require_column(file, column, names)
        i = names.index(column)
        for row in rows:
            if row:
                if len(row) <= i:
                    raise UserError(f"data.source: {file.path}, line {rows.line_num}: no field for {column!r}")
                yield row[i], True
    except csv.Error as error:
        raise UserError(f"data.source: {file.path}, line {rows.line_num}: not CSV ({error})") from None


def _table_rows(file: File, column: str) -> Iterator[Row]:
    """Rows of a Parquet or Arrow file, whose entries of a dictionary are held once, however many rows point at them."""
    import pyarrow as pa

    most = max(ALWAYS_UNPACKED, MOST_EXPANSION * file.path.stat().st_size)
    n_characters = 0
    try:
        for batch in _parquet_batches(file, column) if file.kind == "parquet" else _arrow_batches(file, column):
            step = 1 if batch.nbytes > MOST_AT_ONCE else max(1, len(batch))
            for start in range(0, len(batch), step):
                for text in _texts(batch[start : start + step]):
                    if len(text or "") > LONGEST_LINE:
                        raise UserError(
                            f"data.source: {file.path} has a row of more than {LONGEST_LINE >> 20} MB: is it text?"
                        )
                    n_characters += len(text or "")
                    if n_characters > most:
                        raise UserError(f"data.source: {file.path} unpacks to far more than its length; is it text?")
                    yield text, True
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data.source: {file.path} is damaged or not {file.kind.title()} ({reason})") from None


def _texts(column: Any) -> list[str | None]:
    """An Arrow array as Python strings."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    places = column.indices.to_pylist()
    used = list({place for place in places if place is not None})
    entries = dict(zip(used, column.dictionary.take(pa.array(used, pa.int64())).to_pylist(), strict=True))
    return [None if place is None else entries[place] for place in places]


def _parquet_batches(file: File, column: str) -> Iterator[Any]:
    """Arrow arrays of so few rows that they fit into memory, whatever they unpack to."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path, memory_map=True) as table:
        _require_text(file, column, table.schema_arrow)
        longest = 1
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            for part in map(group.column, range(group.num_columns)):
                if part.path_in_schema == column:
                    longest = max(longest, _longest_value(file, column, number, group.num_rows, part))
        for batch in table.iter_batches(max(1, min(ROWS, MOST_AT_ONCE // longest)), columns=[column]):
            yield batch.column(0)


def _longest_value(file: File, column: str, group: int, n_rows: int, part: Any) -> int:
    """Bytes that a row of one part of a Parquet column may unpack to, on average or at most."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    size = part.total_uncompressed_size
    if size > max(ALWAYS_ALLOWED, MOST_EXPANSION * part.total_compressed_size):
        raise UserError(f"data.source: {file.path} unpacks to far more than its length; it is not read")
    if "DELTA_BYTE_ARRAY" in part.encodings:
        return size  # each value may repeat the one before
    if not part.has_dictionary_page:
        return size // max(1, n_rows)
    # All rows may point at one entry. The dictionary comes with the first row, so it is known before it is unpacked.
    with pq.ParquetFile(file.path, memory_map=True, read_dictionary=[column]) as table:
        first = next(table.iter_batches(1, row_groups=[group], columns=[column])).column(0)
    return max(size // max(1, n_rows), pc.max(pc.binary_length(first.dictionary)).as_py() or 0)


def _arrow_batches(file: File, column: str) -> Iterator[Any]:
    """Arrow arrays of an IPC file or, as `datasets` keeps them, of a stream; their bytes stay on disk until read."""
    import pyarrow as pa

    with pa.memory_map(str(file.path)) as source:
        is_stream = source.read(6) != b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
        _require_text(file, column, reader.schema)
        place = reader.schema.names.index(column)
        batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            rows = batch.column(place)
            # Views of one text are as good as entries of a dictionary, but nothing counts what they unpack to.
            step = 1 if pa.types.is_string_view(rows.type) else len(rows)
            for first in range(0, len(rows), step or 1):
                some = rows[first : first + step]
                some.validate(full=True)  # Arrow takes what a file says on trust: damage would end the process
                for start in range(0, step, ROWS):
                    yield some[start : start + ROWS]


def _require_text(file: File, column: str, schema: Any) -> None:
    import pyarrow as pa

    _require_column(file, column, schema.names)
    kind = schema.types[schema.names.index(column)]
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(held) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise UserError(f"data.source: {file.path}: the column {column} holds {kind}, not text")


def _require_column(file: File, column: str, names: Sequence[str]) -> None:
    if column not in names:
        raise UserError(
            f"data.source: {file.path} has no column {column!r}; give one of these as data.text_column: "
            f"{_listed(names)}"
        )


def _listed(names: Sequence[str]) -> str:
    """Names on one line; a table without a heading has a text in its place."""
    return shorten(", ".join(names), 300, placeholder=" …") or "none"


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
        if length > LONGEST_LINE:
            raise UserError(f"data.source: {file.path} has a line of more than {LONGEST_LINE >> 20} MB: is it text?")
    if length:
        yield "".join(parts)


def _parts(text: str) -> Iterator[str]:
    """A long row in parts: what trains a BPE takes hundreds of times the length of what it is given at once."""
    start = 0
    while len(text) - start > PIECE:
        cut = certain_cut(text[start : start + PIECE + 2], PIECE)  # which looks at two characters behind a cut
        yield text[start : start + cut]
        start += cut
    yield text[start:]


def certain_cut(text: str, limit: int) -> int:
    """The last place up to `limit` where every tokenizer's split pattern cuts too, so that pieces give the same tokens.

    After a line's end that has something before it and a letter behind it; else between a word and the space before
    the next; else, where text has neither, at the limit.
    """
    for mark, offset in (("\n", 1), (" ", 0)):
        at = limit
        while (at := text.rfind(mark, limit // 2, at)) > 0:
            before = text[at - 1]
            certain = not before.isspace() if mark == "\n" else before.isalpha()
            if certain and text[at + 1 : at + 2].isalpha():
                return at + offset
    return limit
