"""`data.text_column`, `data.answer_column` and a row -> its text: columns, paths, templates, or chat messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from minigpt.config import DataConfig
from minigpt.data.answers import PAIR
from minigpt.data.sources.chat import Parts, render_messages
from minigpt.files import listed

DEFAULT = DataConfig.text_column
MESSAGES = "messages"
"""Column of a conversation, read where the default column is missing."""
_FIELD = re.compile(r"\{([^{}]+)\}")


class NoTextError(ValueError):
    """A row has no text where data.text_column says."""


class Columns(NamedTuple):
    """The columns that make a row's document."""

    text: str
    answer: str | None
    in_messages: bool
    """Whether the answers are the assistant's turns of the conversation in the answer column."""

    @classmethod
    def of(cls, config: DataConfig) -> Columns:
        return cls(config.text_column, config.answer_column, config.answers_in_messages)

    @property
    def settings(self) -> dict[str, str]:
        """Name of each setting that is used -> its value."""
        given = {"data.text_column": None if self.in_messages else self.text, "data.answer_column": self.answer}
        return {name: column for name, column in given.items() if column is not None}

    def parts(self, row: Mapping[str, Any]) -> Parts | None:
        """The text of a row in parts; None without a text, or where answers are asked for, without one.

        Raises:
            NoTextError: a column is missing, or holds no text or no conversation; says which.
        """
        if self.answer is None:
            text = text_of(row, self.text)
            return None if text is None else [(text, False)]
        prompt = None if self.in_messages else text_of(row, self.text)
        try:
            if self.in_messages:
                messages = _value(row, self.answer)
                *parts, _ = _conversation(messages, self.answer) if messages else [("", False)]
            else:
                answer = text_of(row, self.answer)
                parts = [] if prompt is None else [(PAIR(prompt), False), (answer or "", True)]
        except NoTextError as error:
            raise NoTextError(str(error).replace("data.text_column", "data.answer_column")) from None
        return parts if any(is_answer and text and not text.isspace() for text, is_answer in parts) else None


def columns_of(text_column: str, names: Sequence[str], *, chat: bool = True) -> list[str] | None:
    """The columns of a table that hold a row's text, in the order of `names`; None if one is missing.

    Args:
        text_column: the setting.
        names: the table's columns.
        chat: whether a conversation may stand for a missing default column.
    """
    if text_column in names:
        return [text_column]
    if text_column == DEFAULT:
        return [MESSAGES] if chat and MESSAGES in names else None
    fields = _FIELD.findall(text_column) or [text_column]
    wanted = {field if field in names else field.split(".")[0] for field in fields}
    return [name for name in names if name in wanted] if wanted <= set(names) else None


def text_of(row: Mapping[str, Any], text_column: str) -> str | None:
    """The text of a row; None if it is null.

    In a template, a null is empty, a number is written as Python does, and \\n and \\t are a line break and a tab.

    Raises:
        NoTextError: a column is missing or holds no text; says which.
    """
    if text_column in row:
        return _as_text(row[text_column], text_column)
    if text_column == DEFAULT and MESSAGES in row:
        return _as_text(row[MESSAGES], MESSAGES)
    if not _FIELD.search(text_column):
        return _as_text(_value(row, text_column), text_column)
    values = {field: _value(row, field) for field in _FIELD.findall(text_column)}
    if all(value is None for value in values.values()):
        return None
    parts = _FIELD.split(text_column)  # literal text and fields by turns
    literals = (part.replace("\\n", "\n").replace("\\t", "\t") for part in parts[::2])
    fields = [_in_template(values[field], field) for field in parts[1::2]]
    return "".join(part for pair in zip(literals, [*fields, ""], strict=True) for part in pair)


def _value(row: Mapping[str, Any], path: str) -> Any:
    """What a path such as meta.body or turns.0.content leads to; null if an object on its way is null."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if value is None:
            return None
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            where = f" in {path!r}" if key != path else ""
            has = listed(list(value)) if isinstance(value, Mapping) else type(value).__name__
            raise NoTextError(f"no key {key!r}{where}; it has {has}: give one as data.text_column")
    return value


def _as_text(value: Any, column: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "".join(text for text, _ in _conversation(value, column))
    raise NoTextError(f"{column!r} is {type(value).__name__}, not text")


def _in_template(value: Any, field: str) -> str:
    if isinstance(value, int | float):
        return str(value)
    return _as_text(value, field) or ""


def _conversation(messages: Any, column: str) -> Parts:
    try:
        return render_messages(messages)
    except ValueError as error:
        raise NoTextError(f"{column!r} holds no conversation: {error}") from None
