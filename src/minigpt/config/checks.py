"""Validation helpers for the config sections; each raises UserError naming the setting and its value."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from minigpt.errors import UserError


def require(ok: bool, message: str) -> None:
    """Raise UserError with the message unless ok."""
    if not ok:
        raise UserError(message)


def require_finite(prefix: str, config: Any) -> None:
    """Refuse float settings that are NaN or inf; prefix is the section's name in messages, "" for none."""
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        require(
            not isinstance(value, float) or math.isfinite(value),
            f"{f'{prefix}.{field_.name}'.strip('.')}={value}: must be a finite number",
        )


def require_types(prefix: str, config: Any) -> None:
    """Check types of settings given from Python, which bypass the parser; tuples become lists."""
    section: Any = type(config)
    for name, wanted in _hints(section).items():
        value = getattr(config, name)
        if isinstance(value, tuple):
            value = list(value)
            object.__setattr__(config, name, value)
        expected = str(wanted).replace("typing.", "") if get_origin(wanted) else wanted.__name__
        require(_is_of(value, wanted), f"{f'{prefix}.{name}'.strip('.')}={value!r}: expected {expected}")


@cache
def _hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


def take_paths(config: Any, *names: str) -> None:
    """Convert Path values to strings, so that YAML files and checkpoints hold plain types."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list | tuple):
            value = [os.fspath(each) if isinstance(each, os.PathLike) else each for each in value]
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        object.__setattr__(config, name, value)


def _is_of(value: object, wanted: Any) -> bool:
    if wanted is Any:
        return True
    if get_origin(wanted) in {Union, UnionType}:
        return any(_is_of(value, each) for each in get_args(wanted))
    if get_origin(wanted) is dict:
        return isinstance(value, dict)
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is list:
        return isinstance(value, list | tuple) and all(_is_of(each, *get_args(wanted)) for each in value)
    if wanted in {int, float} and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if wanted is float else wanted)


def require_device(device: str) -> None:
    """Refuse a name that is not of the form of torch's devices."""
    require(
        re.fullmatch(r"(cpu|cuda|mps|xpu|hpu)(:\d+)?", device) is not None,
        f"device={device}: use cpu, cuda, cuda:1 or mps",
    )


def is_object(value: Mapping[str, Any]) -> bool:
    """Whether a mapping has the form {class_path, init_args}."""
    path, arguments = value.get("class_path"), value.get("init_args", {})
    named = isinstance(path, str) and re.fullmatch(r"\w+(\.\w+)+", path) is not None
    return named and isinstance(arguments, dict) and set(value) <= {"class_path", "init_args"}


def require_at_least(prefix: str, config: object, minimum: float, *names: str) -> None:
    """Refuse named settings below a minimum; None passes."""
    for name in names:
        value = getattr(config, name)
        require(
            value is None or value >= minimum,
            f"{f'{prefix}.{name}'.strip('.')}={value}: must be at least {minimum:g}",
        )


def require_seed(name: str, seed: int) -> None:
    """Refuse a seed that numpy or torch would not take."""
    require(0 <= seed < 2**31, f"{name}={seed}: must lie between 0 and 2147483647")
