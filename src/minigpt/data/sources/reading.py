"""A source -> its documents, one after another, long ones in pieces: text of any length in bounded memory.

`datasets` does the loading; files reach it through a generator of their rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.config import DataConfig
from minigpt.data.relations import Relation
from minigpt.data.sources.chunking import cut_up, grouped
from minigpt.data.sources.names import SYNTHETIC_DOCUMENTS, File, Source
from minigpt.data.sources.rows import DELIMITERS, PIECE, Row, csv_delimiter, read_rows
from minigpt.data.sources.scan import Scans, not_in_encoding
from minigpt.data.sources.tables import ROWS
from minigpt.data.synthetic.texts import SYNTHETIC
from minigpt.errors import UserError


class Piece(NamedTuple):
    """A document, or a part of a long one: parts follow one another, and the last one ends it."""

    text: str
    ends: bool = True
    relations: Sequence[Relation] = ()


def read(source: Source, config: DataConfig) -> Iterator[Piece]:
    """Every document of a source that is more than white space.

    Raises:
        UserError: a file cannot be read or understood; named, with the place where that is known.
    """
    if source.synthetic is not None:
        n_documents = config.max_documents or SYNTHETIC_DOCUMENTS
        documents = SYNTHETIC[source.synthetic](source.seed)
        for (text, relations), _ in zip(documents, range(n_documents), strict=False):
            yield Piece(text, True, relations)
        return
    needs_no_package = source.name == "python_stdlib"
    groups = _groups(source.files, config) if needs_no_package else _dataset_groups(source, config)
    begins = True
    for group in groups:
        for text, ends in zip(group["text"], group["ends"], strict=True):
            if text is None or (begins and ends and (not text or text.isspace())):
                continue
            *parts, last = cut_up(text, PIECE // 2, PIECE)
            for part in parts:
                yield Piece(part, False)
            yield Piece(last, ends)
            begins = ends


def refuse_broken_text(source: Source, scans: Scans, config: DataConfig) -> tuple[Source, list[str]]:
    """The source without the files that data.encoding_errors=skip leaves out, and their names.

    Raises:
        UserError: a file is not text in data.encoding and the policy is `error`, or no text is left.
    """
    found = scans.of(source.files)
    if source.files and not sum(scan.n_bytes for scan in found):
        raise UserError(f"data.source={source.name}: no text in it, all files are empty")
    # Else one advice follows another: the encoding of one file is wrong for the next.
    others = f"; it is one of {len(found)} files: convert it if it alone is so" if len(found) > 1 else ""
    broken = []
    for file, scan in zip(source.files, found, strict=True):
        if scan.other is not None and config.encoding_errors != "skip":  # replacing would make garbage of it
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
        raise UserError(f"data.source={source.name}: no file of it is {name} text, so skipping them leaves nothing")
    return replace(source, files=left), [str(file.path) for file in broken]


def reading_notes(source: Source, config: DataConfig, scans: Scans | None = None) -> Iterator[str]:
    """What to tell the user of how a source is read, a line each, where it may not be what they expect.

    Args:
        source: found, without the files that are skipped.
        config: how it is read.
        scans: of its files; without them nothing is said of their encoding.
    """
    files = source.files
    yield from source.notes
    delimiters = {file: csv_delimiter(file, config) for file in files if file.kind in DELIMITERS}
    if config.delimiter is None:
        for character in sorted(set(delimiters.values())):
            these = [f for f, found in delimiters.items() if found == character != DELIMITERS[f.kind][0]]
            if these:
                yield f"the fields of {_some(these)} are separated by {character!r}, by the heading (data.delimiter)"
    looks = dict(zip(files, scans.of(files), strict=True)) if scans else {}
    replaced = [file for file, scan in looks.items() if scan.bad_byte is not None]
    if replaced:
        n_replaced = sum(looks[file].n_replaced for file in replaced)
        plural = "" if n_replaced == 1 else "s"
        yield f"{n_replaced:,} character{plural} replaced by U+FFFD, as not {config.encoding}, in {_some(replaced)}"
    if utf8 := [file for file, scan in looks.items() if scan.is_utf8]:
        yield f"{_some(utf8)} is valid UTF-8, but read as {config.encoding} (data.encoding)"


def _some(files: Sequence[File]) -> str:
    """The first of some files, and how many more there are."""
    return str(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


Group = dict[str, list[Any]]
"""Some rows as columns: text, and ends, as of a Piece. `datasets` takes many small rows slowly one by one."""


def _dataset_groups(source: Source, config: DataConfig) -> Iterator[Group]:
    """Rows through `datasets`."""
    kept = {"files": list(source.files), "config": config}
    yield from _import_datasets(config).IterableDataset.from_generator(_groups, gen_kwargs=kept)


def open_stream(source: Source, config: DataConfig) -> Any:
    """A source's whole documents as an IterableDataset, whose state says where it stands.

    Rows are of several texts: {"text": [...], "ends": [True, ...]}.

    Raises:
        UserError: the source cannot be streamed.
    """
    if source.synthetic is not None:
        raise UserError(f"data.source={source.name}: is made here and needs no data.streaming")
    kept = {"files": list(source.files), "config": config, "whole": True}
    return _import_datasets(config).IterableDataset.from_generator(_groups, gen_kwargs=kept)


def _import_datasets(config: DataConfig) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "data.source: reading files and datasets needs the package 'datasets': pip install datasets"
        ) from None
    datasets.disable_progress_bars()
    # It makes this folder though nothing is kept in it, by default in a home that perhaps cannot be written.
    datasets.config.HF_DATASETS_CACHE = Path(config.dir, "huggingface")
    return datasets


def _groups(files: Sequence[File], config: DataConfig, whole: bool = False) -> Iterator[Group]:
    """Rows of files of any kind; on demand with the pieces of a long document joined."""
    rows = chain.from_iterable(read_rows(file, config) for file in files)
    for group in grouped(_joined(rows) if whole else rows, lambda row: len(row[0] or ""), PIECE, ROWS):
        texts, ends = zip(*group, strict=True)
        yield {"text": list(texts), "ends": list(ends)}


def _joined(rows: Iterable[Row]) -> Iterator[Row]:
    parts: list[str] = []
    for text, ends in rows:
        parts.append(text or "")
        if ends:
            yield "".join(parts), True
            parts = []
