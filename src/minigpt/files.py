"""A file's content -> the file, complete or not there at all; and what is said where that fails."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from minigpt.config import UserError


def reason(error: Exception) -> str:
    """What went wrong with a file, in the few words that the system has for it."""
    if getattr(error, "strerror", None):
        return str(error.strerror).lower()  # type: ignore[attr-defined]
    return (str(error) or type(error).__name__).splitlines()[0]  # torch reports a full disk as a RuntimeError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside the target, flush it to disk, rename it: the target is old or new, never half.

    Folders on the way are made.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: could not be written ({reason(error)}); what was there before is untouched"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def require_page(path: Path) -> None:
    """Find out before long work whether an HTML page can be written at the end; folders on the way are made.

    Raises:
        UserError: it is a folder or another file that is there already, or lies where nothing can be written.
    """
    try:
        if path.is_dir() or str(path) == "-":
            raise UserError(f"{path}: is {'a folder' if path.is_dir() else 'no file'}; name a file, as page.html")
        if path.exists() and not (path.is_file() and _begins_as_a_page(path)):
            raise UserError(f"{path}: is there already and is no HTML page; name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)})") from None


def _begins_as_a_page(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(15)
    return not begin or begin.lower() == b"<!doctype html>"


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for a text, in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """`write_atomically` for a table, in UTF-8; None is an empty field."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    write_atomically(path, write)
