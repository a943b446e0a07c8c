"""Rows of prompts and answers -> documents, with the places of their answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from minigpt.config import DataConfig
from minigpt.data.answers import PAIR, joined
from minigpt.data.relations import Span
from minigpt.data.sources.names import File
from minigpt.data.sources.rows import read_rows
from minigpt.errors import UserError

HAVE_COLUMNS = ("jsonl", "csv", "tsv", "parquet", "arrow")


def answer_rows(file: File, config: DataConfig) -> Iterator[tuple[str, list[Span]]]:
    """The document of each row, and the characters of its answers; rows without a prompt or an answer are skipped.

    The file is read once for each column: every reader then works as it is, for any kind of file.

    Raises:
        UserError: the file has no columns, or not these; or it cannot be read.
    """
    if file.kind not in HAVE_COLUMNS:
        raise no_columns(str(file.path), config)
    prompts = read_rows(file, config)
    for (prompt, _), answer in zip(prompts, _answers(file, config), strict=True):
        if prompt is not None and answer and not answer.isspace():
            yield joined([(PAIR(prompt), False), (answer, True)])


def no_columns(name: str, config: DataConfig) -> UserError:
    """The error for text without columns."""
    return UserError(
        f"data.answer_column={config.answer_column}: {name} has no columns; give JSON Lines, CSV, Parquet or Arrow, or "
        "leave the setting out"
    )


def _answers(file: File, config: DataConfig) -> Iterator[str | None]:
    try:
        for answer, _ in read_rows(file, replace(config, text_column=str(config.answer_column), answer_column=None)):
            yield answer
    except UserError as error:  # of a missing column
        raise UserError(str(error).replace("data.text_column", "data.answer_column")) from None
