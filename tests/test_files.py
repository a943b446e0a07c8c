"""Writing a file: the old one or the new one, whatever happens in between."""

import errno
import stat
from pathlib import Path

import pytest

from minigpt.errors import UserError
from minigpt.files import require_page, write_atomically


def test_a_new_file_holds_what_was_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "file.txt").read_text() == "new"


def test_an_old_file_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("old and longer")
    write_atomically(tmp_path / "file.txt", lambda path: path.write_text("new"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "new")]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "new"


def test_a_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file.txt", lambda path: path.write_text("new"))
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o644


def test_until_the_writing_is_done_the_old_file_is_there(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("new")
        assert target.read_text() == "old"
        assert path.parent == target.parent  # renaming is atomic within a file system only

    write_atomically(target, write)
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device"),
        (RuntimeError("PytorchStreamWriter failed writing file\nat some line of C++"), "PytorchStreamWriter failed"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_file_alone(error: Exception, reason: str, tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half of the n")
        raise error

    with pytest.raises(UserError) as caught:
        write_atomically(target, write)
    message = str(caught.value)
    assert message.startswith(f"{target}: could not be written ({reason}")
    assert "is unchanged" in message
    assert "\n" not in message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "old")]


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), KeyboardInterrupt()])
def test_any_other_error_passes_and_leaves_the_old_file_alone(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(target, write)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "old")]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        write_atomically(tmp_path / "file" / "inner.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_whether_a_page_can_be_written_is_known_before_and_leaves_nothing(tmp_path: Path) -> None:
    require_page(tmp_path / "new" / "page.html")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "file").write_text("kept")
    (tmp_path / "old.html").write_text("<!DOCTYPE html> kept")
    require_page(tmp_path / "old.html")
    assert (tmp_path / "old.html").read_text() == "<!DOCTYPE html> kept"
    for path, words in (
        (tmp_path / "file", "already exists and is not an HTML page; name another file"),
        (Path("/dev/null"), "already exists and is not an HTML page"),
        (Path("-"), "is not a file; name a file"),
        (tmp_path / ("x" * 251), "cannot be written"),
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "file" / "page.html", "cannot be written"),
        (Path("/proc/page.html"), "cannot be written"),  # not even by root
    ):
        with pytest.raises(UserError, match=words):
            require_page(path)
