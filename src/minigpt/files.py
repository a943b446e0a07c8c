"""Atomic writes, locks, notes on stderr, and short messages for file errors."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TextIO

from minigpt.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, which refuses to delete an open file: `sweep` needs no lock there
    fcntl = None  # type: ignore[assignment]

# Control characters except line feed and tab, bidirectional overrides, and lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""Names of the temporary files of `write_atomically`."""


def reason(error: Exception) -> str:
    """The system's short message for a file error."""
    if getattr(error, "strerror", None):
        return str(error.strerror).lower()  # type: ignore[attr-defined]
    return (str(error) or type(error).__name__).splitlines()[0]  # torch reports a full disk as a RuntimeError


def listed(names: Iterable[str]) -> str:
    """Quoted names on one line, shortened: the columns of a table without a header are a text."""
    return shorten(", ".join(map(repr, names)), 300, placeholder=" …") or "none"


def visible(text: str) -> str:
    r"""Text with control characters escaped, as \x1b: generated text or a file name may contain terminal commands."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def shown(text: object, stream: TextIO | None = None) -> str:
    """Text for a stream (default stdout): `visible` in a terminal, unchanged in a file or a pipe."""
    stream = stream or sys.stdout
    return visible(str(text)) if stream.isatty() else str(text)


def is_file(path: str | Path) -> bool:
    """Whether a path is a file: False, too, for one that is too long or may not be read, at which Path raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """As `is_file`, of a folder."""
    return os.path.isdir(path)  # noqa: PTH112


def typed(path: str | Path) -> str:
    """A path as it is typed in a shell: quoted where it must be, and never taken for an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def note(text: object) -> None:
    """Print a progress message to stderr, so that stdout has only the requested output."""
    said = shown(text, sys.stderr)
    print(f"\x1b[2m{said}\x1b[0m" if sys.stderr.isatty() else said, file=sys.stderr, flush=True)


def refuse_url(name: str | Path, what: str) -> None:
    """Refuse URLs, also after Path has reduced // to /.

    Args:
        name: the path that the user gave.
        what: the kind of file, for the message.

    Raises:
        UserError: it is a URL, or not a path.
    """
    if not isinstance(name, str | os.PathLike):
        raise UserError(f"{name!r}: expected the path of {what}, as a str or a Path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(name)):
        raise UserError(f"{name}: {what} is opened from disk only; download it first")


def write_atomically(path: str | Path, write: Callable[[Path], object], n_bytes: int = 0) -> None:
    """Write a temporary file beside the target, flush it to disk, rename it: the target is never incomplete.

    Parent folders are created. `sweep` removes the temporary files of killed processes.

    Args:
        path: the target.
        write: called with the path of the temporary file, which exists and is empty.
        n_bytes: expected size, if known; it is checked against the free space first.

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
                os.close(handle)  # Windows cannot rename an open file
                handle = None
            else:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)  # tells `sweep` that this process is alive
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # mkstemp creates files that only their owner can read
            temporary.replace(path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy if the file system has no links.

    Replacing `source` later leaves `target` unchanged.

    Raises:
        UserError: see `write_atomically`.
    """
    temporary = target.with_name(f".{target.name}.new_link.tmp")  # complete at once: needs no unique name
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # POSIX rename does nothing if both are the same file already
        _flush_folder(target.parent)
    except OSError:
        write_atomically(target, lambda path: shutil.copyfile(source, path), source.stat().st_size)


def append(path: str | Path, text: str) -> None:
    """Append text to a file, in UTF-8.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    path = Path(path)
    with _one_line_errors(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def sweep(*folders: Path) -> None:
    """Delete temporary files that killed processes left behind; a live process holds a lock on its own."""
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
    """One process at a time; the system releases the lock of a process that dies.

    Args:
        lock_file: contains the owner's process id and host while locked.
        refusal: owner of the lock -> error message.

    Raises:
        UserError: another process has the lock.
        OSError: the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        lock_file.touch()  # raises the real error if the folder cannot be written
        owner = ""
        with contextlib.suppress(OSError, ValueError):
            owner = lock_file.read_text(encoding="utf-8")
        raise UserError(refusal(f"another process{f' ({owner})' if owner else ''}")) from None
    try:
        with contextlib.suppress(OSError):  # Windows cannot write to a locked file
            lock_file.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows cannot delete an open file
            lock_file.unlink()
        lock.release()


def require_writable(folder: Path, name: str = "probe") -> None:
    """Check before long work that a folder is writable; it is created if missing.

    Args:
        folder: where files will be written.
        name: of one of them, which may be too long for the file system, or not a name at all.

    Raises:
        UserError: it is not writable.
    """
    try:
        _make_folder(folder)
        with tempfile.NamedTemporaryFile(prefix=f".{name}.", suffix=".tmp", dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise UserError(f"{folder}: cannot be written ({reason(error)})") from None


@contextlib.contextmanager
def _one_line_errors(path: Path, n_bytes: int = 0) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a vague RuntimeError; its context has the system's error.
        said = error.__context__
        cause = said if isinstance(error, RuntimeError) and isinstance(said, OSError) else error
        room = ""
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            with contextlib.suppress(OSError):
                needed = f"{n_bytes / 1e6:,.1f} MB are needed, " if n_bytes else ""
                room = f"; {needed}{shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free"
        raise UserError(
            f"{path}: could not be written ({reason(cause)}{room}); an existing file is unchanged"
        ) from error


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, and flush their directory entries to disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: otherwise a rename may be lost in a power cut."""
    with contextlib.suppress(OSError):  # not supported on Windows and on some file systems
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_page(path: Path) -> None:
    """Check before long work that an HTML page can be written; parent folders are created.

    Raises:
        UserError: the path is a folder or an existing file of another kind, or is not writable.
    """
    try:
        if is_folder(path) or str(path) == "-":
            raise UserError(f"{path}: is {'a folder' if is_folder(path) else 'not a file'}; name a file, as page.html")
        if path.exists() and not (path.is_file() and _begins_as_a_page(path)):
            raise UserError(f"{path}: already exists and is not an HTML page; name another file")
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
    """`write_atomically` for a CSV table, in UTF-8; None is an empty field."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    write_atomically(path, write)
