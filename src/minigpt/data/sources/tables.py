"""A Parquet or Arrow file -> the texts of its rows, in bounded memory even for hostile files.

Unlike the readers of `datasets`, these check sizes before they unpack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minigpt.data.sources.chat import Parts
from minigpt.data.sources.columns import Columns, NoTextError, columns_of
from minigpt.data.sources.names import File
from minigpt.data.sources.scan import ALWAYS_ALLOWED, MOST_EXPANSION
from minigpt.errors import UserError
from minigpt.files import listed

ROWS = 1000
"""Most rows of a batch."""
LONGEST_ROW = 256 << 20
"""Most characters of a row; a longer one is refused, as rows are held in memory."""
MOST_AT_ONCE = 64 << 20
"""Most bytes of rows unpacked together; a larger batch is unpacked row by row."""
ALWAYS_UNPACKED = 1 << 30
"""Characters that even the smallest file may unpack to: rows that share dictionary entries compress very well."""


def table_rows(file: File, columns: Columns) -> Iterator[Parts | None]:
    """Rows of a Parquet or Arrow file; a dictionary entry is held once, even if many rows share it.

    Raises:
        UserError: the column is missing or not text; the file is damaged, or unpacks to far more than its length.
    """
    import pyarrow as pa

    most = max(ALWAYS_UNPACKED, MOST_EXPANSION * file.path.stat().st_size)
    n_characters = 0
    try:
        for batch in _parquet_batches(file, columns) if file.kind == "parquet" else _arrow_batches(file, columns):
            step = 1 if batch.nbytes > MOST_AT_ONCE else max(1, len(batch))
            for start in range(0, len(batch), step):
                for parts in _rows(file, batch[start : start + step], columns):
                    length = sum(len(text) for text, _ in parts or ())
                    if length > LONGEST_ROW:
                        raise UserError(
                            f"data.source: {file.path} has a row of more than {LONGEST_ROW >> 20} MB: is it text?"
                        )
                    n_characters += length
                    if n_characters > most:
                        raise UserError(f"data.source: {file.path} unpacks to far more than its length; is it text?")
                    yield parts
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data.source: {file.path} is damaged or not {file.kind.title()} ({reason})") from None


def _rows(file: File, rows: Any, columns: Columns) -> Iterator[Parts | None]:
    """The rows of an Arrow array of texts, or of a batch of several or nested columns."""
    import pyarrow as pa

    if isinstance(rows, pa.RecordBatch):
        for row in rows.to_pylist():
            try:
                yield columns.parts(row)
            except NoTextError as error:
                raise UserError(f"data.source: {file.path}: {error}") from None
        return
    if not pa.types.is_dictionary(rows.type):
        texts = rows.to_pylist()
    else:
        places = rows.indices.to_pylist()
        used = list({place for place in places if place is not None})
        entries = dict(zip(used, rows.dictionary.take(pa.array(used, pa.int64())).to_pylist(), strict=True))
        texts = [None if place is None else entries[place] for place in places]
    yield from (None if text is None else [(text, False)] for text in texts)


def _parquet_batches(file: File, wanted: Columns) -> Iterator[Any]:
    """Arrow arrays, or batches of several columns, of few enough rows to fit into memory when unpacked."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path, memory_map=True) as table:
        if not table.metadata.num_rows:
            return  # an empty shard; its columns often have no type
        columns = _columns(file, wanted, table.schema_arrow)
        longest = 1
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            for part in map(group.column, range(group.num_columns)):
                if part.path_in_schema.split(".")[0] in {name.split(".")[0] for name in columns} and group.num_rows:
                    longest = max(longest, _longest_value(file, columns, number, group.num_rows, part))
        for batch in table.iter_batches(max(1, min(ROWS, MOST_AT_ONCE // longest)), columns=columns):
            yield batch.column(0) if _is_one_text(wanted, batch.schema) else batch


def _longest_value(file: File, columns: list[str], group: int, n_rows: int, part: Any) -> int:
    """Estimated bytes of an unpacked row in one column chunk of a Parquet file: the mean, or the most if skewed."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    size = part.total_uncompressed_size
    if size > max(ALWAYS_ALLOWED, MOST_EXPANSION * part.total_compressed_size):
        raise UserError(f"data.source: {file.path} unpacks to far more than its length; it is not read")
    if "DELTA_BYTE_ARRAY" in part.encodings:
        return size  # a value may share its prefix with the one before, so all may be long
    if not part.has_dictionary_page:
        return size // max(1, n_rows)
    if part.path_in_schema not in columns:
        return size  # nested, so the dictionary alone cannot be read
    # All rows may refer to one long entry. Reading one row gives the whole dictionary, so check its longest entry.
    with pq.ParquetFile(file.path, memory_map=True, read_dictionary=[part.path_in_schema]) as table:
        first = next(table.iter_batches(1, row_groups=[group], columns=[part.path_in_schema])).column(0)
    if not hasattr(first, "dictionary"):
        return size  # no text, such as a number
    return max(size // max(1, n_rows), pc.max(pc.binary_length(first.dictionary)).as_py() or 0)


def _arrow_batches(file: File, wanted: Columns) -> Iterator[Any]:
    """Arrow arrays of an IPC file or, as `datasets` stores them, an IPC stream, memory-mapped."""
    import pyarrow as pa

    with pa.memory_map(str(file.path)) as source:
        reader = _open_arrow(source)
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            if not len(batch):
                continue
            columns = _columns(file, wanted, reader.schema)
            rows, is_view = (
                batch.select(columns),
                any("view" in str(reader.schema.field(name).type) for name in columns),
            )
            if _is_one_text(wanted, rows.schema):
                rows = rows.column(0)
            # Views can share one text like dictionary entries, but their unpacked size is unknown: take rows one by
            # one.
            step = 1 if is_view else len(rows)
            for first in range(0, len(rows), step or 1):
                some = rows[first : first + step]
                some.validate(full=True)  # Arrow does not check offsets: a damaged file would crash the process
                for start in range(0, step, ROWS):
                    yield some[start : start + ROWS]


def _open_arrow(source: Any) -> Any:
    import pyarrow as pa

    is_stream = source.read(6) != b"ARROW1"
    source.seek(0)
    return pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)


def list_columns(file: File) -> dict[str, bool]:
    """Columns of a Parquet or Arrow file, each with whether it holds lists; none if the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.kind == "parquet":
            schema = pq.read_schema(file.path, memory_map=True)
        else:
            with pa.memory_map(str(file.path)) as source:
                schema = _open_arrow(source).schema
    except (pa.ArrowException, OSError):
        return {}
    return {field.name: pa.types.is_list(field.type) for field in schema}


def _columns(file: File, wanted: Columns, schema: Any) -> list[str]:
    """The columns that the settings need."""
    import pyarrow as pa

    columns = required_columns(file, wanted, schema.names)
    for column in {*wanted.settings.values()} & {*columns}:
        kind = schema.types[schema.names.index(column)]
        if not _is_text(kind) and not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
            raise UserError(f"data.source: {file.path}: the column {column!r} holds {kind}, not text")
    return columns


def _is_one_text(wanted: Columns, schema: Any) -> bool:
    """Whether a batch has nothing but the column of texts."""
    return wanted.answer is None and schema.names == [wanted.text] and _is_text(schema.types[0])


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_text(held) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def required_columns(
    file: File, wanted: Columns, names: Sequence[str], hint: str = "", *, chat: bool = True
) -> list[str]:
    """The columns of a table that the settings need, in the order of `names`; see `columns_of`.

    Raises:
        UserError: one is missing, or there are several of its name; says which columns exist.
    """
    found = list[str]()
    for setting, column in wanted.settings.items():
        for name in columns_of(column, names, chat=chat) or [column]:
            if list(names).count(name) > 1:
                raise UserError(f"data.source: {file.path} has several columns {name!r}: rename one")
            if name not in names:
                raise UserError(
                    f"data.source: {file.path} has no column {name!r}; give one of these as {setting}: "
                    f"{listed(names)}{hint}"
                )
            found.append(name)
    return [name for name in names if name in found]
