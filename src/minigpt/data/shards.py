"""Token files on disk -> one sequence of tokens per split, read by slices.

A prepared folder holds raw little-endian token ids (`train-00000.bin`, ..., which numpy.memmap and nanoGPT can read),
the start of each document, the tokenizer, and a manifest with the length and checksum of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from minigpt.data.sources.names import MANIFEST, OLD_TOKENIZER, TOKENIZER, File
from minigpt.data.sources.scan import Scans
from minigpt.data.tokenizers.base import Tokenizer, load_tokenizer
from minigpt.errors import UserError
from minigpt.files import reason

FORMAT = 2
"""Raise when prepared folders change: those of another format are refused and prepared anew."""
SCANS = ".scans.json"
"""Name of the cache of file scans in data.dir."""
TOGETHER = 1 << 18
"""Tokens written at a time."""
ANSWERS = ".answers.npy"
"""Ending of files with the places of a split's answers; see Split.answers."""


class TokenFile:
    """A file of token ids; slices are read as arrays.

    Not a memory map: it would count every page ever read as memory of this process, and page faults get slower as the
    file grows. A window of a thousand tokens is one system call here.
    """

    def __init__(self, path: Path, token_type: str) -> None:
        """Args: path of the file; token_type, uint16 or uint32."""
        self.path, self.dtype = path, np.dtype(token_type).newbyteorder("<")
        self._file = path.open("rb", buffering=0)  # stays readable when its folder is renamed or deleted
        weakref.finalize(self, self._file.close)
        self._opened = self._written()
        self._n_tokens = self._opened[0] // self.dtype.itemsize
        if hasattr(os, "posix_fadvise"):  # else readahead loads 64 KB around each window
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenFile, (self.path, self.dtype.name)  # pickling: a worker process opens the file itself

    def __len__(self) -> int:
        return self._n_tokens

    def _written(self) -> tuple[int, int]:
        """The file's length in bytes and time of its last write in nanoseconds."""
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns

    def has(self, sha256: str) -> bool:
        """Whether the content still has this checksum; hashed only if the file was written to since it was opened."""
        now = self._written()
        if now == self._opened:
            return True
        if now[0] != self._opened[0]:
            return False
        self._file.seek(0)
        is_same = hashlib.file_digest(self._file, "sha256").hexdigest() == sha256
        if is_same:
            self._opened = now
        return is_same

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        tokens = np.empty(stop - start, self.dtype)
        missing = tokens.view(np.uint8).data
        while len(missing):  # one call reads at most 2 GB
            n_bytes = self._read_at(missing, stop * self.dtype.itemsize - len(missing))
            if not n_bytes:
                raise UserError(f"{self.path} became shorter while it was read: restore it")
            missing = missing[n_bytes:]
        return tokens

    def _read_at(self, target: memoryview, offset: int) -> int:
        """Read into `target` from a byte offset; returns the number of bytes read."""
        if hasattr(os, "preadv"):  # leaves the file position alone, which forked loader workers share
            return os.preadv(self._file.fileno(), [target], offset)
        self._file.seek(offset)  # Windows: without fork, no two processes share a file position
        return self._file.readinto(target)


class Tokens:
    """Token ids in several shards, read as one sequence."""

    def __init__(self, shards: Sequence[np.ndarray | TokenFile]) -> None:
        """Args: shards, 1-D arrays of unsigned integers or token files, in order; they are not copied."""
        self.shards = [shard for shard in shards if len(shard)]
        self._stops = np.cumsum([len(shard) for shard in self.shards], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) tokens at positions start..stop of the sequence, which may span shards."""
        parts = []
        shard = bisect_right(self._stops, start)
        while start < stop:
            begin = self._stops[shard] - len(self.shards[shard])
            parts.append(self.shards[shard][start - begin : stop - begin])
            start += len(parts[-1])
            shard += 1
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.zeros(0, np.uint16)])


@dataclass(frozen=True)
class SourceRange:
    """The contiguous part of a split that comes from one source."""

    name: str
    first_token: int
    n_tokens: int
    first_document: int
    n_documents: int
    n_bytes: int
    """Length of its text in UTF-8."""


@dataclass(frozen=True)
class Split:
    """Tokens of one split: concatenated documents, each followed by end_of_text."""

    tokens: Tokens
    document_starts: np.ndarray
    """(n_documents,) int64: index of each document's first token."""
    n_bytes: int
    """Length of the split's text in UTF-8, without end_of_text."""
    sources: tuple[SourceRange, ...]
    """The split by source, in order and without gaps."""
    answers: np.ndarray | None = None
    """(n_answers, 3) int64, with data.answer_column: first token, end after the end_of_text, and bytes of UTF-8 of each
    answer, in order. Only these tokens have a loss; None: all have."""

    @property
    def n_target_bytes(self) -> int:
        """Length in UTF-8 of the text that has a loss."""
        return self.n_bytes if self.answers is None else int(self.answers[:, 2].sum())

    def __str__(self) -> str:
        n_documents = len(self.document_starts)
        return (
            f"{n_documents:,} document{'' if n_documents == 1 else 's'}, {self.n_bytes / 1e6:.2f} MB, "
            f"{len(self.tokens):,} tokens"
        )


@dataclass(frozen=True)
class SplitFiles:
    """The manifest's entry for a split."""

    n_tokens: int
    n_documents: int
    n_bytes: int
    sources: tuple[SourceRange, ...]
    shards: tuple[str, ...]
    """Names of the token files, in order."""
    documents: str
    """Name of the .npy file with the documents' starts."""


@dataclass(frozen=True)
class Manifest:
    """Contents of a prepared folder, and the text and settings they were made from."""

    source: tuple[str, ...]
    tokenizer: str
    text_fingerprint: str
    settings: dict[str, Any]
    """The settings of data.* that the tokens depend on."""
    vocab_size: int
    end_of_text: int
    token_type: str
    train: SplitFiles
    val: SplitFiles
    duplicates_left_out: int
    """Documents kept out of val because train has the same text."""
    skipped_files: tuple[str, ...]
    """Files left out because they are not text in data.encoding."""
    files: dict[str, dict[str, Any]]
    """Name -> {n_bytes, sha256} of every other file of the folder."""
    format: int = FORMAT

    def to_json(self) -> str:
        """The manifest as JSON, with a checksum of itself."""
        content = asdict(self)
        return json.dumps(content | {"checksum": _checksum(content)}, indent=1)

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """The manifest of a prepared folder.

        Raises:
            UserError: it is missing, damaged, or of another version.
        """
        path = Path(folder) / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
            content: dict[str, Any] = json.loads(text)
            if content["format"] != FORMAT:
                raise UserError(
                    f"{path}: written by another version of minigpt (format {content['format']}); {_anew(folder)}"
                )
            # The checksum ignores white space; a file that differs there was not written by `to_json` either.
            is_verbatim = json.dumps(content, indent=1) == text
            if content.pop("checksum") != _checksum(content) or not is_verbatim:
                raise UserError(f"{path} was changed or is damaged (its checksum differs); {_anew(folder)}")
            for split in ("train", "val"):
                ranges = tuple(SourceRange(**source) for source in content[split]["sources"])
                shards = tuple(content[split]["shards"])
                content[split] = SplitFiles(**{**content[split], "sources": ranges, "shards": shards})
            for name in ("source", "skipped_files"):
                content[name] = tuple(content[name])
            return cls(**content)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path}: {reason(error)}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}); {_anew(folder)}") from None


def _anew(folder: str | Path) -> str:
    return f"delete {folder}, and it will be prepared anew"


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PreparedData:
    """An opened prepared folder: all that training needs of the text."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    train: Split
    val: Split

    def check_unchanged(self) -> None:
        """Check that no token file was changed since it was opened; training would silently read other text.

        Raises:
            UserError: a file was changed.
        """
        for split in (self.train, self.val):
            for shard in split.tokens.shards:
                if isinstance(shard, TokenFile) and not shard.has(self.manifest.files[shard.path.name]["sha256"]):
                    raise UserError(f"{shard.path} was changed while in use: {_anew(self.folder)}")


def open_prepared(folder: str | Path, scans: Scans | None = None) -> PreparedData:
    """Open a prepared folder; tokens stay on disk until they are read.

    Checksums of all files are compared. A file that is unchanged since an earlier check is not read again.

    Args:
        folder: made by `prepare`.
        scans: cache of checked files; by default one beside the folder.

    Raises:
        UserError: a file is missing or damaged, or the tokenizer does not fit the tokens.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    _check_files(folder, manifest, scans or Scans(folder.parent / SCANS))
    tokenizer = load_tokenizer(folder / (TOKENIZER if TOKENIZER in manifest.files else OLD_TOKENIZER))
    if (tokenizer.vocab_size, tokenizer.end_of_text) != (manifest.vocab_size, manifest.end_of_text):
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but the data was made with one of "
            f"{manifest.vocab_size}; {_anew(folder)}"
        )

    def split(side: str, files: SplitFiles) -> Split:
        tokens = Tokens([TokenFile(folder / name, manifest.token_type) for name in files.shards])
        try:
            starts = np.load(folder / files.documents, mmap_mode="r", allow_pickle=False)
            answers = None
            if (name := f"{side}{ANSWERS}") in manifest.files:
                answers = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):  # its checksum is right, but another program wrote it
            raise UserError(f"{folder / files.documents}: not an array of numbers; prepare the text again") from None
        return Split(tokens, starts, files.n_bytes, files.sources, answers)

    train, val = split("train", manifest.train), split("val", manifest.val)
    return PreparedData(folder, manifest, tokenizer, train, val)


def _check_files(folder: Path, manifest: Manifest, scans: Scans) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; {_anew(folder)}")
        if (n_bytes := path.stat().st_size) != expected["n_bytes"]:
            raise UserError(f"{path} has {n_bytes} bytes instead of {expected['n_bytes']}; {_anew(folder)}")
    found = scans.of([File(folder / name, "tokens") for name in manifest.files])
    for (name, expected), scan in zip(manifest.files.items(), found, strict=True):
        if scan.sha256 != expected["sha256"]:
            raise UserError(f"{folder / name} is damaged (its checksum differs); {_anew(folder)}")


class ShardWriter:
    """Writes one token file and computes its checksum on the way."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        """Args: path of the file; dtype, uint16 or uint32, which must hold every token."""
        self.path, self.dtype = path, dtype.newbyteorder("<")
        self.n_tokens, self._digest = 0, hashlib.sha256()
        self._buffer = bytearray()
        self._file: IO[bytes] = path.open("wb")

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens; they are buffered, as many documents have only a few."""
        self._buffer += tokens.astype(self.dtype).tobytes()
        self.n_tokens += len(tokens)
        if len(self._buffer) >= TOGETHER * self.dtype.itemsize:
            self._flush()

    def _flush(self) -> None:
        self._digest.update(self._buffer)
        self._file.write(self._buffer)
        self._buffer.clear()

    def close(self) -> None:
        """Close the file without writing what is buffered."""
        self._file.close()

    def finish(self) -> dict[str, Any]:
        """Flush to disk and close; returns the manifest's entry of the file."""
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return {"n_bytes": self.n_tokens * self.dtype.itemsize, "sha256": self._digest.hexdigest()}
