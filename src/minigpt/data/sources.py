"""A source's name -> documents (texts), in an order that depends on neither the machine nor its file system."""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minigpt.config import UserError

LONG_BYTES = 50_000_000
"""Local text beyond this takes long enough to show a progress bar."""


@dataclass(frozen=True)
class Document:
    """One text and where it comes from."""

    name: str
    text: str

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the text alone: equal texts are equal wherever they lie."""
        return hashlib.sha256(self.text.encode()).digest()


def load_documents(source: str | Sequence[str], cache: Path, max_documents: int | None = None) -> list[Document]:
    """Read every document of a source.

    Args:
        source: `python_stdlib`, or one or several files, folders, globs or URLs of UTF-8 text.
        cache: folder where `datasets` keeps its copies of files and downloads.
        max_documents: keep only this many, an arbitrary but repeatable choice by digest.

    Returns:
        The documents that are not empty, sorted by name.

    Raises:
        UserError: nothing is there, or a file is not UTF-8 text (named, with the byte's position).
    """
    names = [source] if isinstance(source, str) else list(source)
    documents: list[Document] = []
    if "python_stdlib" in names:
        documents += _python_stdlib()
    files = [file for name in names if name != "python_stdlib" for file in _resolve(name)]
    if files:
        documents += _read_with_datasets(files, cache)
    documents = sorted((d for d in documents if d.text.strip()), key=lambda d: (d.name, d.digest))
    if not documents:
        raise UserError(f"data.source={source}: no text in it, all files are empty")
    if max_documents is not None and len(documents) > max_documents:
        # By the digest's end: its beginning decides between train and val, and the choice must not prefer one.
        chosen = sorted(documents, key=lambda d: (d.digest[::-1], d.name))[:max_documents]
        documents = sorted(chosen, key=lambda d: (d.name, d.digest))
    return documents


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 over the documents' digests in order: changes when any text does."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.digest)
    return digest.hexdigest()


def _python_stdlib() -> list[Document]:
    """The running interpreter's own library, without its tests and without installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    documents = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skipped]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            try:
                with tokenize.open(path) as file:  # honours a source file's own encoding line
                    documents.append(Document(path.relative_to(root).as_posix(), file.read()))
            except (SyntaxError, UnicodeDecodeError):
                continue  # a file with a broken encoding on purpose, as lib2to3 has in some versions
    if not documents:
        raise UserError(
            f"data.source=python_stdlib: no .py files under {root}, as in an embedded Python; name files instead"
        )
    return documents


def _resolve(name: str) -> list[str]:
    """One file, folder, glob or URL -> paths and URLs, sorted."""
    if name.startswith(("http://", "https://")):
        return [name]
    path = Path(name).expanduser()
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)) and _is_text(p)]
        if not files:
            raise UserError(f"data.source={name}: the folder holds no text files")
    elif path.is_file():
        files = [path]
    else:
        files = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
        if not files:
            kind = "no file matches the glob" if glob.has_magic(name) else "no such file or folder"
            raise UserError(f"data.source={name}: {kind} (relative to {Path.cwd()})")
    return sorted(str(p) for p in files)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _is_text(path: Path) -> bool:
    """Git's rule: a zero byte near the start means binary. Only folders are filtered; a file named is a file meant."""
    with path.open("rb") as file:
        return b"\0" not in file.read(8192)


def _read_with_datasets(files: list[str], cache: Path) -> list[Document]:
    """Each file or URL is one document."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "data.source: reading files and URLs needs the package 'datasets': pip install datasets"
        ) from None
    urls = [file for file in files if file.startswith(("http://", "https://"))]
    long = urls or sum(Path(file).stat().st_size for file in files) > LONG_BYTES
    (datasets.enable_progress_bars if long else datasets.disable_progress_bars)()
    try:
        # Errors of a download's server come as many types; each file's own trouble is looked for afterwards.
        table = datasets.load_dataset(
            "text",
            name=_state(file for file in files if file not in urls),
            # datasets takes names for patterns; ours are the names of files that are there.
            data_files=[file if file in urls else glob.escape(file) for file in files],
            sample_by="document",
            split="train",
            cache_dir=str(cache / "huggingface"),
        )
    except Exception as error:
        for file in files:
            _explain_unreadable(file)
        reason = f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}".splitlines()[0]
        raise UserError(f"data.source={', '.join(files[:3])}: could not be loaded ({reason})") from None
    return [Document(file, text) for file, text in zip(files, table["text"], strict=True)]


def _state(files: Iterable[str]) -> str:
    """Changes whenever a file is written. datasets itself goes by the time of change, which copying may preserve."""
    stats = [(file, Path(file).stat()) for file in files]
    key = repr([(file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for file, stat in stats])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _explain_unreadable(file: str) -> None:
    """Raise for the first thing that is wrong with a local file, if anything is."""
    if file.startswith(("http://", "https://")):
        return
    try:
        Path(file).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.source: {file} is not UTF-8 text (byte {error.start}: 0x{error.object[error.start]:02x}); "
            "convert it, for example with iconv -t utf-8"
        ) from None
    except OSError as error:
        raise UserError(f"data.source: {file}: {(error.strerror or str(error)).lower()}") from None
