"""Walks: links are followed by a folder's name as by a glob, and each file is read once."""

import os
from pathlib import Path

import pytest

from minigpt.data.sources.names import find_source
from minigpt.data.sources.walk import files_under
from minigpt.errors import UserError


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `texts` with two files, and a folder beside it."""
    for name in ("texts/a.txt", "texts/sub/b.txt", "beside/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "texts"


def found(name: str) -> tuple[list[str], tuple[str, ...]]:
    source = find_source(name, Path("cache"))
    return [str(file.path) for file in source.files], source.notes


each_form = pytest.mark.parametrize("name", ["texts", "texts/**/*.txt", "texts/**", "./**/texts/**/*.txt"])


@each_form
def test_a_linked_folder_is_read(name: str, texts: Path) -> None:
    (texts / "linked").symlink_to("../beside")
    assert found(name) == (["texts/a.txt", "texts/linked/c.txt", "texts/sub/b.txt"], ())


@each_form
def test_links_that_lead_back_up_end_there(name: str, texts: Path) -> None:
    for loop in ("up", "again", "sub/up", "sub/down"):  # glob.glob would take 4 ** 40 paths
        (texts / loop).symlink_to(texts)
    assert found(name) == (["texts/a.txt", "texts/sub/b.txt"], ())


@each_form
def test_a_file_with_several_names_is_read_once_by_its_own(name: str, texts: Path) -> None:
    (texts / "0 link.txt").symlink_to("sub/b.txt")
    (texts / "sub" / "link.txt").symlink_to("../a.txt")
    os.link(texts / "sub" / "b.txt", texts / "sub" / "c.txt")
    files, notes = found(name)
    assert files == ["texts/a.txt", "texts/sub/b.txt"]
    assert notes == (
        "left out are 3 duplicates (texts/0 link.txt, texts/sub/c.txt, …), links to or other names of files that are "
        "read",
    )


def test_a_folder_that_is_linked_twice_or_lies_here_too_is_read_once_by_its_own_path(texts: Path) -> None:
    (texts / "0 first").symlink_to("sub")
    (texts / "one").symlink_to("../beside")
    (texts / "two").symlink_to("../beside")
    assert found("texts")[0] == ["texts/a.txt", "texts/one/c.txt", "texts/sub/b.txt"]


def test_a_link_to_nothing_is_left_out_and_named(texts: Path) -> None:
    (texts / "gone.txt").symlink_to("nowhere")
    assert found("texts")[1] == ("left out are 1 link (texts/gone.txt) to nothing",)


def test_hidden_folders_are_left_out_of_folders_and_globs(texts: Path) -> None:
    for folder in (".git", "__pycache__"):
        (texts / folder).mkdir()
        (texts / folder / "x.txt").write_text("x")
    assert found("texts")[0] == found("texts/**/*.txt")[0] == ["texts/a.txt", "texts/sub/b.txt"]
    (texts / "linked").symlink_to(".git")
    assert "texts/linked/x.txt" in found("texts")[0]


def test_a_folder_that_cannot_be_read_is_refused(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def forbidden(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match=r"data\.source: .*sub: permission denied"):
        files_under(texts)
