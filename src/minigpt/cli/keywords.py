"""Settings given as keyword arguments of Python, turned into the words of a command line, which `parsing` checks."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from minigpt.cli.parsing import option_names
from minigpt.cli.recipes import did_you_mean
from minigpt.errors import UserError


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """The words `--name=value` of settings.

    Args:
        settings: by dotted name (`model.n_layer`), by a last name that only one setting has (`n_layer`), or a group as
            a dictionary or dataclass (`model={"n_layer": 3}`).

    Raises:
        UserError: a name that is unknown, ambiguous or given twice, or a value that no file of settings could hold.
    """
    options, words = option_names(), dict[str, str]()
    for name, value in _leaves(settings, options):
        if name in words:
            raise UserError(f"{name} is given twice: leave one of them out")
        words[name] = f"--{name}={_text(name, value)}"
    return list(words.values())


def _leaves(settings: Mapping[str, Any], options: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The full name and value of each single setting."""
    for given, value in settings.items():
        name = _full_name(f"{prefix}{given}", options)
        inside = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        if name in options:
            yield name, inside
        elif isinstance(inside, Mapping):
            yield from _leaves(inside, options, f"{name}.")
        else:
            raise UserError(f"{name}={value!r}: is a group of settings: give a dictionary, or {name}.NAME alone")


def _full_name(given: str, options: Collection[str]) -> str:
    if given in options or any(option.startswith(f"{given}.") for option in options):
        return given
    found = [] if "." in given else sorted(option for option in options if option.endswith(f".{given}"))
    if len(found) > 1:
        raise UserError(f"{given}: could be {' or '.join(found)}: write it in full, as in **{{{found[0]!r}: ...}}")
    if not found:
        raise UserError(f"unknown setting {given}{_guess(given, options)}")
    return found[0]


def _guess(given: str, options: Collection[str]) -> str:
    """The likeliest setting; a short name is compared with short names first."""
    if "." not in given:
        short = {option.rsplit(".", 1)[-1] for option in options}
        if hint := did_you_mean(given, short):
            return hint
    return did_you_mean(given, options)


def _text(name: str, value: Any) -> str:
    """A value as the command line has it: a text as it is, anything else as JSON."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of numpy or torch
        value = value.item()
    try:
        return json.dumps(value, ensure_ascii=False, default=os.fspath)
    except (TypeError, ValueError):
        raise UserError(f"{name}={value!r}: expected a plain value, such as a number, a text or a list") from None
