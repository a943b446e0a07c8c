"""A source -> its documents, long ones in chunks, in bounded memory; and notes on how it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.config import DataConfig
from minigpt.data.relations import Relation, Span
from minigpt.data.sources.answers import answer_rows, no_columns
from minigpt.data.sources.chunking import cut_up, grouped
from minigpt.data.sources.columns import DEFAULT, MESSAGES
from minigpt.data.sources.names import SYNTHETIC_DOCUMENTS, File, Source
from minigpt.data.sources.rows import DELIMITERS, TEXT_CHUNK, Row, csv_delimiter, read_rows
from minigpt.data.sources.scan import Scans, chunks, not_in_encoding
from minigpt.data.sources.separators import LONGEST, USUAL, Splitter
from minigpt.data.sources.tables import ROWS, list_columns
from minigpt.data.synthetic.texts import SYNTHETIC
from minigpt.errors import UserError


class Chunk(NamedTuple):
    """A document, or a part of a long one; `ends` marks its last part."""

    text: str
    ends: bool = True
    relations: Sequence[Relation] = ()
    answers: Sequence[Span] = ()
    """Characters [start, stop) of the answers, with data.answer_column."""


def read(source: Source, config: DataConfig, on_skip: Callable[[], None] = lambda: None) -> Iterator[Chunk]:
    """Every document of a source, except empty ones and white space.

    Args:
        source: found by `find_source`.
        config: how to read it.
        on_skip: called for each skipped row, one without a prompt or an answer.

    Raises:
        UserError: a file cannot be read or parsed; names the file and, if known, the place.
    """
    if source.synthetic is not None:
        if config.answer_column is not None:
            raise no_columns(source.name, config)
        n_documents = config.max_documents or SYNTHETIC_DOCUMENTS
        for example in islice(SYNTHETIC[source.synthetic](source.seed), n_documents):
            yield Chunk(example[0], True, example[1])
        return
    if config.answer_column is not None:
        for file in source.files:
            for found in answer_rows(file, config):
                if found is None:
                    on_skip()
                else:
                    yield Chunk(found[0], True, (), found[1])
        return
    begins = True
    for text, ends in chain.from_iterable(read_rows(file, config) for file in source.files):
        if text is None or (begins and ends and (not text or text.isspace())):
            continue
        *parts, last = cut_up(text, TEXT_CHUNK // 2, TEXT_CHUNK)
        for part in parts:
            yield Chunk(part, False)
        yield Chunk(last, ends)
        begins = ends


def refuse_broken_text(source: Source, scans: Scans, config: DataConfig) -> tuple[Source, list[str]]:
    """The source without the files that data.encoding_errors=skip excludes, and their names.

    Raises:
        UserError: a file is not text in data.encoding and the policy is `error`, or no text is left.
    """
    found = scans.of(source.files)
    if source.files and not sum(scan.n_bytes for scan in found):
        raise UserError(f"data.source={source.name}: no text in it, all files are empty")
    # Without this hint, a user sets the encoding of one file and then fails at the next.
    others = f"; it is one of {len(found)} files: if only this one differs, convert it" if len(found) > 1 else ""
    broken = []
    for file, scan in zip(source.files, found, strict=True):
        if scan.other is not None and config.encoding_errors != "skip":  # replacing characters would leave garbage
            raise UserError(f"data.source: {file.path} {scan.other}{others}")
        if scan.bad_byte is not None and config.encoding_errors == "error":
            raise UserError(f"{not_in_encoding(file, scan.bad_byte)}{others}")
        if scan.other is not None or scan.bad_byte is not None:
            broken.append(file)
    if config.encoding_errors != "skip" or not broken:
        return source, []
    left = tuple(file for file in source.files if file not in set(broken))
    if not left:
        name = "UTF-8" if config.codec == "utf-8" else config.encoding
        raise UserError(f"data.source={source.name}: none of its files is {name} text, so skipping them leaves nothing")
    return replace(source, files=left), [str(file.path) for file in broken]


def reading_notes(source: Source, config: DataConfig, scans: Scans | None = None) -> Iterator[str]:
    """Notes for the user on how a source is read, a line each, where it may be unexpected.

    Args:
        source: without the skipped files.
        config: delimiter and encoding to read it with.
        scans: scans of its files; without them there are no notes on encodings.
    """
    files = source.files
    yield from source.notes
    delimiters = {file: csv_delimiter(file, config) for file in files if file.kind in DELIMITERS}
    if config.delimiter is None:
        for character in sorted(set(delimiters.values())):
            these = [f for f, found in delimiters.items() if found == character != DELIMITERS[f.kind][0]]
            if these:
                yield f"the fields of {_some(these)} are separated by {character!r}, by the header (data.delimiter)"
    looks = dict(zip(files, scans.of(files), strict=True)) if scans else {}
    replaced = [file for file, scan in looks.items() if scan.bad_byte is not None]
    if replaced:
        n_replaced = sum(looks[file].n_replaced for file in replaced)
        plural = "" if n_replaced == 1 else "s"
        yield f"{n_replaced:,} character{plural} not in {config.encoding} replaced by U+FFFD, in {_some(replaced)}"
    yield from _separator_notes(files, config, scans)
    if config.answer_column is None and (chats := [file for file in files[:1] if _is_chat(file, config.text_column)]):
        yield (
            f"{_some(chats)}: its messages are read as lines of `role: content`; data.mode=examples with "
            f"data.answer_column={MESSAGES} puts the loss on the assistant's alone"
        )
    if utf8 := [file for file, scan in looks.items() if scan.is_utf8]:
        yield f"{_some(utf8)} is valid UTF-8, but read as {config.encoding} (data.encoding)"


def _separator_notes(files: Sequence[File], config: DataConfig, scans: Scans | None) -> Iterator[str]:
    texts = [file for file in files if file.kind == "text"]
    if config.document_separator is None:
        counts = {file: scan.n_separators for file, scan in zip(texts, scans.of(texts), strict=True)} if scans else {}
        found = [file for file in texts if (counts[file] if scans else begins_separated(file))]
        if found:
            often = f"{sum(counts.values()):,} times " if scans else ""
            yield f"{USUAL} ends a document {often}in {_some(found)} (data.document_separator; none turns this off)"
    elif not texts and config.document_separator != "none":
        yield f"data.document_separator={config.document_separator} has no effect: it is no text file"


def _is_chat(file: File, text_column: str) -> bool:
    """Whether the first row of a JSON, Parquet or Arrow file has a conversation that is read as its text."""
    if file.kind not in {"jsonl", "parquet", "arrow"} or text_column not in {DEFAULT, MESSAGES}:
        return False
    if file.kind == "jsonl":
        head = next(chunks(file), b"").decode(file.encoding, "ignore")
        try:
            row, _ = json.JSONDecoder().raw_decode(head.removeprefix("\ufeff").lstrip(" \t\r\n["))
        except (ValueError, RecursionError):
            return False
        is_list = {name: isinstance(value, list) for name, value in row.items()} if isinstance(row, dict) else {}
    else:
        is_list = list_columns(file)
    return is_list.get(MESSAGES, False) and (text_column == MESSAGES or DEFAULT not in is_list)


def begins_separated(file: File) -> bool:
    """Whether the start of a text file holds the separator that is recognised by default."""
    head = next(chunks(file), b"") if file.kind == "text" else b""
    return any(ends for _, ends in Splitter(None).feed(head.decode(file.encoding, "ignore") + " " * 2 * LONGEST))


def _some(files: Sequence[File]) -> str:
    """The first file and the number of others."""
    return str(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def open_stream(source: Source, config: DataConfig) -> Any:
    """A source's whole documents as an IterableDataset, whose state is its position.

    Each row holds several texts, as `datasets` is slow with many small rows: {"text": [...], "ends": [True, ...]}.

    Raises:
        UserError: the source cannot be streamed.
    """
    if source.synthetic is not None:
        raise UserError(f"data.source={source.name}: is generated on this machine: set data.streaming=false")
    import datasets  # takes a second

    datasets.disable_progress_bars()
    # It creates this folder without using it, by default in the home folder, which may be read-only.
    datasets.config.HF_DATASETS_CACHE = Path(config.dir, "huggingface")
    # A list is divided into shards: the state is a file's number and the groups read of it.
    kept = {"files": list(source.files), "config": config}
    return datasets.IterableDataset.from_generator(_groups, gen_kwargs=kept)


def _groups(files: Sequence[File], config: DataConfig) -> Iterator[dict[str, list[Any]]]:
    documents = _joined(chain.from_iterable(read_rows(file, config) for file in files))
    for group in grouped(documents, lambda row: len(row[0] or ""), TEXT_CHUNK, ROWS):
        texts, ends = zip(*group, strict=True)
        yield {"text": list(texts), "ends": list(ends)}


def _joined(rows: Iterable[Row]) -> Iterator[Row]:
    """Whole documents: the chunks of long ones are joined."""
    parts: list[str] = []
    for text, ends in rows:
        parts.append(text or "")
        if ends:
            yield "".join(parts), True
            parts = []
