"""Reading: every kind of file gives its very text, broken ones one line, and no file more memory than is credible."""

import csv
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt.config import DataConfig
from minigpt.data.sources import reading, rows, tables
from minigpt.data.sources.names import find_source
from minigpt.data.sources.reading import read, reading_notes, refuse_broken_text
from minigpt.data.sources.rows import TEXT_CHUNK
from minigpt.data.sources.scan import CHUNK, Scans
from minigpt.errors import UserError

ODD = [
    "windows\r\nlines\r\n",
    "old mac\rlines",
    "no newline at the end",
    "zero\0byte",
    "naïve 🙂 \U0001f469\u200d\U0001f4bb",
    "line\u2028separator\u2029paragraph\x85next\x0bline\x0cfeed\x1cfile",
    ' "quotes", commas,\ttabs and\nnew lines \n\n',
    "NA",
    "null",
    "007",
    "1e3",
    "True",
    "\ufeffa mark inside",
    "<|endoftext|>",
]
"""Texts that careless readers change."""


def documents(path: Path, **settings: object) -> list[str]:
    """The documents of one source, as `prepare` reads them."""
    config = DataConfig(source=str(path), **settings)  # type: ignore[arg-type]
    found = find_source(str(path), path.parent / "cache", config.codec)
    source, _ = refuse_broken_text(found, Scans(path.parent / ".memory"), config)
    texts = [""]
    for chunk in read(source, config):
        texts[-1] += chunk.text
        if chunk.ends:
            texts.append("")
    assert texts.pop() == ""
    return texts


def notes(path: Path, **settings: object) -> list[str]:
    """What is told of how a source is read."""
    config = DataConfig(source=str(path), **settings)  # type: ignore[arg-type]
    scans = Scans(path.parent / ".memory")
    source, _ = refuse_broken_text(find_source(str(path), path.parent / "cache", config.codec), scans, config)
    return list(reading_notes(source, config, scans))


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        documents(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 1000
    return message


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_jsonl(path: Path, texts: list[str], column: str) -> None:
    put(path, "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)))


def write_csv(path: Path, texts: list[str], column: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",")
        rows.writerows([["id", column], *enumerate(texts)])


def table(texts: list[str], column: str) -> pa.Table:
    return pa.table({"id": range(len(texts)), column: texts})


def write_arrow(path: Path, texts: list[str], column: str) -> None:
    content = table(texts, column)
    with pa.ipc.new_file(path, content.schema) as file:
        file.write_table(content, max_chunksize=5)


def write_arrow_stream(path: Path, texts: list[str], column: str) -> None:
    content = table(texts, column)
    with pa.ipc.new_stream(path, content.schema) as file:
        file.write_table(content, max_chunksize=5)


def write_gz(path: Path, texts: list[str], column: str) -> None:
    write_jsonl(path, texts, column)
    put(path, gzip.compress(path.read_bytes()))


WRITERS: dict[str, Callable[[Path, list[str], str], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.ndjson": write_jsonl,
    "rows.json": write_jsonl,
    "rows.jsonl.gz": write_gz,
    "rows.csv": write_csv,
    "rows.tsv": write_csv,
    "rows.parquet": lambda path, texts, column: pq.write_table(table(texts, column), path, row_group_size=5),
    "rows.arrow": write_arrow,
    "stream.arrow": write_arrow_stream,
    "saved": lambda path, texts, column: datasets.Dataset(table(texts, column)).save_to_disk(path, num_shards=2),
}
each_table = pytest.mark.parametrize("name", WRITERS)


@each_table
def test_every_row_of_a_table_is_its_very_text(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    WRITERS[name](tmp_path / name, ODD, "text")
    capfd.readouterr()
    assert documents(tmp_path / name) == ODD
    assert capfd.readouterr() == ("", "")


@each_table
def test_the_column_of_a_table_may_have_another_name(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ODD, "a.story")
    assert documents(tmp_path / name, text_column="a.story") == ODD


@each_table
def test_a_missing_column_is_refused_with_those_there(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ODD, "story")
    with pytest.raises(UserError, match=r"'text'.* 'id', 'story'") as caught:
        documents(tmp_path / name)
    assert "data.text_column" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a[1]*.parquet", "ü b#c.parquet", "e{1,2}.parquet", "x::y.arrow"])
def test_a_table_with_any_name_is_itself(name: str, tmp_path: Path) -> None:
    put(tmp_path / "a1x.parquet", "not meant")
    WRITERS[f"rows{Path(name).suffix}"](tmp_path / name, ["one"], "text")
    assert documents(tmp_path / name) == ["one"]


def test_rows_without_text_are_no_documents(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": null}\n\n{"text": ""}\n{"text": " \\n"}\n{"text": "one"}\n   \n')
    assert documents(path) == ["one"]
    pq.write_table(pa.table({"text": [None, "", "one", " "]}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == ["one"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_text_in_any_of_arrows_types_is_text(kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array([*ODD, None, *ODD])
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    content = pa.table({"text": column})
    with pa.ipc.new_file(tmp_path / "a.arrow", content.schema) as file:
        file.write_table(content)
    pq.write_table(content, tmp_path / "a.parquet")
    assert documents(tmp_path / "a.arrow") == documents(tmp_path / "a.parquet") == [*ODD, *ODD]


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_parquet_in_any_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    content = table(ODD * 500, "text")
    pq.write_table(content, tmp_path / "a.parquet", use_dictionary=False, column_encoding={"text": encoding})
    assert documents(tmp_path / "a.parquet") == ODD * 500


def test_parquet_whose_dictionary_is_full_goes_on_without_it(tmp_path: Path) -> None:
    texts = [f"{i} {'x' * 500}" for i in range(5000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", dictionary_pagesize_limit=10_000)
    assert documents(tmp_path / "a.parquet") == texts


@pytest.mark.parametrize("text", ODD)
def test_a_text_file_is_one_document_with_its_very_text(text: str, tmp_path: Path) -> None:
    expected = text.removeprefix("\ufeff")
    assert documents(put(tmp_path / "a.txt", text), document_separator="none") == [expected]
    zipped = put(tmp_path / "a.txt.gz", gzip.compress(text.encode()))
    assert documents(zipped, document_separator="none") == [expected]


def test_a_mark_of_byte_order_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert documents(put(tmp_path / "a.csv", "\ufefftext,id\none,1\n")) == ["one"]
    assert documents(put(tmp_path / "a.jsonl", '\ufeff{"text": "one"}\n')) == ["one"]


def test_empty_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name, text in {"a.txt": "", "b.txt": "one", "c.txt": " \r\n\t\n"}.items():
        put(tmp_path / "texts" / name, text)
    assert documents(tmp_path / "texts") == ["one"]


def test_files_of_several_kinds_in_one_folder_come_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, writer in WRITERS.items():
        if name != "saved":
            writer(folder / name, [f"{name} {i}" for i in range(7)], "text")
    expected = [f"{name} {i}" for name in sorted(set(WRITERS) - {"saved"}) for i in range(7)]
    assert documents(folder) == expected


def test_half_a_surrogate_pair_in_json_becomes_a_character(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "half \\ud83d, whole \\ud83d\\ude42"}\n')
    (text,) = documents(path)
    assert text == "half ?, whole 🙂"


def test_the_standard_library_is_read_with_each_files_own_encoding() -> None:
    config = DataConfig()
    source = find_source("python_stdlib", Path("cache"))
    chunks = list(read(source, config))
    assert len(chunks) > 300
    assert any("class JSONDecoder" in chunk.text for chunk in chunks)


# Long text


def long_text(kind: str) -> str:
    words = ["alpha", "Beta's", "naïve", "12345", "🙂", "x=y;", "...", "日本語", "don't", "\t", "  "]
    choices = random.Random(kind)
    ends = {"windows": "\r\n", "spaces": "   \n\n  "}
    text = "".join(
        choices.choice(words) + (ends.get(kind, "\n") if i % 11 == 0 else " ") for i in range(2 * TEXT_CHUNK // 5)
    )
    return {"one line": text.replace("\n", " "), "no spaces": "x" * (2 * TEXT_CHUNK + 7)}.get(kind, text)


@pytest.mark.parametrize("kind", ["lines", "windows", "spaces", "one line", "no spaces"])
def test_a_long_text_comes_in_pieces_that_make_the_text(kind: str, tmp_path: Path) -> None:
    text = long_text(kind)
    path = put(tmp_path / "a.txt", text)
    chunks = list(read(find_source(str(path), tmp_path), DataConfig()))
    assert len(chunks) >= 2
    assert max(len(chunk.text) for chunk in chunks) <= TEXT_CHUNK
    assert [chunk.ends for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert "".join(chunk.text for chunk in chunks) == text


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_long_row_comes_in_pieces_cut_as_a_text_file_is(name: str, tmp_path: Path) -> None:
    text = long_text("lines")
    found = []
    for path in (put(tmp_path / "a.txt", text), tmp_path / name):
        if path.name == name:
            WRITERS[name](path, [text, "short"], "text")
        found.append(list(read(find_source(str(path), tmp_path), DataConfig())))
    assert len(found[0]) >= 2
    assert found[1] == [*found[0], reading.Chunk("short")]


# Broken text


def test_text_that_is_not_utf8_is_refused_with_file_and_byte(tmp_path: Path) -> None:
    message = refusal(put(tmp_path / "b.txt", b"caf\xe9 au lait"))
    assert "b.txt is not UTF-8 text (byte 3)" in message
    assert "it is likely cp1252, in which it reads 'café au lait': give --data.encoding cp1252" in message
    assert "data.encoding_errors" in message


BROKEN = b"x" * (CHUNK - 1) + b"\xe9\xf0\x9f end"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv"])
def test_broken_characters_can_be_replaced_also_at_the_border_of_chunks(name: str, tmp_path: Path) -> None:
    content = {"a.jsonl": b'{"text": "' + BROKEN + b'"}\n', "a.csv": b"text\n" + BROKEN + b"\n"}.get(name, BROKEN)
    path = put(tmp_path / name, gzip.compress(content, 1) if name.endswith(".gz") else content)
    assert "is not UTF-8 text (byte 104857" in refusal(path) or "(byte 104858" in refusal(path)
    assert documents(path, encoding_errors="replace") == ["x" * (CHUNK - 1) + "\ufffd\ufffd end"]


def test_broken_files_can_be_skipped_and_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    put(folder / "a.txt", b"\xff")
    put(folder / "b.txt", "good")
    put(folder / "c.txt.gz", gzip.compress(b"fine until \xff"))
    assert documents(folder, encoding_errors="skip") == ["good"]
    config = DataConfig(encoding_errors="skip")
    _, skipped = refuse_broken_text(find_source(str(folder), tmp_path), Scans(tmp_path / "memory"), config)
    assert skipped == [str(folder / "a.txt"), str(folder / "c.txt.gz")]


def test_characters_that_are_replaced_are_counted_and_those_of_the_text_are_not(tmp_path: Path) -> None:
    border = b"x" * (CHUNK - 1) + b"\xe9\xf0\x9f "
    path = put(tmp_path / "a.txt", "\ufffd \ufffd é".encode() + border + b"\xff" * 1500 + "\ufffd".encode())
    assert notes(path, encoding_errors="replace") == [f"1,502 characters not in utf-8 replaced by U+FFFD, in {path}"]
    assert documents(path, encoding_errors="replace")[0].count("\ufffd") == 1505
    put(path, "é \x81 oh".encode("latin-1"))
    (note,) = notes(path, encoding_errors="replace", encoding="cp1252")
    assert note.startswith("1 character not in cp1252 replaced by U+FFFD")


LANGUAGES = {
    "cp1252": "naïve café, “quoted” €\r\n",
    "cp1251": "Мой дядя\n",
    "shift_jis": "吾輩は猫である。ソ表\n",  # of the last two the second byte is a backslash
    "utf-16": "naïve 🙂 日本 Ċ\n",  # of the last one byte is a line's end
    "utf-16-be": "naïve 🙂 日本 Ċ\n",
    "utf-32": "naïve 🙂\n",
    "utf-7": "naïve 🙂 + more\n",
    "utf-8-sig": "naïve 🙂\n",
    "iso2022_jp": "吾輩は猫である。\n",
}
each_encoding = pytest.mark.parametrize("encoding", LANGUAGES)


@each_encoding
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv"])
def test_text_in_another_encoding_is_the_same_text(
    name: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.data.sources.scan.CHUNK", 7)
    texts = [LANGUAGES[encoding] * 3, LANGUAGES[encoding]]
    path = tmp_path / name
    if name.startswith("a.txt"):
        texts = ["".join(texts)]
        put(path, texts[0])
    elif name == "a.jsonl":
        put(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    else:
        write_csv(path, texts, "text")
    content = path.read_bytes().decode().encode(encoding)
    put(path, gzip.compress(content) if name.endswith(".gz") else content)
    assert documents(path, encoding=encoding) == texts
    assert notes(path, encoding=encoding) == []


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-be"])
def test_utf16_is_refused_though_it_is_utf8_too_and_never_replaced(encoding: str, tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "hello\n".encode(encoding))
    for policy in ("error", "replace"):
        assert refusal(path, encoding_errors=policy).endswith(f"give --data.encoding {encoding}")
    assert documents(path, encoding=encoding) == ["hello\n"]


def test_half_a_surrogate_pair_that_an_encoding_may_spell_becomes_a_character(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", rb"half \ud83d, whole \ud83d\ude42")
    assert documents(path, encoding="unicode_escape") == ["half \ufffd, whole 🙂"]


def test_in_a_folder_the_file_in_another_encoding_is_named_and_known_to_be_one_of_several(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    put(folder / "a.txt", "naïve")
    put(folder / "b.txt", "caf\xe9 au lait".encode("latin-1"))
    put(folder / "c.txt", "hello".encode("utf-16"))
    message = refusal(folder)
    assert "b.txt is not UTF-8 text (byte 3); it is likely cp1252" in message
    assert message.endswith("it is one of 3 files: if only this one differs, convert it")
    (folder / "b.txt").unlink()
    assert "c.txt is UTF-16 by its byte-order mark" in refusal(folder)
    (folder / "c.txt").unlink()
    assert notes(folder, encoding="cp1252") == [
        f"{folder / 'a.txt'} is valid UTF-8, but read as cp1252 (data.encoding)"
    ]


def test_documents_in_a_folder_of_text_are_left_out_and_named_and_refused_where_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    put(folder / "a.txt", "one")
    put(folder / "b.pdf", b"%PDF-1.4 without a zero byte")
    put(folder / "picture.png", b"\x89PNG\0\0")
    assert documents(folder) == ["one"]
    (note,) = notes(folder)
    assert note.startswith(
        f"left out are 1 file ({folder / 'b.pdf'}) of other formats: {folder / 'b.pdf'} is a PDF doc"
    )
    assert "is a PDF document: convert it with `pdftotext" in refusal(folder / "b.pdf")
    (folder / "a.txt").unlink()
    assert "the folder holds no text files; left out are 1 file" in refusal(folder)


def test_skipping_every_file_is_refused(tmp_path: Path) -> None:
    message = refusal(put(tmp_path / "a.txt", b"\xff"), encoding_errors="skip")
    assert "none of its files is UTF-8 text, so skipping them leaves nothing" in message


def test_empty_files_alone_are_refused(tmp_path: Path) -> None:
    assert "no text in it, all files are empty" in refusal(put(tmp_path / "a.txt", ""))
    assert "no text in it, all files are empty" in refusal(put(tmp_path / "a.txt.gz", gzip.compress(b"")))


# Broken tables


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "a"}\n{"text": "b"\n', "line 2: not JSON; JSON Lines has one object in each line (Expecting"),
        ('"text"\n', "line 1: str, not an object with a key for its text"),
        ('\n\n{"text": ["a"]}\n', "line 3: 'text' is list, not text"),
        ('{"text": 7}\n', "line 1: 'text' is int, not text"),
        (
            '{"text": "a"}\n{"content": "b", "id": 1}\n',
            "line 2: no key 'text'; it has 'content', 'id': give one as data.text",
        ),
        ("{}\n", "line 1: no key 'text'; it has none"),
        ('{"a\\nb": 1, "%s": 2}\n' % ("long " * 1000), "line 1: no key 'text'; it has 'a\\nb', "),
        ("[" * 200_000 + "\n", "object 1: not JSON"),
        ('{"text": ' + "9" * 5000 + "}\n", "line 1: not JSON"),
        ("just text\n", "line 1: not JSON"),
    ],
)
def test_json_that_is_wrong_is_refused_with_its_line(content: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(put(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id\n1\n", "has no column 'text'; give one of these as data.text_column: 'id' (fields separated by ',';"),
        ("", "no text in it, all files are empty"),
        ("\n", "has no column 'text'"),
        ("id,text\n1,a\n2\n", "line 3: no field for 'text'"),
        ("id,text\n1,a\n2,b, and more\n", "line 3: 3 fields, but the header has 2 ('id', 'text'): quote texts with"),
        ("text\nhello, world\n", "line 2: 2 fields, but the header has 1 ('text'): "),
        ("text,text\na,b\n", "has several columns 'text': rename one"),
        (" id, body\n1,a\n", "give one of these as data.text_column: ' id', ' body' (fields separated by ',';"),
        ('id,text\n1,"never closed\n2,b\n3,c\n', "line 4: not CSV (unexpected end of data)"),
        ('id,text\n1,"closed" too early\n', "line 2: not CSV ("),
        (
            '"a first text\nwithout a heading ' + "and long " * 1000 + '",3\n',
            "'text'; give one of these as data.text_c",
        ),
    ],
)
def test_csv_that_is_wrong_is_refused_with_its_line(content: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(put(tmp_path / "a.csv", content))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_the_delimiter_of_csv_is_recognised_and_told(name: str, delimiter: str, tmp_path: Path) -> None:
    texts = ["one, two; three", "four\tfive | six", "a: b", "plain"]
    path = tmp_path / "rows"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["a, b", "text", "c;\nd"], *((t, t, t) for t in texts)])
    path = put(tmp_path / name, gzip.compress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes())
    assert documents(path) == texts
    told = [f"the fields of {path} are separated by {delimiter!r}, by the header (data.delimiter)"]
    assert notes(path) == ([] if delimiter == ("\t" if name == "a.tsv" else ",") else told)
    assert documents(path, delimiter="\\t" if delimiter == "\t" else delimiter) == texts
    assert notes(path, delimiter=delimiter) == []


def test_the_delimiter_that_is_named_is_taken(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "id^text\n1^one, two\n")
    assert "(fields separated by ','; data.delimiter sets another)" in refusal(path)
    assert documents(path, delimiter="^") == ["one, two"]
    assert "data.text_column: 'id^text'" in refusal(path, delimiter=";")


def test_fields_of_csv_that_lose_nothing_may_be_missing_or_empty(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "text,id,note\none,1,a,,\ntwo,2\nsix\n\n")
    assert documents(path) == ["one", "two", "six"]


def test_empty_shards_among_others_are_read_as_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    empty, full = pa.table({"text": pa.array([], pa.string())}), table(ODD, "text")
    for kind in (pa.string(), pa.null()):
        pq.write_table(pa.table({"text": pa.array([], kind)}), folder / f"{kind}.parquet")
    pq.write_table(pa.table({"other": pa.array([], pa.string())}), folder / "other.parquet")
    with pq.ParquetWriter(folder / "groups.parquet", full.schema) as file:
        for part in (full.slice(0, 0), full, full.slice(0, 0)):
            file.write_table(part)
    for name, content in {"0.arrow": empty, "1.arrow": pa.table({"text": pa.nulls(0)}), "2.arrow": full}.items():
        with pa.ipc.new_file(folder / name, content.schema) as file:
            file.write_table(content)
    for name in ("a.csv", "a.jsonl"):
        put(folder / name, "")
    assert documents(folder) == ODD * 2


def test_a_pointer_of_git_lfs_in_a_tables_place_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    assert "is a pointer of Git LFS, not the file itself: fetch the file with `git lfs pull`" in refusal(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_table_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[f"rows{path.suffix}"](path, [f"text {i} {i**40}" for i in range(500)], "text")
    whole = path.read_bytes()
    for content in (b"this is no table\n" * 99, b"\n", whole[: len(whole) // 2], whole[:-9], whole[len(whole) // 2 :]):
        assert f"is damaged or not {path.suffix[1:].title()} (" in refusal(put(path, content))


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"saved"}))
def test_no_damage_ends_in_anything_but_a_text_or_one_line(name: str, tmp_path: Path) -> None:
    path, choices = tmp_path / name, random.Random(name)
    WRITERS[name](path, ODD * 5, "text")
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(choices.choice([1, 10])):
            content[choices.randrange(len(content))] = choices.randrange(256)
        put(path, bytes(content))
        try:
            documents(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 (there need not be an error)


@pytest.mark.parametrize("column", [[1, 2], [["a"], ["b"]], [b"a", b"b"], [None, None]], ids=str)
def test_a_column_that_is_no_text_is_refused(column: list[object], tmp_path: Path) -> None:
    content = pa.table({"text": column})
    pq.write_table(content, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", content.schema) as file:
        file.write_table(content)
    for name in ("a.parquet", "a.arrow"):
        message = refusal(tmp_path / name)
        assert f"the column 'text' holds {str(content.schema.types[0]).split('<')[0]}" in message
        assert message.endswith(", not text")


def test_a_line_too_long_to_be_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, tables):
        monkeypatch.setattr(module, "LONGEST_ROW", 3 << 20)
    path = put(tmp_path / "a.jsonl", json.dumps({"text": "x" * (5 << 20)}))
    assert "has a line of more than 3 MB: is it text?" in refusal(path)
    put(tmp_path / "a.csv", "text\n" + "x" * (5 << 20))
    assert "has a line of more than 3 MB" in refusal(tmp_path / "a.csv")
    put(tmp_path / "b.csv", 'text\n"' + "x\n" * (2 << 20) + '"\n')
    assert "not CSV (field larger than field limit" in refusal(tmp_path / "b.csv")
    pq.write_table(pa.table({"text": ["x" * (5 << 20)]}), tmp_path / "a.parquet", compression=None)
    assert "has a row of more than 3 MB" in refusal(tmp_path / "a.parquet")


# Hostile tables


def entry_for_all(rows: int, length: int) -> pa.Table:
    """Every row points at one long entry of a dictionary."""
    return pa.table(
        {"text": pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["lorem " * (length // 6)])}
    )


def dictionary_parquet(path: Path) -> None:
    pq.write_table(entry_for_all(100_000, 12_000_000), path, store_schema=False, dictionary_pagesize_limit=1 << 30)


def dictionary_arrow(path: Path) -> None:
    content = entry_for_all(100_000, 1_000_000)
    with pa.ipc.new_file(path, content.schema) as file:
        file.write_table(content)


def view_arrow(path: Path) -> None:
    entry = ("lorem " * (3_000_000 // 6)).encode()
    view = len(entry).to_bytes(4, "little") + entry[:4] + bytes(8)
    rows = pa.Array.from_buffers(pa.string_view(), 10_000, [None, pa.py_buffer(view * 10_000), pa.py_buffer(entry)])
    content = pa.table({"text": rows})
    with pa.ipc.new_file(path, content.schema) as file:
        file.write_table(content)


def repeating_parquet(path: Path) -> None:
    texts = ["x" * 4_000_000 + str(i) for i in range(60)]
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})


def zeros_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": ["\0" * 100_000_000]}), path, use_dictionary=False, compression="zstd")


@pytest.mark.parametrize(
    "makers",
    [
        (dictionary_parquet, view_arrow),
        pytest.param((dictionary_arrow, repeating_parquet, zeros_parquet), marks=pytest.mark.slow),
    ],
    ids=lambda makers: " ".join(make.__name__ for make in makers),
)
def test_a_hostile_table_is_refused_in_bounded_memory(
    makers: tuple[Callable[[Path], None], ...], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{make.__name__.replace('_', '.')}" for make in makers]
    for make, path in zip(makers, paths, strict=True):
        make(path)
    script = (
        "import sys; from minigpt.config import *; from minigpt.data import prepare\n"
        "from minigpt.data.sources import tables; from minigpt.errors import UserError\n"
        "tables.ALWAYS_UNPACKED = 1 << 26\n"
        "for path in sys.argv[2:]:\n"
        "    try: prepare.prepare(DataConfig(source=path, tokenizer='bytes', dir=sys.argv[1]))\n"
        "    except UserError as error: print(error)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", script, tmp_path / "data", *paths]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    *messages, kilobytes = result.stdout.splitlines()
    assert len(messages) == len(paths)
    for path, message in zip(paths, messages, strict=True):
        assert f"{path} unpacks to far more than its length" in message
    assert int(kilobytes) < 1 << 20
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir()]


def test_what_goes_wrong_while_reading_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "one"}\n')
    source = find_source(str(path), tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.jsonl: no such file or directory"):
        list(read(source, DataConfig()))
    path.mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: is a directory"):
        list(read(source, DataConfig()))


@pytest.mark.parametrize("name", ["repeats", "references:7"])
def test_a_synthetic_source_makes_as_many_documents_as_asked(name: str, tmp_path: Path) -> None:
    chunks: Iterator[reading.Chunk] = read(find_source(name, tmp_path), DataConfig(source=name, max_documents=30))
    found = list(chunks)
    assert len(found) == 30
    assert all(chunk.ends and chunk.relations for chunk in found)
    assert found == list(read(find_source(name, tmp_path), DataConfig(source=name, max_documents=30)))


def test_another_seed_makes_other_documents(tmp_path: Path) -> None:
    first, second = (
        [chunk.text for chunk in read(find_source(name, tmp_path), DataConfig(max_documents=5))]
        for name in ("references:1", "references:2")
    )
    assert first != second
