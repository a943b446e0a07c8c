"""Text -> shards of tokens in a folder, in bounded memory; a killed preparation resumes.

A first pass assigns documents to splits, a second one tokenises them, some megabytes at a time. Tokens are written in
units of many documents. Each complete unit is recorded, and a new try continues after the last one. The folder gets its
final name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from minigpt.config import DataConfig
from minigpt.data.answers import NO_ANSWERS, encode
from minigpt.data.relations import to_json_line
from minigpt.data.shards import ANSWERS, Manifest, ShardWriter, SourceRange, SplitFiles
from minigpt.data.sources.chunking import grouped
from minigpt.data.sources.names import MANIFEST, TOKENIZER, Source
from minigpt.data.sources.reading import Chunk, read
from minigpt.data.splitting import TRAIN, SplitDocuments, assign, survey, text_changed
from minigpt.data.tokenizers.base import Tokenizer, load_tokenizer, make_tokenizer, save_tokenizer
from minigpt.errors import UserError
from minigpt.files import note, write_atomically, write_text

UNIT_BYTES = 256 << 20
"""Text of one pair of shards: the most work that a killed preparation repeats."""
MOST_UNITS = 64
"""Units grow with longer text: training keeps all shards open, and a process may open about a thousand files."""
BATCH_CHARACTERS = 8 << 20
"""Text held in memory to be tokenised in parallel."""
BATCH_CHUNKS = 10_000
"""Limit for batches of short documents, as each has a fixed cost."""
BPE_BYTES_PER_TOKEN, MOST_BPE_BYTES = 2500, 100 << 20
"""Size of the sample that a BPE learns from, by its vocabulary, and the most: of a vocabulary of 2048, 11 MB instead of
5 MB change the tokens a byte by less than 0.1 % (Python, English), and take 1.5 to 2.1 times the CPU time."""
SAMPLE_CHARACTERS = 1 << 16
"""Of a piece of that sample."""
CHUNKS_VERSION = 3
"""Raise when documents are cut into other chunks: a resumed preparation skips the number of chunks done."""
SIDES = ("train", "val")
SURVEY, UNITS = "survey.npz", "units.json"
STARTS = ".documents.npy"
"""Ending of files with the start of each document."""
RELATIONS = ".relations.jsonl"
"""Ending of files with a synthetic source's texts and ground truth."""


@dataclass(frozen=True)
class Text:
    """The sources of both splits, found and scanned."""

    train: tuple[Source, ...]
    val: tuple[Source, ...]
    """Empty if val is held out of train's sources."""
    skipped_files: tuple[str, ...]
    fingerprint: str
    """Hash of all text and the order of files."""


def settings(config: DataConfig) -> dict[str, Any]:
    """The settings that tokens depend on, besides the text and the tokenizer."""
    names = ("text_column", "encoding", "encoding_errors", "delimiter", "token_type", "val_fraction", "max_documents")
    # Later settings are absent by default: folders of earlier versions keep their key.
    later = {name: getattr(config, name) for name in ("answer_column", "document_separator")}
    later["answers_in_messages"] = config.answers_in_messages or None
    later["val_from"] = None if config.val_from == "end" else config.val_from
    return {name: getattr(config, name) for name in names} | {
        name: value for name, value in later.items() if value is not None
    }


def token_dtype(config: DataConfig, tokenizer: Tokenizer) -> np.dtype[Any]:
    """Integer type in which tokens are stored: two bytes while they suffice, which halves the disk and what is read.

    Raises:
        UserError: the vocabulary is too large for data.token_type.
    """
    most = {"uint16": 2**16, "uint32": 2**32}
    name = config.token_type
    if name == "auto":
        name = "uint16" if tokenizer.vocab_size <= most["uint16"] else "uint32"
    if tokenizer.vocab_size > most[name]:
        raise UserError(
            f"data.token_type={name}: holds {most[name]} different tokens, but the tokenizer has "
            f"{tokenizer.vocab_size}; leave the setting out"
        )
    return np.dtype(name)


class Tokenising:
    """One preparation: tokenises a text into a folder. Each stage leaves a file, so a new try skips what is done."""

    def __init__(self, config: DataConfig, text: Text, folder: Path, quiet: bool) -> None:
        """Args: folder is the result, written under a hidden name beside it until it is complete."""
        self.config, self.text, self.folder, self.quiet = config, text, folder, quiet
        self.sources = (*text.train, *text.val)
        self.work = folder.parent / f".preparing-{CHUNKS_VERSION}-{folder.name}"

    def run(self, is_unchanged: Callable[[], bool]) -> None:
        """Prepare the text, or resume a preparation that was killed.

        Finished units survive a kill or Ctrl-C. After an error of the text or the disk they are deleted.

        Args:
            is_unchanged: whether the text still has the fingerprint of the scan; called after it was tokenised.

        Raises:
            UserError: the text cannot be read, split or tokenised, or has changed.
            OSError: the folder cannot be written.
        """
        try:
            self.work.mkdir(exist_ok=True)
            if not (self.work / MANIFEST).is_file():
                self._make_known_tokenizer()
                documents = self._survey()
                if not self.quiet and (parts := documents.parts()):
                    note(f"note: {parts}")
                tokenizer = self._tokenizer(documents)
                dtype = token_dtype(self.config, tokenizer)
                self._tokenise(documents, tokenizer, dtype)
                if not is_unchanged():
                    raise text_changed(self.config)
                self._finish(documents, tokenizer, dtype)
            self._clean()
            self.work.replace(self.folder)
        except (UserError, OSError):
            shutil.rmtree(self.work, ignore_errors=True)
            raise

    def _make_known_tokenizer(self) -> None:
        """Make a tokenizer that is not trained on the text. First of all, as its file or download may be missing."""
        known = not self.config.tokenizer.startswith(("bpe:", "chars"))
        if known and not (self.work / TOKENIZER).is_file():
            tokenizer = make_tokenizer(self.config.tokenizer, (), ())
            token_dtype(self.config, tokenizer)
            save_tokenizer(tokenizer, self.work / TOKENIZER)

    def _survey(self) -> SplitDocuments:
        """First pass: read every document, and assign it to a side."""
        path = self.work / SURVEY
        if not path.is_file():
            skipped = count()
            with self._bar("reading", None) as bar:
                train, val = (
                    survey(*(_shown(read(source, self.config, partial(next, skipped)), bar) for source in sources))
                    for sources in (self.text.train, self.text.val)
                )
            if (n_skipped := next(skipped)) and not self.quiet:
                note(f"note: {n_skipped:,} rows are left out: they have no prompt or no answer")
            sides, n_duplicates = assign(train, val if self.text.val else None, self.config)
            lengths = np.concatenate([train.documents[:, 2], val.documents[:, 2]])

            def save(temporary: Path) -> None:
                with temporary.open("wb") as file:  # given a path, numpy appends .npz to its name
                    np.savez(file, sides=sides, n_duplicates=np.array(n_duplicates), lengths=lengths)

            write_atomically(path, save)
        with np.load(path, allow_pickle=False) as saved:
            return SplitDocuments(
                self.sources, self.config, saved["sides"], saved["lengths"], int(saved["n_duplicates"])
            )

    def _tokenizer(self, documents: SplitDocuments) -> Tokenizer:
        path = self.work / TOKENIZER
        if not path.is_file():
            name, n_bytes = self.config.tokenizer, documents.n_bytes(TRAIN)
            train: Iterable[str] = (chunk.text for side, _, chunk in documents.chunks() if side == TRAIN)
            if name.startswith("bpe:"):
                enough = min(MOST_BPE_BYTES, BPE_BYTES_PER_TOKEN * int(name.removeprefix("bpe:")))
                train = _sampled(train, enough / max(1, n_bytes))
                if not self.quiet:
                    part = f"{enough / 1e6:.1f} of " if enough < n_bytes else ""
                    print(f"training a byte-level BPE, {name}, on {part}{n_bytes / 1e6:.1f} MB", flush=True)
            tokenizer = make_tokenizer(name, train, (chunk.text for _, _, chunk in documents.chunks()))
            save_tokenizer(tokenizer, path)
        return load_tokenizer(path)

    def _tokenise(self, documents: SplitDocuments, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        """Second pass: write the units that are missing."""
        units = self._units()
        unit_bytes = max(UNIT_BYTES, documents.n_bytes() // MOST_UNITS)
        chunks = documents.chunks()
        with self._bar("tokenising", documents.n_bytes()) as bar:
            for _, _, chunk in islice(chunks, sum(unit.n_chunks for unit in units)):
                bar.update(len(chunk.text))
            batches = grouped(chunks, lambda chunk: len(chunk[2].text), BATCH_CHARACTERS, BATCH_CHUNKS)
            while batch := next(batches, None):
                begins = not units or units[-1].ends
                with _UnitWriter(
                    self.work, len(units), dtype, tokenizer.end_of_text, len(self.sources), begins
                ) as unit:
                    while batch is not None:
                        for (side, source, chunk), encoded in zip(batch, _encode(tokenizer, batch), strict=True):
                            unit.write(side, source, chunk, *encoded)
                            bar.update(len(chunk.text))
                        batch = next(batches, None) if unit.n_bytes < unit_bytes else None
                    units.append(unit.finish())
                write_text(self.work / UNITS, json.dumps([asdict(unit) for unit in units]))

    def _units(self) -> list[_Unit]:
        try:
            return [_Unit(**unit) for unit in json.loads((self.work / UNITS).read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []

    def _finish(self, documents: SplitDocuments, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        """Join the units' indices and write the manifest; `_clean` deletes the parts only when it exists."""
        units = self._units()
        files = {name: entry for unit in units for name, entry in unit.files.items()}
        splits = {side: self._join(side, units, dtype) for side in SIDES}
        for name in (TOKENIZER, *(side + ending for side in SIDES for ending in (STARTS, ANSWERS, RELATIONS))):
            if (path := self.work / name).is_file():
                files[name] = {"n_bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = Manifest(
            source=tuple(source.name for source in self.text.train),
            tokenizer=self.config.tokenizer,
            text_fingerprint=self.text.fingerprint,
            settings=settings(self.config),
            vocab_size=tokenizer.vocab_size,
            end_of_text=tokenizer.end_of_text,
            token_type=dtype.name,
            train=splits["train"],
            val=splits["val"],
            duplicates_left_out=documents.n_duplicates,
            skipped_files=self.text.skipped_files,
            files=files,
        )
        write_text(self.work / MANIFEST, manifest.to_json())

    def _join(self, side: str, units: Sequence[_Unit], dtype: np.dtype[Any]) -> SplitFiles:
        """The manifest's entry of a split; joins its units' files of document starts and of relations."""
        ranges, first_token, first_document = [], 0, 0
        for number, source in enumerate(self.sources):
            counts = [unit.counts[side][number] for unit in units]
            n_documents, n_tokens, n_bytes = (sum(column) for column in zip(*counts, strict=True))
            if n_tokens or (side == "train" and number < len(self.text.train)):  # even if empty: one per weight
                ranges.append(SourceRange(source.name, first_token, n_tokens, first_document, n_documents, n_bytes))
            first_token, first_document = first_token + n_tokens, first_document + n_documents
        names = [_unit_name(side, number) for number in range(len(units))]
        shards = tuple(f"{name}.bin" for name in names)
        if self.config.answer_column is not None:
            self._join_answers(
                side,
                names,
                [unit.files[shard]["n_bytes"] // dtype.itemsize for unit, shard in zip(units, shards, strict=True)],
            )
        # Not through a memory map: on a full disk, writing to one kills the process (SIGBUS).
        with (self.work / f"{side}{STARTS}").open("wb") as file:
            header = {"descr": "<i8", "fortran_order": False, "shape": (first_document,)}
            np.lib.format.write_array_header_1_0(file, header)
            offset = 0
            for unit, name, shard in zip(units, names, shards, strict=True):
                starts = np.load(self.work / f"{name}{STARTS}", allow_pickle=False)
                file.write((starts + offset).astype("<i8").tobytes())
                offset += unit.files[shard]["n_bytes"] // dtype.itemsize
        _join_files([self.work / f"{name}{RELATIONS}" for name in names], self.work / f"{side}{RELATIONS}")
        n_bytes = sum(part.n_bytes for part in ranges)
        return SplitFiles(first_token, first_document, n_bytes, tuple(ranges), shards, f"{side}{STARTS}")

    def _join_answers(self, side: str, units: Sequence[str], n_tokens: Sequence[int]) -> None:
        offsets = np.cumsum([0, *n_tokens[:-1]])[:, None] * [1, 1, 0]  # an answer's bytes stay as they are
        parts = [np.load(self.work / f"{name}{ANSWERS}", allow_pickle=False) for name in units]
        with (self.work / f"{side}{ANSWERS}").open("wb") as file:
            np.save(file, np.concatenate([part + offset for part, offset in zip(parts, offsets, strict=True)]))

    def _clean(self) -> None:
        """Delete the files that the manifest does not name."""
        kept = {MANIFEST, *Manifest.read(self.work).files}
        for path in self.work.iterdir():
            if path.name not in kept:
                path.unlink()

    def _bar(self, what: str, total: int | None) -> Any:
        # No bar for work of less than two seconds.
        return tqdm(desc=what, total=total, unit="B", unit_scale=True, delay=2, disable=True if self.quiet else None)


@dataclass
class _Unit:
    """Record of one complete unit, in plain types for UNITS."""

    n_chunks: int
    ends: bool
    """Whether its last chunk ends a document; else the document continues in the next unit."""
    counts: dict[str, list[list[int]]]
    """Side -> for each source, the documents, tokens and bytes of text."""
    files: dict[str, dict[str, Any]]
    """The manifest's entries of its files."""


def _unit_name(side: str, number: int) -> str:
    return f"{side}-{number:05d}"


def _sampled(texts: Iterable[str], share: float) -> Iterable[str]:
    """An evenly spread sample of that share of the texts, in pieces of SAMPLE_CHARACTERS; all of them from 1 on."""
    if share >= 1:
        return texts
    pieces = (text[i : i + SAMPLE_CHARACTERS] for text in texts for i in range(0, len(text), SAMPLE_CHARACTERS))
    # Fibonacci hashing (Knuth 1973).
    return (piece for i, piece in enumerate(pieces) if i * 0x9E3779B97F4A7C15 % 2**64 < share * 2**64)


class _UnitWriter:
    """Writes a pair of shards and the starts of their documents."""

    def __init__(
        self, folder: Path, number: int, dtype: np.dtype[Any], end_of_text: int, n_sources: int, begins: bool
    ) -> None:
        self.files = [folder / _unit_name(side, number) for side in SIDES]
        self.end_of_text = np.array([end_of_text], dtype=dtype)
        self.shards = [ShardWriter(file.with_suffix(".bin"), dtype) for file in self.files]
        self.starts: list[list[int]] = [[], []]
        self.answers: list[list[np.ndarray]] = [[NO_ANSWERS], [NO_ANSWERS]]
        self.counts = [[[0, 0, 0] for _ in range(n_sources)] for _ in SIDES]
        self.n_chunks = self.n_bytes = 0
        self.begins = begins
        self._relations: dict[int, IO[str]] = {}

    def __enter__(self) -> _UnitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # close all of them, even if one fails on a full disk
            for close in (*(s.close for s in self.shards), *(r.close for r in self._relations.values())):
                stack.callback(close)

    def write(self, side: int, source: int, chunk: Chunk, tokens: np.ndarray, answers: np.ndarray) -> None:
        """Append a chunk to the shard of its side; answers as of `encode`."""
        shard, count = self.shards[side], self.counts[side][source]
        n_bytes, before = len(chunk.text.encode()), shard.n_tokens
        if self.begins:
            self.starts[side].append(before)
            count[0] += 1
        if len(answers):
            self.answers[side].append(answers + np.array([before, before, 0]))
        shard.write(tokens)
        if chunk.ends:
            shard.write(self.end_of_text)
        if chunk.relations:
            if side not in self._relations:
                self._relations[side] = self.files[side].with_suffix(RELATIONS).open("w", encoding="utf-8")
            self._relations[side].write(to_json_line(chunk.text, chunk.relations) + "\n")
        count[1] += shard.n_tokens - before
        count[2] += n_bytes
        self.n_bytes += n_bytes
        self.n_chunks += 1
        self.begins = chunk.ends

    def finish(self) -> _Unit:
        """Flush the files to disk, close them, and return the unit's record."""
        entries = {shard.path.name: shard.finish() for shard in self.shards}
        for file, starts, answers in zip(self.files, self.starts, self.answers, strict=True):
            np.save(file.with_suffix(STARTS), np.array(starts, dtype=np.int64))
            np.save(file.with_suffix(ANSWERS), np.concatenate(answers))
        return _Unit(self.n_chunks, self.begins, dict(zip(SIDES, self.counts, strict=True)), entries)


def _encode(tokenizer: Tokenizer, batch: Sequence[tuple[int, int, Chunk]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return encode(tokenizer, [(chunk.text, chunk.answers) for _, _, chunk in batch])


def _shown(chunks: Iterable[Chunk], bar: Any) -> Iterator[Chunk]:
    for chunk in chunks:
        bar.update(len(chunk.text))
        yield chunk


def _join_files(parts: Sequence[Path], whole: Path) -> None:
    """Concatenate those parts that exist; nothing if none does."""
    if parts := [part for part in parts if part.is_file()]:
        with whole.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
