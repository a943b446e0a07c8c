"""Sources: names stand for the same files in the same order on any machine, and one line for what is not there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt.data.sources.names import File, find_source, is_prepared
from minigpt.errors import UserError


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `texts` with a few files, in the current folder."""
    for name in ("b.txt", "a.txt", "sub/c.md", "sub/d.txt"):
        put(tmp_path / "texts" / name, name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "texts"


def put(path: Path, content: str | bytes = "some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def files(name: str) -> tuple[File, ...]:
    return find_source(name, Path("cache")).files


def names(name: str) -> list[str]:
    return [str(file.path) for file in files(name)]


def refusal(name: str) -> str:
    """The one line that refuses a source."""
    with pytest.raises(UserError) as caught:
        find_source(name, Path("cache"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_standard_library_is_hundreds_of_files_sorted_without_tests_or_installed_packages() -> None:
    found = files("python_stdlib")
    root = Path(os.__file__).parent
    relative = [file.path.relative_to(root).as_posix() for file in found]
    assert len(found) > 300
    assert relative == sorted(relative)
    assert {"argparse.py", "json/decoder.py"} <= set(relative)
    folders = {part for name in relative for part in Path(name).parts[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def test_the_order_of_the_standard_library_does_not_depend_on_the_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    before, walk = files("python_stdlib"), os.walk

    def backwards(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, subfolders, inside in walk(root):
            inside.reverse()
            yield folder, subfolders, inside
            subfolders.reverse()

    monkeypatch.setattr(os, "walk", backwards)
    assert files("python_stdlib") == before


def test_a_file_is_itself(texts: Path) -> None:
    assert files("texts/a.txt") == (File(Path("texts/a.txt"), "text"),)


def test_a_folder_is_all_its_text_files_by_name(texts: Path) -> None:
    assert names("texts") == ["texts/a.txt", "texts/b.txt", "texts/sub/c.md", "texts/sub/d.txt"]


def test_the_order_of_a_folder_does_not_depend_on_the_file_system(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rglob = names("texts"), Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(rglob(self, pattern), reverse=True))
    assert names("texts") == before


def test_a_glob_is_the_files_that_match(texts: Path) -> None:
    assert names("texts/*.txt") == ["texts/a.txt", "texts/b.txt"]
    assert names("texts/**/*.txt") == ["texts/a.txt", "texts/b.txt", "texts/sub/d.txt"]


def test_a_home_folder_may_be_written_with_a_tilde(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(texts))
    assert names("~/b.txt") == [str(texts / "b.txt")]


@pytest.mark.parametrize("name", ["a[1].txt", "b*.txt", "c?.txt", "e{1,2}.txt", "ä ö.txt", "a,b.txt", ".hidden.txt"])
def test_a_file_with_any_name_is_itself_and_not_a_pattern(name: str, texts: Path) -> None:
    put(texts / name)
    assert names(f"texts/{name}") == [f"texts/{name}"]


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.txt", "text", None),
        ("a", "text", None),
        ("a.py", "text", None),
        ("A.TXT.GZ", "text", ".gz"),
        ("a.zst", "text", ".zst"),
        ("a.jsonl", "jsonl", None),
        ("a.ndjson.bz2", "jsonl", ".bz2"),
        ("a.json.xz", "jsonl", ".xz"),
        ("a.csv", "csv", None),
        ("a.v2.tsv.gz", "tsv", ".gz"),
        ("a.parquet", "parquet", None),
        ("a.arrow", "arrow", None),
    ],
)
def test_a_files_name_says_how_it_is_read(name: str, kind: str, compression: str | None, texts: Path) -> None:
    put(texts / name)
    assert files(f"texts/{name}") == (File(Path("texts") / name, kind, compression),)


def test_binary_and_hidden_files_in_a_folder_are_left_out(texts: Path) -> None:
    before = names("texts")
    put(texts / "picture.png", b"\x89PNG\x00\xff")
    put(texts / ".hidden")
    put(texts / ".git" / "config")
    put(texts / "__pycache__" / "notes")
    (texts / "dangling").symlink_to("nowhere")
    os.mkfifo(texts / "pipe")
    assert names("texts") == before


def test_a_folder_whose_own_path_is_hidden_is_read(texts: Path) -> None:
    texts.rename(texts.parent / ".texts")
    assert len(names(".texts")) == 4


def test_a_folder_of_tables_is_read_as_tables_though_a_readme_lies_beside(texts: Path) -> None:
    for name in ("a.jsonl", "b.csv.gz", "README.md", "dataset_info.json", "state.json"):
        put(texts / "tables" / name)
    assert [(file.path.name, file.kind) for file in files("texts/tables")] == [
        ("a.jsonl", "jsonl"),
        ("b.csv.gz", "csv"),
    ]


def test_json_and_csv_files_among_text_are_text(texts: Path) -> None:
    put(texts / "sub" / "settings.json")
    put(texts / "sub" / "numbers.csv")
    assert {file.kind for file in files("texts/sub")} == {"text"}
    assert len(files("texts/sub")) == 4


@pytest.mark.parametrize("table", ["rows.parquet", "rows.arrow", "rows.jsonl", "rows.jsonl.gz"])
def test_a_folder_with_tables_and_text_says_which_and_how_to_choose(table: str, texts: Path) -> None:
    put(texts / table)
    message = refusal("texts")
    assert f"the folder holds tables ({table}) and plain text (" in message
    assert f"texts/**/*{Path(table).suffix}" in message


def test_what_minigpt_wrote_into_the_folder_of_the_texts_is_no_text(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names("texts")
    for name in (
        "texts-bytes-12/manifest.json",
        "texts-bytes-12/minigpt_tokenizer.json",
        "stdin/aa.txt",
        "downloads/bb.json",
    ):
        put(texts / "data" / name)
    assert [str(file.path) for file in find_source("texts", texts / "data").files] == before
    monkeypatch.chdir(texts)
    assert len(find_source(".", Path("data")).files) == len(before)


def test_a_manifest_of_the_users_own_makes_no_folder_a_prepared_one(texts: Path) -> None:
    put(texts / "manifest.json", "{}")
    assert not is_prepared(texts)
    assert "texts/manifest.json" in names("texts")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("texts/missing.txt", "data.source=texts/missing.txt: no such file or folder (relative to "),
        ("owner/dataset", "a hub dataset is written hf:owner/dataset"),
        ("texts/*.rst", "data.source=texts/*.rst: no file matches the glob"),
        ("empty", "data.source=empty: the folder holds no text files"),
        ("texts/a.txt/b.txt", "no such file or folder"),
        ("pasted text " * 500, "file name too long"),
        ("~nobody-of-this-name/a.txt", "not a valid file name"),
        ("repeats:many", "data.source=repeats:many: no such file or folder"),
        ("texts/pipe", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_a_source_that_is_not_there_is_refused_by_name(source: str, expected: str, texts: Path) -> None:
    (texts.parent / "empty").mkdir()
    os.mkfifo(texts / "pipe")
    message = refusal(source)
    assert expected in message
    assert len(message) < 400


@pytest.mark.parametrize(("name", "kind", "seed"), [("repeats", "repeats", 0), ("references:7", "references", 7)])
def test_a_synthetic_source_has_a_seed_and_no_files(name: str, kind: str, seed: int) -> None:
    source = find_source(name, Path("cache"))
    assert (source.synthetic, source.seed, source.files) == (kind, seed, ())


@pytest.mark.parametrize("name", ["book.zip.txt", "notes.tar.md", "~x.txt", "[ab].txt", "a*.txt", "[D_DATA]/a.txt"])
def test_a_file_that_is_there_is_read_whatever_its_name_looks_like(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path(name))
    put(Path("a.txt"))
    assert [file.path for file in find_source(name, tmp_path / "data").files] == [Path(name)]


def test_a_glob_may_lead_through_a_folder_whose_name_looks_like_one(tmp_path: Path) -> None:
    for name in ("[D_DATA]/a.txt", "[D_DATA]/b.md", "D/a.txt"):
        put(tmp_path / name)
    source = find_source(str(tmp_path / "[D_DATA]" / "*.txt"), tmp_path / "data")
    assert [file.path for file in source.files] == [tmp_path / "[D_DATA]" / "a.txt"]
