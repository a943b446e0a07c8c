"""A source -> its documents, one after another, long ones in pieces: text of any length in bounded memory.

`datasets` does the loading; files reach it through a generator of their rows.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.config import DataConfig, UserError
from minigpt.data.pieces import cut_up, grouped
from minigpt.data.relations import Relation
from minigpt.data.rows import PIECE, Row, read_rows
from minigpt.data.scan import Scans, chunks
from minigpt.data.sources import SYNTHETIC_DOCUMENTS, File, Source
from minigpt.data.synthetic import SYNTHETIC
from minigpt.data.tables import ROWS


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
    if source.name == "python_stdlib":
        groups = _groups(source.files, config.text_column, config.encoding_errors)  # needs no package
    else:
        groups = _dataset_groups(source, config)
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
        UserError: a file is not UTF-8 and the policy is `error`, or no text is left.
    """
    found = scans.of(source.files)
    if source.files and not sum(scan.n_bytes for scan in found):
        raise UserError(f"data.source={source.name}: no text in it, all files are empty")
    broken = [(f, scan.bad_byte) for f, scan in zip(source.files, found, strict=True) if scan.bad_byte is not None]
    if broken and config.encoding_errors == "error":
        file, place = broken[0]
        raise UserError(
            f"data.source: {file.path} is not UTF-8 text (byte {place}{_hint(file)}); convert it, for example with "
            "iconv -t utf-8, or set data.encoding_errors to replace or skip"
        )
    if config.encoding_errors != "skip" or not broken:
        return source, []
    left = tuple(file for file in source.files if file not in {f for f, _ in broken})
    if not left:
        raise UserError(f"data.source={source.name}: no file of it is UTF-8 text, so skipping them leaves nothing")
    return Source(source.name, left), [str(file.path) for file, _ in broken]


def _hint(file: File) -> str:
    start = next(iter(chunks(file)))[:2]
    return ", it looks like UTF-16" if start in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE} else ""


Group = dict[str, list[Any]]
"""Some rows as columns: text, and ends, as of a Piece. `datasets` takes many small rows slowly one by one."""


def _dataset_groups(source: Source, config: DataConfig) -> Iterator[Group]:
    """Rows through `datasets`."""
    kept = {"files": list(source.files), "column": config.text_column, "errors": config.encoding_errors}
    yield from _import_datasets(config).IterableDataset.from_generator(_groups, gen_kwargs=kept)


def open_stream(source: Source, config: DataConfig) -> Any:
    """A source's whole documents as an IterableDataset, whose state says where it stands.

    Rows are of several texts: {"text": [...], "ends": [True, ...]}.

    Raises:
        UserError: the source cannot be streamed.
    """
    if source.synthetic is not None:
        raise UserError(f"data.source={source.name}: is made here and needs no data.streaming")
    kept = {"files": list(source.files), "column": config.text_column, "errors": config.encoding_errors, "whole": True}
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


def _groups(files: Sequence[File], column: str, errors: str, whole: bool = False) -> Iterator[Group]:
    """Rows of files of any kind; on demand with the pieces of a long document joined."""
    rows = chain.from_iterable(read_rows(file, column, errors) for file in files)
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
