"""Sources: the same documents in the same order on any machine, and one line for what cannot be read."""

import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest

from minigpt.config import UserError
from minigpt.data.sources import Document, fingerprint, load_documents


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `texts` with a few files, in the current folder."""
    for name, text in {
        "b.txt": "second",
        "a.txt": "first\nlines\n",
        "sub/c.md": "third",
        "sub/d.txt": "fourth",
    }.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "texts"


def load(source: str | list[str], **options: Any) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in load_documents(source, Path("cache"), **options)]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(texts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine that serves the folder `texts`."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the test suite's own choice, for other tests
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(texts)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_standard_library_is_hundreds_of_documents_sorted_without_tests_or_installed_packages() -> None:
    names = [name for name, _ in load("python_stdlib")]
    assert len(names) > 300
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    folders = {part for name in names for part in Path(name).parts[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def test_the_order_of_the_standard_library_does_not_depend_on_the_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    before, walk, seen = load("python_stdlib"), os.walk, []

    def backwards(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, subfolders, files in walk(root):
            seen.append(folder)
            files.reverse()
            yield folder, subfolders, files
            subfolders.reverse()

    monkeypatch.setattr(os, "walk", backwards)
    assert load("python_stdlib") == before
    assert seen


def test_a_file_is_one_document(texts: Path) -> None:
    assert load("texts/a.txt") == [("texts/a.txt", "first\nlines\n")]


def test_a_folder_is_all_its_text_files_by_name(texts: Path) -> None:
    assert [name for name, _ in load("texts")] == ["texts/a.txt", "texts/b.txt", "texts/sub/c.md", "texts/sub/d.txt"]


def test_a_glob_is_the_files_that_match(texts: Path) -> None:
    assert load("texts/*.txt") == [("texts/a.txt", "first\nlines\n"), ("texts/b.txt", "second")]
    assert [name for name, _ in load("texts/**/*.txt")] == ["texts/a.txt", "texts/b.txt", "texts/sub/d.txt"]


def test_several_sources_are_one_collection_whatever_their_order(texts: Path) -> None:
    expected = [("texts/a.txt", "first\nlines\n"), ("texts/b.txt", "second"), ("texts/sub/c.md", "third")]
    assert load(["texts/sub/*.md", "texts/b.txt", "texts/a.txt"]) == expected
    assert load(["texts/a.txt", "texts/b.txt", "texts/sub/*.md"]) == expected


def test_files_can_be_added_to_the_standard_library(texts: Path) -> None:
    assert set(load(["python_stdlib", "texts/b.txt"])) == {*load("python_stdlib"), ("texts/b.txt", "second")}


def test_a_home_folder_may_be_written_with_a_tilde(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(texts))
    assert load("~/b.txt") == [(str(texts / "b.txt"), "second")]


@pytest.mark.parametrize("name", ["a[1].txt", "b*.txt", "c?.txt", "e{1,2}.txt", "ä ö.txt", "a,b.txt", ".hidden.txt"])
def test_a_file_with_any_name_is_itself_and_not_a_pattern(name: str, texts: Path) -> None:
    (texts / name).write_text("odd name")
    assert (f"texts/{name}", "odd name") in load(f"texts/{name}")
    assert all(text == Path(file).read_text() for file, text in load("texts"))


def test_a_url_is_one_document(server: str) -> None:
    assert load(f"{server}/a.txt") == [(f"{server}/a.txt", "first\nlines\n")]


def test_urls_and_files_go_together(server: str) -> None:
    assert [text for _, text in load([f"{server}/b.txt", "texts/a.txt"])] == ["second", "first\nlines\n"]


def test_a_url_that_is_not_there_is_refused_in_one_line(server: str) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt.*could not be loaded") as caught:
        load(f"{server}/nothing.txt")
    assert "\n" not in str(caught.value)


def test_a_changed_file_is_read_anew(texts: Path) -> None:
    load("texts/a.txt")
    (texts / "a.txt").write_text("changed")
    assert load("texts/a.txt") == [("texts/a.txt", "changed")]


def test_a_changed_file_is_read_anew_even_if_its_time_of_change_is_the_same(texts: Path) -> None:
    os.utime(texts / "b.txt", (1e9, 1e9))
    load("texts/b.txt")
    (texts / "b.txt").write_text("2econd")
    os.utime(texts / "b.txt", (1e9, 1e9))
    assert load("texts/b.txt") == [("texts/b.txt", "2econd")]


def test_empty_files_are_left_out(texts: Path) -> None:
    (texts / "a.txt").write_text("")
    (texts / "sub" / "d.txt").write_text(" \n\n")
    assert [name for name, _ in load("texts")] == ["texts/b.txt", "texts/sub/c.md"]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_nothing_but_empty_files_is_refused(text: str, texts: Path) -> None:
    (texts / "a.txt").write_text(text)
    with pytest.raises(UserError, match=r"data.source=texts/a.txt: no text in it, all files are empty"):
        load("texts/a.txt")


def test_text_that_is_not_utf8_is_refused_with_file_and_byte(texts: Path) -> None:
    (texts / "b.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"texts/b\.txt is not UTF-8 text \(byte 3: 0xe9\)") as caught:
        load("texts")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("texts/missing.txt", "data.source=texts/missing.txt: no such file or folder"),
        ("missing", "data.source=missing: no such file or folder"),
        ("texts/*.rst", r"data.source=texts/\*.rst: no file matches the glob"),
        ("empty", "data.source=empty: the folder holds no text files"),
        (["texts/a.txt", "missing"], "data.source=missing: no such file"),
    ],
)
def test_a_source_that_is_not_there_is_refused_by_name(source: str | list[str], expected: str, texts: Path) -> None:
    (texts.parent / "empty").mkdir()
    with pytest.raises(UserError, match=expected):
        load(source)


def test_binary_and_hidden_files_in_a_folder_are_left_out(texts: Path) -> None:
    (texts / "picture.png").write_bytes(b"\x89PNG\x00\xff")
    (texts / ".hidden").write_text("hidden")
    for folder in (".git", "__pycache__"):
        (texts / folder).mkdir()
        (texts / folder / "config").write_text("hidden")
    assert [name for name, _ in load("texts")] == ["texts/a.txt", "texts/b.txt", "texts/sub/c.md", "texts/sub/d.txt"]


def test_a_folder_whose_own_path_is_hidden_is_read(texts: Path) -> None:
    texts.rename(texts.parent / ".texts")
    assert len(load(".texts")) == 4


def test_a_limited_number_of_documents_is_the_same_choice_each_time_and_grows() -> None:
    few, more = load("python_stdlib", max_documents=10), load("python_stdlib", max_documents=20)
    assert load("python_stdlib", max_documents=10) == few
    assert (len(few), len(more)) == (10, 20)
    assert set(few) < set(more)


def test_a_limit_counts_equal_documents_one_by_one(texts: Path) -> None:
    for path in texts.glob("*.txt"):
        path.write_text("equal")
    assert len(load("texts/*.txt", max_documents=1)) == 1


def test_a_limit_beyond_what_is_there_keeps_all(texts: Path) -> None:
    assert len(load("texts", max_documents=100)) == 4


def test_a_documents_digest_is_that_of_its_text_alone() -> None:
    assert Document("here", "é").digest == Document("there", "é").digest == hashlib.sha256("é".encode()).digest()


def test_a_fingerprint_changes_with_any_text_and_not_with_names() -> None:
    documents = [Document("a", "x"), Document("b", "y")]
    assert fingerprint(documents) == fingerprint([Document("c", "x"), Document("d", "y")])
    assert fingerprint(documents) != fingerprint([Document("a", "x"), Document("b", "z")])
    assert fingerprint(documents) != fingerprint(documents[:1])
