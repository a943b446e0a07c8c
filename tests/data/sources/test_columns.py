"""Text of a row: paths, templates, conversations; JSON in all its forms; the same from tables."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt.config import DataConfig
from minigpt.data.sources.names import File
from minigpt.data.sources.rows import read_rows
from minigpt.errors import UserError

ROWS = [
    {"title": "One", "meta": {"body": "first"}, "n": 1},
    {"title": "Two", "meta": {"body": "sec\nond"}, "n": 2},
]
CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}]}


def texts(path: Path, kind: str, **settings: object) -> list[str | None]:
    config = DataConfig(**settings)  # type: ignore[arg-type]
    return [text for text, _ in read_rows(File(path, kind), config)]


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)),
        "\n\n".join(json.dumps(row, indent=2) for row in ROWS),
    ],
    ids=["compact array", "pretty array", "lines", "pretty objects"],
)
def test_every_form_of_json_gives_the_same_texts(written: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(written)
    assert texts(path, "jsonl", text_column="meta.body") == ["first", "sec\nond"]
    assert texts(path, "jsonl", text_column=r"{n}. {title}\n{meta.body}") == ["1. One\nfirst", "2. Two\nsec\nond"]


def test_a_long_array_is_read_across_chunks(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.json", [{"text": f"{i} " * (i % 900)} for i in range(4000)]
    path.write_text(json.dumps(rows))
    assert texts(path, "jsonl") == [row["text"] for row in rows]


def test_a_template_and_a_conversation_are_read_from_parquet_and_csv(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", "parquet", text_column="{title}: {meta.body}")[0] == "One: first"
    pq.write_table(pa.Table.from_pylist([CHAT]), tmp_path / "c.parquet")
    assert texts(tmp_path / "c.parquet", "parquet") == ["user: Hi?\nassistant: Ho.\n"]
    (tmp_path / "a.csv").write_text("title;body\nOne;first\n")
    assert texts(tmp_path / "a.csv", "csv", text_column="{title}: {body}") == ["One: first"]


def test_a_conversation_is_read_where_there_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(CHAT))
    assert texts(path, "jsonl") == ["user: Hi?\nassistant: Ho.\n"]


def test_a_wrong_path_is_refused_with_the_keys_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match=r"object 1: no key 'text' in 'meta.text'; it has 'body'"):
        texts(path, "jsonl", text_column="meta.text")
