"""Standard input as a source: kept as a file, and read as what it holds."""

import bz2
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from minigpt.config import DataConfig
from minigpt.data.sources.names import find_source
from minigpt.data.sources.reading import read
from minigpt.data.sources.stdin import keep_stdin
from minigpt.errors import UserError


def pipe_in(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input_is_kept_as_a_file_with_the_very_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "one\r\n\ufeffzwö\0".encode() * 200_000
    pipe_in(content, monkeypatch)
    config = keep_stdin(DataConfig(source="-", dir=str(tmp_path)))
    (kept,) = map(Path, config.sources)
    assert kept.read_bytes() == content
    assert list((tmp_path / "stdin").iterdir()) == [kept]


def test_equal_input_is_the_same_source_again_and_other_sources_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(source=["-", "a.txt"], weights=[1, 2], dir=str(tmp_path))
    kept = []
    for _ in range(2):
        pipe_in(b"text", monkeypatch)
        kept.append(keep_stdin(config).sources)
    assert kept[0] == kept[1]
    assert kept[0][1] == "a.txt"


def test_json_lines_are_known_in_another_encoding_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in('{"text": "naïve"}\n'.encode("utf-16"), monkeypatch)
    config = keep_stdin(DataConfig(source="-", encoding="utf-16", dir=str(tmp_path)))
    source = find_source(config.sources[0], tmp_path, config.codec)
    assert [chunk.text for chunk in read(source, config)] == ["naïve"]


def test_without_standard_input_as_a_source_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    config = DataConfig(source="a.txt", dir=str(tmp_path / "data"))
    assert keep_stdin(config) is config
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("stdin", [None, SimpleNamespace(isatty=lambda: True)], ids=["closed", "terminal"])
def test_standard_input_into_which_nothing_is_piped_is_refused(
    stdin: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(UserError, match=r"data\.source=-: nothing is piped into this program"):
        keep_stdin(DataConfig(source="-", dir=str(tmp_path)))


def test_standard_input_cannot_be_the_text_to_validate_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.val_source=-: standard input can only be data\.source"):
        keep_stdin(DataConfig(source="a.txt", val_source="-", dir=str(tmp_path)))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_standard_input_that_cannot_be_kept_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = iter([b"first part"])

    def read(_: int) -> bytes:
        for part in parts:
            return part
        raise error

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=SimpleNamespace(read=read)))
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt, match=r"cannot be saved|"):
        keep_stdin(DataConfig(source="-", dir=str(tmp_path)))
    assert list((tmp_path / "stdin").iterdir()) == []


ROWS = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in ("one", "two")).encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "ending", "texts"),
    [
        (b"some text\n", ".txt", ["some text\n"]),
        (b'{"text": "a text of its own"}\nand another line\n', ".txt", None),
        (b"[{not: json}]\n", ".txt", None),
        (b"{}[]\n", ".txt", None),
        (b"BZh9, PAR1 and ARROW1 are words too", ".txt", None),
        (b"PAR1 begins this text", ".txt", None),
        (ROWS, ".jsonl", ["one", "two"]),
        (b"\xef\xbb\xbf\n" + ROWS, ".jsonl", ["one", "two"]),
        (ROWS.split(b"\n")[0], ".jsonl", ["one"]),
        (gzip.compress(b"some text\n", mtime=0), ".txt.gz", ["some text\n"]),
        (gzip.compress(ROWS, mtime=0), ".jsonl.gz", ["one", "two"]),
        (bz2.compress(ROWS), ".jsonl.bz2", ["one", "two"]),
        (lzma.compress(ROWS), ".jsonl.xz", ["one", "two"]),
        (zstandard.compress(ROWS), ".jsonl.zst", ["one", "two"]),
        (parquet(), ".parquet", ["one", "two"]),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else ""
    ),  # bytes of archives differ between the processes of xdist
)
def test_what_comes_in_is_read_as_what_it_is(
    content: bytes,
    ending: str,
    texts: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    pipe_in(content, monkeypatch)
    config = keep_stdin(DataConfig(source="-", dir=str(tmp_path)))
    assert config.sources[0].endswith(ending)
    told = "" if ending == ".txt" else f"standard input is read as a {ending} file, judging by its content\n"
    assert capsys.readouterr() == ("", told)
    found = [chunk.text for chunk in read(find_source(config.sources[0], tmp_path), config)]
    assert found == (texts or [content.decode()])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps([{"text": 7}]).encode(),
            "object 1: 'text' is int, not text",
        ),
        (
            json.dumps([{"text": "a"}], indent=1)[:-1].encode(),
            "after object 1: not JSON",
        ),
        (gzip.compress(b"some text\n", mtime=0)[:-9], ".gz is damaged"),
    ],
)
def test_what_comes_in_and_cannot_be_read_is_one_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_in(content, monkeypatch)
    config = keep_stdin(DataConfig(source="-", dir=str(tmp_path)))
    with pytest.raises(UserError, match=message):
        list(read(find_source(config.sources[0], tmp_path), config))
