"""CSV files with one row for each step that a run writes while it trains, and continues after a resume."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt.files import append, write_atomically, write_csv


def put_row(path: Path, columns: Sequence[str], row: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Append a row to a CSV, or fill it into the last row where that has the same step.

    A train loss reaches the disk at its step, and the validation of that step is added to it later: the file is then
    replaced as a whole, so that a kill loses neither.

    Args:
        path: the file; it gets a header if it is not there.
        columns: its columns, of which the first is the step.
        row: values by column; the others stay as they are, or empty.
        last: the last row, as this function or `keep_rows_up_to` returned it; {} if there is none.

    Returns:
        The last row now.

    Raises:
        UserError: the file cannot be written.
    """
    before = path.read_bytes().splitlines(keepends=True) if _is_same_step(last, row) and path.exists() else []
    joins = bool(before) and before[-1].startswith(f"{row['step']},".encode())
    row = last | row if joins else row
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    if not path.exists():
        writer.writeheader()
    writer.writerow(row)
    if joins:
        content = b"".join([*before[:-1], text.getvalue().encode()])
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    else:
        append(path, text.getvalue())
    return row


def _is_same_step(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one) and int(one["step"]) == other["step"]


def keep_rows_up_to(path: Path, columns: Sequence[str], step: int) -> dict[str, str]:
    """Delete the rows of a CSV after `step`: the resumed run will write them again.

    Returns:
        The last row that is kept, or {}.
    """
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # A full disk can leave an incomplete last row.
    rows = [row for row in rows if None not in row.values() and int(row["step"]) <= step]
    rows = [{column: row.get(column, "") for column in columns} for row in rows]  # earlier versions had fewer columns
    write_csv(path, columns, [list(row.values()) for row in rows])
    return rows[-1] if rows else {}
