"""What a file is by its first bytes: for advice on files that are not text, and for standard input."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

_PANDOC = "convert it with `pandoc -t plain {path} -o {text}`"
_UNPACK = "unpack it and name the folder"
_ADVICE = {
    ".pdf": ("a PDF document", "convert it with `pdftotext {path} {text}`"),
    ".docx": ("a Word document", _PANDOC),
    ".xlsx": ("an Excel table", "save it as CSV in UTF-8"),
    ".pptx": ("a PowerPoint document", "save it as text"),
    ".odt": ("an OpenDocument text", _PANDOC),
    ".epub": ("an EPUB book", _PANDOC),
    ".doc": ("an Office document", "convert it with `soffice --headless --convert-to txt:Text {path}`"),
    ".mobi": ("a Kindle book", "convert it with `ebook-convert {path} {text}`"),
    ".zip": ("a zip archive", _UNPACK),
    ".tar": ("a tar archive", _UNPACK),
    ".tgz": ("a tar archive", _UNPACK),
    ".7z": ("a 7z archive", _UNPACK),
    ".rar": ("a RAR archive", _UNPACK),
    "rtf": ("an RTF document", _PANDOC),
    "lfs": ("a pointer of Git LFS, not the file itself", "fetch the file with `git lfs pull`"),
}
"""Ending of a file, or another key, -> what it is, and what to do."""
_LFS = b"version https://git-lfs.github.com/spec/"
_SIGNATURES = (
    (0, b"%PDF-", ".pdf"),
    (0, b"{\\rtf", "rtf"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ".doc"),
    (60, b"BOOKMOBI", ".mobi"),
    (257, b"ustar", ".tar"),
    (0, b"7z\xbc\xaf\x27\x1c", ".7z"),
    (0, b"Rar!\x1a\x07", ".rar"),
    (0, _LFS, "lfs"),
)
"""(Offset, bytes, key of _ADVICE): https://en.wikipedia.org/wiki/List_of_file_signatures."""
_READ_BY_ENDING = (
    (0, b"\x1f\x8b\x08", ".gz"),
    (0, b"\xfd7zXZ\0", ".xz"),
    (0, b"\x28\xb5\x2f\xfd", ".zst"),
    (4, b"1AY&SY", ".bz2"),
    (0, b"PAR1\x15", ".parquet"),
    (0, b"ARROW1\0\0", ".arrow"),
)
"""Formats that are read if the file's name has this ending."""
_INSIDE_ZIP = (
    (b"mimetypeapplication/epub+zip", ".epub"),
    (b"mimetypeapplication/vnd.oasis.opendocument.text", ".odt"),
    (b"word/", ".docx"),
    (b"xl/", ".xlsx"),
    (b"ppt/", ".pptx"),
)


def other_format(head: bytes, path: Path) -> str | None:
    """The format of a file that is not plain text, and how to convert it; None if it may be text.

    Args:
        head: its first bytes, decompressed.
        path: its name, used if the bytes are neither text nor a known format.
    """
    found = _format(head, path)
    if found is None:
        return None
    text = path.with_suffix(".txt") if path.suffix != ".txt" else path.with_suffix(".plain.txt")
    return f"is {found[0]}: " + found[1].format(path=shlex.quote(str(path)), text=shlex.quote(str(text)))


def _format(head: bytes, path: Path) -> tuple[str, str] | None:
    by_name = _ADVICE.get(path.suffix.lower())
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        inside = next((_ADVICE[key] for mark, key in _INSIDE_ZIP if mark in head), None)
        return inside or by_name or _ADVICE[".zip"]
    if path.suffix == ".tgz" and head.startswith(b"\x1f\x8b"):
        return by_name
    for offset, signature, key in _SIGNATURES:
        if head.startswith(signature, offset):
            return _ADVICE[key]
    if ending := ending_of(head):
        named = {".parquet": "a Parquet table", ".arrow": "an Arrow table"}
        return named.get(ending, f"compressed ({ending})"), f"rename it to end in {ending}"
    return by_name if by_name is not None and not is_utf8(head) else None


def ending_of(head: bytes) -> str:
    """The ending under which compressed text, Parquet and Arrow would be read; empty for anything else."""
    return next((ending for offset, mark, ending in _READ_BY_ENDING if head.startswith(mark, offset)), "")


def lfs(head: bytes) -> str | None:
    """What to do with a Git LFS pointer; None for other files."""
    return "is {}: {}".format(*_ADVICE["lfs"]) if head.startswith(_LFS) else None


def is_utf8(head: bytes) -> bool:
    """Whether a file's first bytes are UTF-8; the last character may be cut off."""
    return decoded(head, "utf-8") is not None


def decoded(head: bytes, encoding: str) -> str | None:
    """First bytes as text, without a character that is cut off at the end; None if they are not in the encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None
