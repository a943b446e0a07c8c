"""A folder or a glob -> its files: links are followed, and each file appears once."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from minigpt.data.sources.messages import unreadable


def files_under(top: Path) -> list[Path]:
    """The files of a folder and its subfolders, following links; without hidden files and __pycache__.

    Raises:
        UserError: a folder cannot be read.
    """
    return sorted(path for _, files in _walk(top) for path in files)


def glob_paths(pattern: Path) -> Iterator[Path]:
    """Paths that match a glob, in which `**` covers the folders that `files_under` reads.

    `glob` itself follows a link to a parent folder 40 times.
    """
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    place = pattern.parts.index("**")
    rest = Path(*pattern.parts[place + 1 :] or "*")
    for top in glob_paths(Path(*pattern.parts[:place])) if place else [Path()]:
        if top.is_dir():
            for folder, _ in _walk(top):
                yield from glob_paths(Path(glob.escape(str(folder))) / rest)


def each_once(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Files without duplicates (links, hard links, a glob's second match), and the duplicates, both sorted.

    A regular path is preferred to a link.
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
    """A key that is equal for two names of one file or folder: device and inode."""
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    # A file system without inodes reports 0.
    return (stat.st_dev, stat.st_ino) if stat.st_ino else path.resolve()


def _walk(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder once, with its files. Links are followed last, so that a folder's regular path is preferred."""
    seen, links = set(), [top]
    while links:
        waiting, links = sorted(links, reverse=True), []
        while waiting:
            folder = waiting.pop()
            if (identity := identify(folder)) in seen:
                continue
            seen.add(identity)
            files: list[Path] = []
            try:
                with os.scandir(folder) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                        if entry.name.startswith(".") or entry.name == "__pycache__":
                            continue
                        found = files if not entry.is_dir() else links if entry.is_symlink() else waiting
                        found.append(folder / entry.name)
            except OSError as error:
                raise unreadable(folder, error) from None
            yield folder, files
