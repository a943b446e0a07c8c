"""Decompression of files in bounded memory, and cached scans: checksum, length and wrong encoding of each file."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import zstandard

from minigpt.data.sources.encodings import HEAD, TextDecoder, likely_encoding, other_unicode
from minigpt.data.sources.formats import lfs, other_format
from minigpt.data.sources.messages import unreadable
from minigpt.data.sources.names import PLAIN_TEXT, File
from minigpt.data.sources.separators import Splitter
from minigpt.errors import UserError
from minigpt.files import write_text

CHUNK = 1 << 20
"""Bytes read at a time."""
MOST_EXPANSION = 100
"""Limit of decompressed to compressed length: text compresses tenfold, decompression bombs a thousandfold."""
ALWAYS_ALLOWED = 64 << 20
"""Bytes that even the smallest file may decompress to."""
_ZSTANDARD_STEP = 1 << 10
"""Compressed bytes read at a time: four of them may decompress to a block of 128 KB."""


@dataclass(frozen=True)
class Scan:
    """Result of reading a whole file once."""

    sha256: str
    """Checksum of the file as stored, not decompressed."""
    n_bytes: int
    """Length after decompression."""
    bad_byte: int | None
    """Offset, after decompression, of the first byte that is wrong in its encoding; None if all are right."""
    n_replaced: int
    """Characters that data.encoding_errors=replace turns into U+FFFD."""
    other: str | None
    """Another format or encoding recognised by its first bytes, and what to do with it; else None."""
    is_utf8: bool
    """Whether a file of another encoding is valid UTF-8 and not just ASCII."""
    n_separators: int
    """How often a text file holds the separator of documents that is recognised by default."""


SPLIT_CHARACTERS = 1 << 20
_SCAN_FIELDS = {field.name for field in fields(Scan)}


class Scans:
    """Cache of file scans on disk: a file is read again only when it has changed.

    Changed means another length, mtime, ctime or inode, as in git's index; copying cannot preserve ctime. A lost or
    damaged cache only costs another scan.
    """

    def __init__(self, memory: Path, *, read_only: bool = False) -> None:
        """Args: memory, the cache file; read_only, never to write it."""
        self.memory, self.read_only = memory, read_only
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            known = None
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}

    def of(self, files: Iterable[File]) -> list[Scan]:
        """A scan of each file, from the cache if the file is unchanged.

        Raises:
            UserError: a file cannot be read, or decompresses to more than MOST_EXPANSION allows.
        """
        scans, changed = [], False
        for file in files:
            state = _state(file)
            known = self._known.get(str(file.path.absolute()))
            if not isinstance(known, dict) or known.get("state") != state or not known.keys() >= _SCAN_FIELDS:
                known = {"state": state, **asdict(scan(file))}
                if _state(file) != state:
                    raise UserError(f"data.source: {file.path} changes while it is read: wait until it is complete")
                self._known[str(file.path.absolute())] = known
                changed = True
            scans.append(Scan(**{name: known[name] for name in _SCAN_FIELDS}))
        if changed and not self.read_only:
            self._remember()
        return scans

    def _remember(self) -> None:
        try:
            write_text(self.memory, json.dumps(self._known))
        except UserError:
            return  # a read-only folder: the next program scans again


def _state(file: File) -> list[Any]:
    try:
        stat = file.path.stat()
    except OSError as error:
        raise unreadable(file.path, error) from None
    return [file.kind, file.encoding, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def scan(file: File) -> Scan:
    """Read a whole file once.

    Raises:
        UserError: it cannot be read, or decompresses to more than MOST_EXPANSION allows.
    """
    look, digest = _Look(file), hashlib.sha256()
    try:
        with file.path.open("rb") as raw:
            while chunk := raw.read(CHUNK):
                digest.update(chunk)
                if not file.compression:
                    look.feed(chunk)
    except OSError as error:
        raise unreadable(file.path, error) from None
    for chunk in chunks(file) if file.compression else ():
        look.feed(chunk)
    look.feed(b"", final=True)
    return Scan(
        digest.hexdigest(),
        look.n_bytes,
        look.bad_byte,
        look.n_replaced,
        look.other,
        look.is_utf8,
        max(0, look.n_ends - 1),
    )


def what_else(head: bytes, file: File) -> str | None:
    """The format or encoding of a file by its first bytes, if not text in its encoding; None if they do not tell."""
    return other_format(head, file.path) or other_unicode(head, file.encoding)


def not_in_encoding(file: File, place: int) -> UserError:
    """The error for a file that does not decode, with the offset of the first wrong byte."""
    start, stop = max(0, place - HEAD // 2) // 4 * 4, place + HEAD  # a multiple of 4 cuts no UTF-32 character
    sample, seen = b"", 0
    for chunk in chunks(file):
        sample += chunk[max(0, start - seen) : max(0, stop - seen)]
        seen += len(chunk)
        if seen >= stop:
            break
    name = "UTF-8" if file.encoding == "utf-8" else file.encoding
    advice = likely_encoding(sample, place - start, file.encoding)
    return UserError(f"data.source: {file.path} is not {name} text (byte {place}); {advice}")


def chunks(file: File) -> Iterator[bytes]:
    """A file's bytes, decompressed, in chunks.

    Raises:
        UserError: it cannot be read, is damaged, or decompresses to more than MOST_EXPANSION allows.
    """
    n_bytes = 0
    try:
        with file.path.open("rb") as raw:
            most = max(ALWAYS_ALLOWED, MOST_EXPANSION * file.path.stat().st_size)
            stream: Any = _DECOMPRESSORS[file.compression](raw) if file.compression else raw
            while chunk := stream.read(CHUNK):
                n_bytes += len(chunk)
                if file.compression and n_bytes > most:
                    raise UserError(
                        f"data.source: {file.path} decompresses to more than {MOST_EXPANSION} times its length, which "
                        "is unusual for text; if it is right, decompress it yourself"
                    )
                yield chunk
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(file.path, error) from None
        raise UserError(f"data.source: {file.path} is damaged or not a {file.compression} file ({error})") from None


class _ZstandardFile:
    """Reads consecutive frames; zstandard's own `stream_reader` accepts a truncated file without an error."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._ahead = b""

    def read(self, size: int) -> bytes:
        """The next bytes, empty at the end; each call decompresses so little that a bomb stays below 50 MB."""
        while content := self._ahead or self._raw.read(_ZSTANDARD_STEP):
            self._frame = self._frame or zstandard.ZstdDecompressor(max_window_size=1 << 30).decompressobj()
            try:
                whole = self._frame.decompress(content)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            self._ahead = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
            if whole:
                return whole
        if self._frame is not None:
            raise EOFError("it is truncated")
        return b""


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _ZstandardFile,
}


class _Look:
    """Checks the encoding of a text file chunk by chunk; other kinds of file are only checked for Git LFS pointers."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.n_bytes, self.n_replaced, self.is_utf8, self.n_ends = 0, 0, False, 0
        self._splitter = Splitter(None if file.kind == "text" else "none")
        self.other: str | None = None
        self._strict = TextDecoder(file.encoding)
        self._lenient: list[codecs.IncrementalDecoder] = []
        self._utf8 = None if file.encoding == "utf-8" else TextDecoder("utf-8")
        self._begins = True

    @property
    def bad_byte(self) -> int | None:
        return self._strict.bad_byte

    def feed(self, chunk: bytes, *, final: bool = False) -> None:
        self.n_bytes += len(chunk)
        if self._begins and chunk:
            self.other = what_else(chunk[:HEAD], self.file) if self.file.kind in PLAIN_TEXT else lfs(chunk)
            self._begins = False
        if self.other or self.file.kind not in PLAIN_TEXT:
            return
        text = ""
        if self.bad_byte is None:
            try:
                text = self._strict.decode(chunk, final)
            except UnicodeError:
                self._lenient = list(self._strict.lenient())
        if self._lenient:
            # Text may hold U+FFFD itself: only what the decoder that drops wrong bytes lacks was put there.
            text, ignored = (decoder.decode(chunk, final) for decoder in self._lenient)
            self.n_replaced += text.count("\ufffd") - ignored.count("\ufffd")
        for start in range(0, len(text) or 1, SPLIT_CHARACTERS):  # in parts, since the splitter copies its text
            part, is_last = text[start : start + SPLIT_CHARACTERS], start + SPLIT_CHARACTERS >= len(text)
            self.n_ends += sum(ends for _, ends in self._splitter.feed(part, final=final and is_last))
        if self._utf8 is not None:
            try:
                self.is_utf8 |= not self._utf8.decode(chunk, final).isascii()
            except UnicodeError:
                self._utf8, self.is_utf8 = None, False
