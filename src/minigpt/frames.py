"""Tables of numbers for other programs: .csv, .json, .parquet, and pandas."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.errors import UserError
from minigpt.files import is_folder, require_writable, write_atomically, write_csv, write_text

if TYPE_CHECKING:
    from pandas import DataFrame

ENDINGS = (".csv", ".json", ".parquet")


def is_frame(path: str | Path) -> bool:
    """Whether a file name is that of a table."""
    return Path(path).suffix.lower() in ENDINGS


def require_frame(path: str | Path, first: str) -> None:
    """Check before long work that `write_frame` may write this file; parent folders are created.

    Args:
        path: of the table.
        first: name of its first column. A file that is there is replaced only if it is such a table.

    Raises:
        UserError: another ending, no pyarrow for .parquet, another file of this name, or a folder that is not writable.
    """
    path = Path(path)
    if not is_frame(path):
        raise UserError(f"{path}: name a file that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if is_folder(path):
        raise UserError(f"{path}: is a folder; name a file")
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)
    require_writable(path.parent, path.name)
    if path.exists() and _first_column(path) != first:
        raise UserError(f"{path}: is there and is not such a table; name another file, or remove it")


def write_frame(path: str | Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table in the form that the file name ends in; None and NaN are missing values.

    .csv leaves them empty. .json is a list of objects, one a row, with null for them. .parquet has a type for each
    column, so a column has values of one type.

    Args:
        path: ends in .csv, .json or .parquet.
        columns: names.
        rows: one value per column.

    Raises:
        UserError: another ending, no pyarrow for .parquet, or the file cannot be written.
    """
    require_frame(path, columns[0])
    path, rows = Path(path), [[_known(value) for value in row] for row in rows]
    columns = [_well_formed(name) for name in columns]
    if path.suffix.lower() == ".csv":
        write_csv(path, columns, rows)
    elif path.suffix.lower() == ".json":
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        write_text(path, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    else:
        arrow, parquet = _pyarrow(path)
        values = zip(*rows, strict=True) if rows else ([] for _ in columns)
        table = arrow.table(dict(zip(columns, map(list, values), strict=True)))
        write_atomically(path, lambda temporary: parquet.write_table(table, temporary))


def to_pandas(columns: Sequence[str], rows: Sequence[Sequence[object]], what: str) -> DataFrame:
    """The same table as a pandas DataFrame.

    Raises:
        UserError: pandas is not installed; names `what` needs it.
    """
    frame: DataFrame = pandas_for(what).DataFrame([list(row) for row in rows], columns=list(columns))
    return frame


def pandas_for(what: str) -> Any:
    """The module pandas, which is not a requirement of minigpt.

    Raises:
        UserError: it is not installed; names `what` needs it.
    """
    try:
        import pandas
    except ImportError:
        raise UserError(f"{what} needs pandas: pip install pandas") from None
    return pandas


def _first_column(path: Path) -> str | None:
    """Name of the first column of a table; None for other files."""
    if path.suffix.lower() == ".parquet":
        try:
            return str(_pyarrow(path)[1].read_schema(path).names[0])
        except (OSError, ValueError, IndexError):  # pyarrow's own errors are of these kinds
            return None
    with path.open("rb") as file:
        start = file.read(4096).decode(errors="replace")
    found = re.match(r'\[\s*\{\s*"([^"]*)"' if path.suffix.lower() == ".json" else r"([^,\n\r]*)", start)
    return found[1] if found else None


def _known(value: object) -> object:
    if isinstance(value, str):
        return _well_formed(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _well_formed(text: str) -> str:
    """Text that UTF-8 can hold: names of files and of relations may have lone surrogates."""
    return text.encode("utf-8", errors="replace").decode()


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install pyarrow; or name a .csv or .json file") from None
    return pyarrow, pyarrow.parquet
