"""A folder or a glob -> its files, links followed, each file once however many names it has."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import reason


def files_under(top: Path) -> list[Path]:
    """The files of a folder and of the folders in it, also those behind links; not hidden ones and __pycache__.

    Raises:
        UserError: a folder cannot be read.
    """
    return sorted(path for _, files in _walk(top) for path in files)


def matches(pattern: Path) -> Iterator[Path]:
    """What matches a glob, whose `**` stands for the folders that `files_under` reads.

    `glob` itself follows links that lead back up, 40 times each.
    """
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    place = pattern.parts.index("**")
    rest = Path(*pattern.parts[place + 1 :] or "*")
    for top in matches(Path(*pattern.parts[:place])) if place else [Path()]:
        if top.is_dir():
            for folder, _ in _walk(top):
                yield from matches(Path(glob.escape(str(folder))) / rest)


def each_once(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Files without those that are the same file again (links, hard links, a glob's second match); and these, sorted.

    A file goes by its own path rather than a link's.
    """
    first: list[Path] = []
    again: list[Path] = []
    seen = set()
    for path in sorted(set(paths), key=lambda path: (path.is_symlink(), str(path))):
        identity = identify(path)
        (again if identity in seen else first).append(path)
        seen.add(identity)
    return sorted(first, key=str), sorted(again, key=str)


def identify(path: Path) -> object:
    """What is equal for two names of one file or folder."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"data.source: {path}: {reason(error)}") from None
    # A file system without inodes has zeros in their place.
    return (stat.st_dev, stat.st_ino) if stat.st_ino else path.resolve()


def is_hidden(path: Path) -> bool:
    """Whether a file's own name says that it is not meant."""
    return path.name.startswith(".") or path.name == "__pycache__"


def _walk(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder once, with its files. Links are followed last: a folder goes by its own path where it has one."""
    seen, links = set(), [top]
    while links:
        waiting, links = sorted(links, reverse=True), []
        while waiting:
            folder = waiting.pop()
            if (identity := identify(folder)) in seen:
                continue
            seen.add(identity)
            files = []
            try:
                with os.scandir(folder) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                        path = folder / entry.name
                        if is_hidden(path):
                            continue
                        if not entry.is_dir():
                            files.append(path)
                        else:
                            (links if entry.is_symlink() else waiting).append(path)
            except OSError as error:
                raise UserError(f"data.source: {folder}: {reason(error)}") from None
            yield folder, files
