"""Rows of prompts and answers -> documents, with the places of their answers."""

from __future__ import annotations

from collections.abc import Iterator

from minigpt.config import DataConfig
from minigpt.data.answers import joined
from minigpt.data.relations import Span
from minigpt.data.sources.names import File
from minigpt.data.sources.rows import HAVE_COLUMNS, column_rows
from minigpt.errors import UserError


def answer_rows(file: File, config: DataConfig) -> Iterator[tuple[str, list[Span]] | None]:
    """The document of each row, and the characters of its answers; None for a row without a prompt or an answer.

    Raises:
        UserError: the file has no columns, or not these; or it cannot be read.
    """
    if file.kind not in HAVE_COLUMNS:
        raise no_columns(str(file.path), config)
    for parts in column_rows(file, config):
        yield None if parts is None else joined(parts)


def no_columns(name: str, config: DataConfig) -> UserError:
    """The error for text without columns."""
    return UserError(
        f"data.answer_column={config.answer_column}: {name} has no columns; give JSON Lines, CSV, Parquet or Arrow, or "
        "leave the setting out"
    )
