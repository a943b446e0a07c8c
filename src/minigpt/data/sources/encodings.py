"""Detection of encodings and binary formats, for errors about files that are not text in data.encoding."""

from __future__ import annotations

import codecs
import shlex
from collections.abc import Iterator
from pathlib import Path

HEAD = 1 << 16
"""Bytes at the start of a file used for detection."""
_SNIPPET = 40
"""Decoded characters shown, so that the user can judge the guess."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32", "le"),  # before UTF-16, whose mark is its first half
    (codecs.BOM_UTF32_BE, "utf-32", "be"),
    (codecs.BOM_UTF16_LE, "utf-16", "le"),
    (codecs.BOM_UTF16_BE, "utf-16", "be"),
    (codecs.BOM_UTF8, "utf-8", "sig"),
)
_COMMON = (
    *("cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "iso8859_2"),
    *("iso8859_15", "shift_jis", "cp932", "euc_jp", "gb18030", "big5", "cp949", "mac_roman", "cp437", "cp850"),
    *("cp866", "tis_620", "utf_16_le", "utf_16_be"),
)
"""Encodings to guess from, the most common first: it wins ties."""

_PANDOC = "convert it with `pandoc -t plain {path} -o {text}`"
_UNPACK = "unpack it and name the folder"
_RENAME = "rename it to end in {ending}"
_WORD = ("a Word document", _PANDOC)
_EXCEL = ("an Excel table", "save it as CSV in UTF-8")
_SLIDES = ("a PowerPoint document", "save it as text")
_ODT = ("an OpenDocument text", _PANDOC)
_EPUB = ("an EPUB book", _PANDOC)
_PDF = ("a PDF document", "convert it with `pdftotext {path} {text}`")
_RTF = ("an RTF document", _PANDOC)
_OFFICE = ("an Office document", "convert it with `soffice --headless --convert-to txt:Text {path}`")
_MOBI = ("a Kindle book", "convert it with `ebook-convert {path} {text}`")
_ZIP, _TAR, _7Z, _RAR = ((f"a {name} archive", _UNPACK) for name in ("zip", "tar", "7z", "RAR"))
_LFS = ("a pointer of Git LFS, not the file itself", "fetch the file with `git lfs pull`")

_MAGIC = (
    (0, b"%PDF-", _PDF),
    (0, b"{\\rtf", _RTF),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OFFICE),
    (60, b"BOOKMOBI", _MOBI),
    (257, b"ustar", _TAR),
    (0, b"7z\xbc\xaf\x27\x1c", _7Z),
    (0, b"Rar!\x1a\x07", _RAR),
    (0, b"version https://git-lfs.github.com/spec/", _LFS),
    *(
        (0, magic, (f"compressed ({ending})", _RENAME.format(ending=ending)))
        for magic, ending in (
            (b"\x1f\x8b\x08", ".gz"),
            (b"\xfd7zXZ\0", ".xz"),
            (b"\x28\xb5\x2f\xfd", ".zst"),
        )
    ),
    (4, b"1AY&SY", ("compressed (.bz2)", _RENAME.format(ending=".bz2"))),
    (0, b"PAR1\x15", ("a Parquet table", _RENAME.format(ending=".parquet"))),
    (0, b"ARROW1\0\0", ("an Arrow table", _RENAME.format(ending=".arrow"))),
)
"""(Offset, bytes, format): https://en.wikipedia.org/wiki/List_of_file_signatures."""
_INSIDE_ZIP = (
    (b"mimetypeapplication/epub+zip", _EPUB),
    (b"mimetypeapplication/vnd.oasis.opendocument.text", _ODT),
    (b"word/", _WORD),
    (b"xl/", _EXCEL),
    (b"ppt/", _SLIDES),
)
_ENDINGS = {
    ".pdf": _PDF, ".docx": _WORD, ".xlsx": _EXCEL, ".pptx": _SLIDES, ".odt": _ODT, ".epub": _EPUB, ".doc": _OFFICE,
    ".mobi": _MOBI, ".zip": _ZIP, ".tar": _TAR, ".tgz": _TAR, ".7z": _7Z, ".rar": _RAR,
}  # fmt: skip


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


def lfs(head: bytes) -> str | None:
    """What to do with a Git LFS pointer; None for other files."""
    magic = next(magic for _, magic, found in _MAGIC if found is _LFS)
    return f"is {_LFS[0]}: {_LFS[1]}" if head.startswith(magic) else None


def _format(head: bytes, path: Path) -> tuple[str, str] | None:
    by_name = _ENDINGS.get(path.suffix.lower())
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        inside = next((found for mark, found in _INSIDE_ZIP if mark in head), None)
        return inside or by_name or _ZIP
    for place, magic, found in _MAGIC:
        if head.startswith(magic, place):
            return _TAR if path.suffix == ".tgz" else found
    if by_name is not None and not is_utf8(head):
        return by_name
    return None


def is_utf8(head: bytes) -> bool:
    """Whether a file's first bytes are UTF-8; the last character may be cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def other_unicode(head: bytes, encoding: str) -> str | None:
    """What to do with a file in another Unicode encoding than the given one; None if nothing indicates that.

    Without a byte-order mark, UTF-16 and UTF-32 are recognised by zero bytes: most such files are valid UTF-8 or cp1252
    too, so decoding alone does not tell.

    Args:
        head: its first bytes, decompressed.
        encoding: the one to read it with.
    """
    wanted = codecs.lookup(encoding).name
    for mark, name, order in _MARKS:
        if head.startswith(mark):
            fits = wanted in {name, f"{name}-{order}"}
            return None if fits else f"is {name.upper()} by its byte-order mark: give --data.encoding {name}"
    if found := _without_mark(head):
        if wanted == found:
            return None
        return f"looks like {found.upper()} without a byte-order mark: give --data.encoding {found}"
    if wanted in {"utf-16", "utf-32"} and head:
        return f"has no byte-order mark, which {wanted} needs: give another data.encoding, such as utf-8 or {wanted}-le"
    return None


def is_wide(head: bytes) -> bool:
    """Whether bytes are UTF-16 or UTF-32, in which zero bytes do not indicate a binary file."""
    return any(head.startswith(mark) for mark, name, _ in _MARKS if name != "utf-8") or _without_mark(head) is not None


def _without_mark(head: bytes) -> str | None:
    for name in ("utf-32-le", "utf-32-be"):
        text = _decoded(head[: len(head) // 4 * 4], name)
        if text and text.count("\0") < len(text) / 2:
            return name
    # In alphabetic scripts the high byte of a UTF-16 unit is below 16, and zero for spaces; the low byte is arbitrary.
    whole = head[: len(head) // 2 * 2]
    for upper, lower, name in ((whole[1::2], whole[::2], "utf-16-le"), (whole[::2], whole[1::2], "utf-16-be")):
        is_upper = 0 in upper and _share(upper, 16) > 0.8 and _share(lower, 9) < 0.5
        if is_upper and _decoded(whole, name):
            return name
    return None


def _share(content: bytes, limit: int) -> float:
    """Share of bytes below a limit."""
    return sum(map(content.count, range(limit))) / max(1, len(content))


def likely_encoding(sample: bytes, place: int, encoding: str) -> str:
    """What to do with text that does not decode: the likely encoding, with a few decoded words.

    Args:
        sample: bytes of the file.
        place: offset in the sample of the first wrong byte.
        encoding: the one that failed.
    """
    text = sample.decode("utf-8", "replace").rstrip("\ufffd")  # the sample may end within a character
    n_wrong = text.count("\ufffd")
    n_right = sum(character > "\x7f" for character in text) - n_wrong
    if n_right > 2 * n_wrong:
        if codecs.lookup(encoding).name == "utf-8":
            return "it is UTF-8 but for a few bytes: set data.encoding_errors to replace or skip"
        likely: str | None = "utf-8"
    else:
        likely = _likely(sample)
    if likely is None:
        return "give its encoding as data.encoding, such as cp1252, or set data.encoding_errors to replace or skip"
    shown = _snippet(sample, place, likely)
    return (
        f"it is likely {likely}, in which it reads {shown!r}: give --data.encoding {likely}, or another encoding, or "
        "set data.encoding_errors to replace or skip"
    )


def _likely(sample: bytes) -> str | None:
    import charset_normalizer

    lines = sample.split(b"\n")
    if len(lines) > 2:
        lines = lines[1:-1]  # the first and last may be cut inside a character
    # ASCII lines fit every encoding, and many of them drown the evidence.
    telling = b"\n".join(line for line in lines if not line.isascii()) or sample
    found = list(charset_normalizer.from_bytes(telling, cp_isolation=list(_COMMON)))
    if not found:
        return None
    best = found[0]
    good = {best.encoding, *best.could_be_from_charset}
    # charset_normalizer may rank cp1250 and others above an equally good cp1252, which is far more common.
    for match in found:
        if match.chaos <= best.chaos + 0.01 and match.coherence >= best.coherence - 0.1:
            good |= {"cp1252"} & {match.encoding, *match.could_be_from_charset}
    return next((name for name in _COMMON if name in good), best.encoding)


def _snippet(sample: bytes, place: int, encoding: str) -> str:
    """Decoded characters around the wrong byte."""
    before = sample[:place].decode(encoding, "replace")[-_SNIPPET // 2 :]
    after = sample[place : place + 8 * _SNIPPET].decode(encoding, "replace")[: _SNIPPET // 2]
    return " ".join((before + after).split())


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return None


class TextDecoder:
    """Decodes a file chunk by chunk, and records where the first wrong byte is."""

    def __init__(self, encoding: str, errors: str = "strict") -> None:
        """Args: encoding, a Python codec; errors, `strict` or `replace`."""
        self.encoding = encoding
        self.bad_byte: int | None = None
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._n_bytes = 0

    def decode(self, chunk: bytes, final: bool = False) -> str:
        """Decode the next chunk.

        Raises:
            UnicodeError: it is not in the encoding; `bad_byte` is the offset in the file.
        """
        state = self._decoder.getstate()
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeError as error:
            self.bad_byte = self._n_bytes - len(state[0]) + getattr(error, "start", 0)
            self._decoder.setstate(state)
            raise
        self._n_bytes += len(chunk)
        return text

    def lenient(self) -> Iterator[codecs.IncrementalDecoder]:
        """Two decoders that continue from here: one replaces wrong bytes by U+FFFD, the other drops them."""
        for errors in ("replace", "ignore"):
            decoder = codecs.getincrementaldecoder(self.encoding)(errors)
            decoder.setstate(self._decoder.getstate())
            yield decoder
