"""Relations of one's own from a table: CSV, Parquet or JSON Lines with the same columns, and errors with their row."""

import csv
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt.data.relations import COLUMNS, Relation, read_relations
from minigpt.errors import UserError

ANN, ZOE = "Ann is 7; she rests.", 'Zoë, "the cat"\nsings. She is fine.'
ROWS: list[list[Any]] = [
    [ANN, "pronoun", 10, 13, 0, 3],
    [ZOE, "verb", 22, 24, 15, 20],
    [ZOE, "pronoun", 22, 25, 0, 3],
    [ANN, "pronoun", 10, 13, 0, 3],
]
EXPECTED = [
    (ANN, [Relation("pronoun", (10, 13), (0, 3))]),
    (ZOE, [Relation("verb", (22, 24), (15, 20)), Relation("pronoun", (22, 25), (0, 3))]),
    (ANN, [Relation("pronoun", (10, 13), (0, 3))]),
]


def write(path: Path, rows: list[list[Any]], columns: tuple[str, ...] = COLUMNS) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([columns, *rows])
    return path


each_ending = pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".jsonl"])


@each_ending
def test_rows_of_one_text_are_one_example_whatever_the_form_and_the_order_of_columns(
    ending: str, tmp_path: Path
) -> None:
    assert list(read_relations(write(tmp_path / f"a{ending}", ROWS))) == EXPECTED
    turned = [["more", *reversed(row)] for row in ROWS]
    names = ("note", *reversed(COLUMNS))
    assert list(read_relations(write(tmp_path / f"b{ending}", turned, names))) == EXPECTED


@each_ending
@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (2, 40, r"source \[40, 13\] must be \[start, stop\] with 0 <= start < stop <= 20"),
        (4, 11, r"target \[11, 3\]"),
        (5, 12, r"target \[0, 12\] must end before source"),
    ],
)
def test_a_row_that_is_no_relation_is_named(ending: str, place: int, value: int, words: str, tmp_path: Path) -> None:
    wrong = [*ROWS[0][:place], value, *ROWS[0][place + 1 :]]
    path = write(tmp_path / f"a{ending}", [*ROWS[1:3], wrong])
    row = {".csv": "row 4", ".tsv": "row 4", ".parquet": "row 3", ".jsonl": "line 5"}[ending]
    with pytest.raises(UserError, match=rf"a{ending}, {row}: {words}"):
        list(read_relations(path))


def test_a_value_that_is_no_number_a_missing_column_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    wrong = write(tmp_path / "a.csv", [[ANN, "pronoun", "ten", 13, 0, 3]])
    with pytest.raises(UserError, match=r'a.csv, row 2: source \["ten", 13\] must be two whole numbers'):
        list(read_relations(wrong))
    for ending in (".csv", ".parquet"):
        short = write(tmp_path / f"b{ending}", [ROWS[0][:5]], COLUMNS[:5])
        with pytest.raises(UserError, match=rf"b{ending}: has no column 'target_stop'; it has 'text', 'name'"):
            list(read_relations(short))
    for name in ("c.parquet", "c.csv"):
        (tmp_path / name).write_bytes(b"PAR1\xff\xfe,\n")
        with pytest.raises(UserError, match=rf"{name}: (is damaged or not Parquet|not UTF-8 text at byte 4)"):
            list(read_relations(tmp_path / name))
        with pytest.raises(UserError, match=rf"none.{name}: cannot be read \(no such file"):
            list(read_relations(tmp_path / f"none.{name}"))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="empty.csv: has no column"):
        list(read_relations(tmp_path / "empty.csv"))


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, ANN.encode()), (1, datetime.datetime(2026, 1, 1)), (2, decimal.Decimal(10)), (3, b"\x00"), (1, {"a": b"x"})],
)
def test_a_parquet_column_of_another_type_is_named(place: int, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [[*ROWS[0][:place], value, *ROWS[0][place + 1 :]]])
    with pytest.raises(UserError, match=r"a.parquet, row 1: (needs|source)"):
        list(read_relations(path))
