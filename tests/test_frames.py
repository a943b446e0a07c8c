"""Tables for other programs: the same numbers in each form, missing values as such, one line for what cannot be."""

import csv
import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from minigpt.errors import UserError
from minigpt.frames import require_frame, to_pandas, write_frame

COLUMNS, ROWS = ["head", "label", "score"], [["1.0", "induction", 0.5], ["1.1", None, math.nan]]


def test_each_form_has_the_same_values_and_missing_ones_are_missing(tmp_path: Path) -> None:
    for ending in (".csv", ".json", ".parquet", ".CSV"):
        write_frame(tmp_path / "new" / f"a{ending}", COLUMNS, ROWS)
    with (tmp_path / "new" / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [COLUMNS, ["1.0", "induction", "0.5"], ["1.1", "", ""]]
    expected = [dict(zip(COLUMNS, row, strict=True)) for row in (ROWS[0], ["1.1", None, None])]
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == expected
    assert pq.read_table(tmp_path / "new" / "a.parquet").to_pylist() == expected
    frame = to_pandas(COLUMNS, ROWS, "a test")
    assert list(frame["head"]) == ["1.0", "1.1"]
    assert frame["score"].isna().tolist() == [False, True]


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    write_frame(tmp_path / "a.parquet", COLUMNS, [])
    assert pq.read_table(tmp_path / "a.parquet").column_names == COLUMNS


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.xlsx", "name a file that ends in .csv, .json or .parquet"), ("folder.csv", "is a folder; name a file")],
)
def test_a_file_that_is_no_table_is_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=words):
        write_frame(tmp_path / name, COLUMNS, ROWS)


def test_a_missing_library_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="a test needs pandas: pip install pandas"):
        to_pandas(COLUMNS, ROWS, "a test")
    with pytest.raises(UserError, match="Parquet needs pyarrow"):
        write_frame(tmp_path / "a.parquet", COLUMNS, ROWS)
    write_frame(tmp_path / "a.csv", COLUMNS, ROWS)


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_a_name_that_is_too_long_is_refused_before_the_work(ending: str, tmp_path: Path) -> None:
    for name in ("n" * 300, "n" * 240):  # the second is too long for the temporary file beside it
        with pytest.raises(UserError, match="cannot be written"):
            require_frame(tmp_path / f"{name}{ending}", "head")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_only_such_a_table_is_replaced(ending: str, tmp_path: Path) -> None:
    table, other = tmp_path / f"a{ending}", tmp_path / f"mine{ending}"
    for _ in range(2):
        write_frame(table, COLUMNS, ROWS)
    with pytest.raises(UserError, match="is there and is not such a table"):
        write_frame(table, ["layer", *COLUMNS], [])
    for content in (b"", b"step,loss\n1,2\n", b'{"head": 1}', b"\xff\xfehead"):
        other.write_bytes(content)
        with pytest.raises(UserError, match="is there and is not such a table; name another file, or remove it"):
            require_frame(other, "head")
        assert other.read_bytes() == content
