"""A file's content -> the file, complete or not there at all; and what is said where that fails."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from minigpt.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, which refuses to remove a file that somebody has open: that does as well
    fcntl = None  # type: ignore[assignment]

# All but line break and tab, and what turns the direction of writing around.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""The names that `write_atomically` gives to files on their way."""


def reason(error: Exception) -> str:
    """What went wrong with a file, in the few words that the system has for it."""
    if getattr(error, "strerror", None):
        return str(error.strerror).lower()  # type: ignore[attr-defined]
    return (str(error) or type(error).__name__).splitlines()[0]  # torch reports a full disk as a RuntimeError


def visible(text: str) -> str:
    r"""Text whose control characters are shown, as in \x1b: what a model, a text or a file's name holds may be what a
    terminal obeys."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def shown(text: object, stream: TextIO | None = None) -> str:
    """Text for a stream (stdout): `visible` in a terminal, as it is in a file or a pipe."""
    stream = stream or sys.stdout
    return visible(str(text)) if stream.isatty() else str(text)


def note(text: object) -> None:
    """A line on the way, on stderr, so that stdout holds nothing but what was asked for."""
    said = shown(text, sys.stderr)
    print(f"\x1b[2m{said}\x1b[0m" if sys.stderr.isatty() else said, file=sys.stderr, flush=True)


def refuse_url(name: str | Path, what: str) -> None:
    """Refuse what is on another machine; a Path has made one slash of two already.

    Raises:
        UserError: it is a URL, or no path at all.
    """
    if not isinstance(name, str | os.PathLike):
        raise UserError(f"{name!r}: expected the path of {what}, as a str or a Path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(name)):
        raise UserError(f"{name}: {what} is opened from disk only; download it first")


def write_atomically(path: str | Path, write: Callable[[Path], object], n_bytes: int = 0) -> None:
    """Let `write` make a file beside the target, flush it to disk, rename it: the target is old or new, never half.

    Folders on the way are made. What a process leaves that dies meanwhile is taken away by `sweep`.

    Args:
        path: the target.
        write: fills the file whose path it is given.
        n_bytes: how long the file will be, where that is known: without so much room nothing is begun.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    with _one_line_errors(path, n_bytes):
        _make_folder(path.parent)
        if n_bytes and n_bytes > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        handle: int | None
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            if fcntl is None:
                os.close(handle)  # Windows renames nothing that is open
                handle = None
            else:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)  # says that this process lives, for as long as it does
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
            temporary.replace(path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, where the file system has that, else a copy; a new file under the first name changes
    neither.

    Raises:
        UserError: see `write_atomically`.
    """
    temporary = target.with_name(f".{target.name}.new_link.tmp")  # complete as soon as it is there
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # renaming does nothing where both are one file already
        _flush_folder(target.parent)
    except OSError:
        write_atomically(target, lambda path: shutil.copyfile(source, path), source.stat().st_size)


def append(path: str | Path, text: str) -> None:
    """Add a text at the end of a file, in UTF-8.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    path = Path(path)
    with _one_line_errors(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def sweep(*folders: Path) -> None:
    """Remove what `write_atomically` had begun in processes that are dead; a living one holds a lock on its file."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if not _TEMPORARY.fullmatch(path.name):
                continue
            with contextlib.suppress(OSError), path.open("rb+") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


@contextlib.contextmanager
def locked(lock_file: Path, refusal: Callable[[str], str]) -> Iterator[None]:
    """One process at a time; the lock goes when its process does, however that ends.

    Args:
        lock_file: holds the process's number and host meanwhile.
        refusal: who has the lock -> what to say to the user.

    Raises:
        UserError: another process has it.
        OSError: the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        lock_file.touch()  # says why, where it is the folder that takes no file
        owner = ""
        with contextlib.suppress(OSError, ValueError):
            owner = lock_file.read_text(encoding="utf-8")
        raise UserError(refusal(f"another process{f' ({owner})' if owner else ''}")) from None
    try:
        with contextlib.suppress(OSError):  # Windows, where what is locked takes nothing
            lock_file.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows cannot remove what is open
            lock_file.unlink()
        lock.release()


def require_writable(folder: Path) -> None:
    """Find out before long work whether files can be written in a folder; it is made if it is not there.

    Raises:
        UserError: they cannot.
    """
    try:
        _make_folder(folder)
        with tempfile.NamedTemporaryFile(prefix=".probe.", suffix=".tmp", dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)})") from None


@contextlib.contextmanager
def _one_line_errors(path: Path, n_bytes: int = 0) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # What torch's writer says of a full disk is less than what the system said to it.
        said = error.__context__
        cause = said if isinstance(error, RuntimeError) and isinstance(said, OSError) else error
        room = ""
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            with contextlib.suppress(OSError):
                needed = f"{n_bytes / 1e6:,.1f} MB are needed, " if n_bytes else ""
                room = f"; {needed}{shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free"
        raise UserError(
            f"{path}: could not be written ({reason(cause)}{room}); what was there before is untouched"
        ) from error


def _make_folder(folder: Path) -> None:
    """With its name on disk, too."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Until then a renamed file may be gone after a power cut."""
    with contextlib.suppress(OSError):  # Windows opens no folder, and some file systems flush none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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


def write_text(path: str | Path, text: str) -> None:
    """`write_atomically` for a text, in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """`write_atomically` for a table, in UTF-8; None is an empty field."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    write_atomically(path, write)
