"""A name in data.source -> its files, in an order independent of machine and file system."""

from __future__ import annotations

import difflib
import glob
import os
import re
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minigpt.data.sources.encodings import is_wide
from minigpt.data.sources.formats import other_format
from minigpt.data.sources.layouts import chosen_split, saved_files, snapshot
from minigpt.data.sources.messages import unreadable
from minigpt.data.sources.walk import each_once, files_under, glob_paths
from minigpt.data.synthetic.texts import SYNTHETIC
from minigpt.errors import UserError
from minigpt.files import reason

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
TABLES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Ending -> kind of files with one document per row; any other file is one document."""
NEVER_PLAIN_TEXT = {"parquet", "arrow"}
PLAIN_TEXT = {"text", "jsonl", "csv", "tsv"}
"""Kinds of files that have an encoding."""
MANIFEST, TOKENIZER, STARTS = "manifest.json", "minigpt_tokenizer.json", "train.documents.npy"
"""Names of files in every prepared folder."""
OLD_TOKENIZER = "tokenizer.json"
"""TOKENIZER in folders of earlier versions; the name suggested Hugging Face's format."""
KEPT = ("downloads", "huggingface", "stdin", "streams")
"""Folders in data.dir for downloads and other fetched text."""
MOST_SHOWN = 100
"""Characters shown of an invalid name."""
SYNTHETIC_DOCUMENTS = 20_000
"""Documents of a synthetic source without data.max_documents."""


@dataclass(frozen=True)
class File:
    """A local file and its kind: text, python, jsonl, csv, tsv, parquet or arrow."""

    path: Path
    kind: str
    compression: str | None = None
    """`.gz`, `.zst`, `.bz2`, `.xz`, or None."""
    encoding: str = "utf-8"
    """Codec, for kinds in PLAIN_TEXT."""


@dataclass(frozen=True)
class Source:
    """One entry of data.source: files, or a synthetic generator."""

    name: str
    files: tuple[File, ...] = ()
    synthetic: str | None = None
    """Name in the table of synthetic sources."""
    seed: int = 0
    """Seed of a synthetic source."""
    notes: tuple[str, ...] = ()
    """Notes for the user on files taken or left out, a clause each."""


def find_source(name: str, cache: Path, encoding: str = "utf-8") -> Source:
    """The source behind a name; hub datasets and URLs are downloaded.

    Args:
        name: one entry of data.source.
        cache: folder for downloads.
        encoding: codec of its text files.

    Raises:
        UserError: the source does not exist or cannot be read.
    """
    source = _find(name, cache)
    files = (replace(file, encoding=encoding) if file.kind in PLAIN_TEXT else file for file in source.files)
    return replace(source, files=tuple(files))


def _find(name: str, cache: Path) -> Source:
    if name == "python_stdlib":
        return _python_stdlib()
    if match := re.fullmatch(rf"({'|'.join(SYNTHETIC)})(?::(\d{{1,9}}))?", name):
        return Source(name, synthetic=match[1], seed=int(match[2] or 0))
    if name == "-":
        raise UserError("data.source=-: call keep_stdin first, which reads standard input")
    if name.startswith("hf:"):
        from minigpt.data.sources.hub import download_dataset  # heavy, and only needed here

        return Source(name, tuple(File(path, "arrow") for path in download_dataset(name, cache)))
    if name.startswith(("http://", "https://")):
        from minigpt.data.sources.hub import download_file

        return Source(name, (_file(Path(name.split("?")[0]), lies_at=download_file(name, cache)),))
    return _local_files(name, cache)


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` made a folder; manifest.json alone is too common a name to tell."""
    try:
        folder = local_path(str(folder))
        return (folder / MANIFEST).is_file() and any(
            (folder / name).is_file() for name in (TOKENIZER, OLD_TOKENIZER, STARTS)
        )
    except (OSError, RuntimeError):  # a name that is too long, or ~ of an unknown user
        return False


def _python_stdlib() -> Source:
    """The running interpreter's standard library, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skipped]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise UserError(
            f"data.source=python_stdlib: no .py files under {root}, as in an embedded Python; name files instead"
        )
    files.sort(key=lambda path: path.relative_to(root).as_posix())
    return Source("python_stdlib", tuple(File(path, "python") for path in files))


def _local_files(name: str, cache: Path) -> Source:
    """One file, folder or glob -> files, sorted by path."""
    try:
        path = local_path(name)
        is_folder = path.is_dir()
        found = [p for p in ([path] if path.exists() else glob_paths(_pattern(path))) if not p.is_dir()]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"data.source={name[:MOST_SHOWN]}: {reason(error)}") from None
    except (RuntimeError, ValueError) as error:  # ~ of an unknown user; a null character
        raise UserError(f"data.source={name}: not a valid file name ({error})") from None
    if is_folder:
        return _folder(name, path, cache)
    if special := next((p for p in found if not p.is_file()), None):
        raise UserError(
            f"data.source={name}: {special} is not a regular file, and text is read more than once; "
            "pipe it in with --data.source -"
        )
    if not found:
        kind = "no file matches the glob" if glob.has_magic(name) else "no such file or folder"
        raise UserError(f"data.source={name}: {kind} (relative to {Path.cwd()}){_hint(name)}")
    once, again = each_once(found)
    return Source(name, tuple(map(_file, once)), notes=_link_notes(again, ()))


def local_path(name: str) -> Path:
    """The path of a file or folder; a leading ~ is the home folder unless a file has that literal name."""
    path = Path(name)
    return path if path.exists() else path.expanduser()


def _pattern(path: Path) -> Path:
    """The glob of a path, with its existing folders escaped: their names may contain [, ? or *."""
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    return Path(glob.escape(str(there))) / path.relative_to(there)


def _hint(name: str) -> str:
    """A suggestion for a name that does not exist."""
    if "://" in name:
        return "; only http://, https:// and hf: are downloaded"
    if close := difflib.get_close_matches(name, ["python_stdlib", *SYNTHETIC], n=1):
        return f": did you mean {close[0]}?"
    return f"; a hub dataset is written hf:{name}" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""


def _folder(name: str, top: Path, cache: Path) -> Source:
    """Every text file of a folder; or its tables, if it has only tables; with splits, those of train.

    Files that minigpt wrote are excluded: data.dir and run folders may lie in the folder of the texts.
    """
    if is_prepared(top):
        raise UserError(f"data.source={name}: is a prepared folder, with a val split: it can only be the one source")
    folder = snapshot(top)
    entries = files_under(folder)
    inside = _without_our_own([p for p in entries if p.is_file()], cache)
    tables = [p for p in inside if _kind(p) != "text" and not _describes(p)]
    texts = [p for p in inside if _kind(p) == "text" and not _describes(p) and (_compressed(p) or _is_text(p))]
    notes: tuple[str, ...] = ()
    kind = None
    if saved := saved_files(folder):
        chosen = saved
    elif split := chosen_split(name, folder, tables, texts):
        chosen, notes = split[0], (split[1],)
    elif tables and not texts:
        chosen = tables
    elif strict := [p for p in tables if _kind(p) in NEVER_PLAIN_TEXT or ".jsonl" in p.suffixes]:
        raise UserError(
            f"data.source={name}: the folder holds tables ({strict[0].name}) and plain text ({texts[0].name}); "
            f"name one of them, for example {folder}/**/*{strict[0].suffix}"
        )
    else:  # .csv and .json files among texts are texts too
        chosen, kind = [p for p in inside if _compressed(p) or _is_text(p)], "text"
        notes = _format_notes(set(inside) - set(chosen))
    if not chosen:
        raise UserError(f"data.source={name}: the folder holds no text files" + "".join(f"; {n}" for n in notes))
    once, again = each_once(chosen)
    notes += _link_notes(again, [p for p in entries if p.is_symlink() and not p.exists()])
    return Source(name, tuple(_file(p, kind=kind) for p in once), notes=notes)


def _without_our_own(files: Sequence[Path], cache: Path) -> list[Path]:
    """The files that are not in folders of downloads, prepared text or runs."""
    own = {cache.absolute() / kept for kept in KEPT}
    own |= {p.parent.absolute() for p in files if p.name == MANIFEST and is_prepared(p.parent)}
    own |= {p.parent.absolute() for p in files if p.name == "config.yaml" and (p.parent / "metrics.csv").is_file()}
    return [p for p in files if not own.intersection(p.absolute().parents)]


def _link_notes(again: Sequence[Path], nowhere: Sequence[Path]) -> tuple[str, ...]:
    """Notes on duplicate and broken links that are left out."""
    notes = []
    if again:
        notes.append(f"left out are {_counted(again, 'duplicate')}, links to or other names of files that are read")
    if nowhere:
        notes.append(f"left out are {_counted(nowhere, 'link')} to nothing")
    return tuple(notes)


def _format_notes(paths: Iterable[Path]) -> tuple[str, ...]:
    """Notes on documents and archives that are left out of a folder, as the user may want their text."""
    found = {path: what for path in sorted(paths) if (what := other_format(_head(path), path))}
    first = next(iter(found.items()), None)
    return (f"left out are {_counted(list(found), 'file')} of other formats: {first[0]} {first[1]}",) if first else ()


def _counted(paths: Sequence[Path], what: str) -> str:
    """3 files (a, b, …)."""
    shown = ", ".join(str(path) for path in paths[:2]) + (", …" if len(paths) > 2 else "")
    return f"{len(paths)} {what}{'' if len(paths) == 1 else 's'} ({shown})"


def _file(path: Path, *, kind: str | None = None, lies_at: Path | None = None) -> File:
    """A file of the kind that its name says; a download is stored under another name, `lies_at`."""
    kind = kind or _kind(path)
    compressed = _compressed(path) and kind not in NEVER_PLAIN_TEXT
    return File(lies_at or path, kind, path.suffix.lower() if compressed else None)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return TABLES.get(suffixes[-1], "text") if suffixes else "text"


def _compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def _describes(path: Path) -> bool:
    """Whether a file is metadata of the data beside it, as `datasets` and the hub write it."""
    written = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
    return path.stem.upper() in {"README", "LICENSE"} or path.name in written


def _is_text(path: Path) -> bool:
    """Git's rule: a zero byte near the start means binary, except in UTF-16 and UTF-32; known formats are binary too.

    Applied to files of folders only; a file named by the user is always read.
    """
    head = _head(path)
    return other_format(head, path) is None and (b"\0" not in head or is_wide(head))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8192)
    except OSError as error:
        raise unreadable(path, error) from None
