"""Checks each field of a section against its annotation: type, finiteness, and the rules declared in `Annotated`.

The rule of one field stands beside it; only rules across fields are code, in the section's `__post_init__`. Types are
checked here too, since settings given from Python bypass the parser.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from minigpt.errors import UserError

UNIONS = {Union, UnionType}
PATH = "path"
"""In an annotation: takes a Path too, which is kept as a string: YAML files and checkpoints hold plain types."""


class Rule(NamedTuple):
    """What a value other than None must satisfy, in the annotation of its field: `Annotated[int, bounds(ge=1)]`."""

    holds: Callable[[Any], object]
    text: str
    """What is said after name=value, or the whole message if it holds {name}."""


def bounds(text: str = "", **limits: float) -> Rule:
    """Bounds of a number by the names of `operator` (ge, gt, lt, le); `text` replaces the generated message."""
    words = {"ge": "at least", "gt": "above", "lt": "below", "le": "at most"}
    generated = f"must be {' and '.join(f'{words[name]} {limit}' for name, limit in limits.items())}"
    if limits.keys() == {"ge", "le"}:
        generated = "must lie between {ge} and {le}".format(**limits)
    return Rule(
        lambda value: all(getattr(operator, name)(value, limit) for name, limit in limits.items()), text or generated
    )


def matches(pattern: str, text: str) -> Rule:
    """The whole text matches a regular expression."""
    return Rule(re.compile(pattern).fullmatch, text)


def not_empty(remedy: str) -> Rule:
    """Neither the text or list is empty, nor any text of the list."""
    return Rule(lambda value: value and all(value), f"{{name}} is empty: {remedy}")


PositiveInt = Annotated[int, bounds(ge=1)]
NonNegativeInt = Annotated[int, bounds(ge=0)]
PositiveFloat = Annotated[float, bounds(gt=0)]
NonNegativeFloat = Annotated[float, bounds(ge=0)]
Seed = Annotated[int, bounds(ge=0, le=2**31 - 1)]  # what both numpy and torch take
PathName = Annotated[str, PATH]
Device = Annotated[str, matches(r"(cpu|cuda|mps|xpu|hpu)(:\d+)?", "use cpu, cuda, cuda:1 or mps")]


def require(ok: object, message: str) -> None:
    """Raise UserError with the message unless ok."""
    if not ok:
        raise UserError(message)


@dataclass(frozen=True)
class Section:
    """Base of the config's dataclasses: checks every field when built; tuples become lists, and paths strings.

    Raises:
        UserError: naming the setting, its value and the remedy.
    """

    SECTION: ClassVar[str] = ""
    """Name of the section in messages; "" for none."""

    def __post_init__(self) -> None:
        for name, wanted in _hints(type(self)).items():  # type: ignore[arg-type]
            key, value = f"{self.SECTION}.{name}".strip("."), getattr(self, name)
            require(_is_of(value, wanted), f"{key}={value!r}: expected {type_name(wanted)}")
            value = _plain(value)
            object.__setattr__(self, name, value)  # the dataclasses are frozen
            _check_rules(key, value, wanted)


@cache
def _hints(section: Any) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _is_of(value: object, wanted: Any) -> bool:
    kind, inside = get_origin(wanted), get_args(wanted)
    if kind is Annotated:
        return _is_of(value, inside[0]) or (PATH in inside and isinstance(value, os.PathLike))
    if kind in UNIONS:
        return any(_is_of(value, each) for each in inside)
    if kind is Literal:
        return value in inside
    if kind is list:
        return isinstance(value, list | tuple) and all(_is_of(each, *inside) for each in value)
    if wanted in {int, float} and isinstance(value, bool):
        return False
    return wanted is Any or isinstance(value, (int, float) if wanted is float else kind or wanted)


def _check_rules(key: str, value: Any, wanted: Any) -> None:
    kind, inside = get_origin(wanted), get_args(wanted)
    if kind is Annotated and value is not None:
        _check_rules(key, value, inside[0])
        for rule in inside[1:]:
            if rule is not PATH and not rule.holds(value):
                text = rule.text if "{name}" in rule.text else f"{{name}}={{value}}: {rule.text}"
                raise UserError(text.format(name=key, value=value))
    elif kind in UNIONS:
        _check_rules(key, value, next(each for each in inside if _is_of(value, each)))
    elif kind is list:
        for each in value:
            _check_rules(key, each, *inside)
    elif isinstance(value, float):
        require(math.isfinite(value), f"{key}={value}: must be a finite number")


def type_name(wanted: Any) -> str:
    """A type as written in Python, without its rules: `int | list[int | None]`."""
    kind, inside = get_origin(wanted), get_args(wanted)
    if kind is Annotated:
        return type_name(inside[0])
    if kind in UNIONS:
        return " | ".join(map(type_name, inside))
    if kind is Literal:
        return f"Literal[{', '.join(map(repr, inside))}]"
    if kind is not None:
        return f"{kind.__name__}[{', '.join(map(type_name, inside))}]"
    return "None" if wanted is NoneType else str(wanted.__name__)
