"""`minigpt compare --set NAME=VALUE,...`: the grid of variants of each recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minigpt.cli import parsing
from minigpt.cli.recipes import did_you_mean, find_recipe
from minigpt.config import CompareConfig, Config, Variant
from minigpt.errors import UserError

NOT_SET = {
    "name": "the variants are named by their settings",
    "runs_dir": "give the folder as --out",
    "seed": "give the seeds as --seeds 1 2 3",
}
"""Settings that `--set` refuses, and what to do instead."""
LONGEST_NAME = 80
"""Characters of a variant's name before it is cut and gets a hash: it names a folder, of at most 255 bytes."""


def load_variants(asked: CompareConfig) -> list[Variant]:
    """The variants of each recipe: one for each combination of the values of all `--set`.

    Raises:
        UserError: a recipe is wrong; or an override is, naming --set.
    """
    grid = _grid(asked.set)
    budget = [f"--trainer.max_steps={asked.max_steps}", "--trainer.max_time=null"] if asked.max_steps else []
    variants: list[Variant] = []
    for recipe in asked.recipes:
        file = str(find_recipe(recipe, "recipe "))
        words = [f"--config={file}", *budget]
        base = parsing.parse_training(words)[0]  # a mistake in the recipe is not one in --set
        for values in itertools.product(*grid.values()):
            changed = dict(zip(grid, values, strict=True))
            config = _changed(words, changed) if changed else base
            settings = {key: shown(config, key) for key in grid if len(grid[key]) > 1}
            variants.append(_named(file, config, settings, several=len(asked.recipes) > 1))
            if settings and variants[-1].config in [each.config for each in variants[:-1] if each.file == file]:
                raise UserError(f"--set: {variants[-1].label} is asked for twice: give each value once")
    return variants


def split_values(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes: `[8,null],null` has two values."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not values[-1].strip(" [{,:"):  # elsewhere it is an apostrophe
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth <= 0:
            values.append("")
            continue
        values[-1] += character
    return [value.strip() for value in values]


def shown(config: Config, key: str) -> str:
    """The value of a setting, as YAML has it on one line."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _grid(given: Sequence[str]) -> dict[str, list[str]]:
    """Dotted name -> values, of the words of `--set`."""
    types = parsing.settings_of(Config)
    known = [key for key, kind in types.items() if kind != "group" and key not in NOT_SET]
    grid: dict[str, list[str]] = {}
    for word in given:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--set {word}: needs a value, as in --set optimizer.learning_rate=1e-3,3e-3")
        if key in NOT_SET:
            raise UserError(f"--set {word}: {NOT_SET[key]}")
        if types.get(key) == "group":
            raise UserError(f"--set {word}: {key} is a group of settings; name one of them, as {key}.NAME=VALUE")
        if key not in types:
            raise UserError(f"--set {word}: unknown setting {key}{did_you_mean(key, known)}")
        if key in grid:
            raise UserError(f"--set {word}: {key} was given before; write all its values in one --set, with commas")
        grid[key] = split_values(text)
    return grid


def _changed(words: Sequence[str], changed: Mapping[str, str]) -> Config:
    try:
        return parsing.parse_training([*words, *(f"--{key}={value}" for key, value in changed.items())])[0]
    except UserError as error:
        message, given = str(error), " ".join(f"{key}={value}" for key, value in changed.items())
        starts = any(message.startswith(f"{key}={value}:") for key, value in changed.items())
        raise UserError(f"--set {message}" if starts else f"--set {given}: {message}") from None


def _named(file: str, config: Config, settings: Mapping[str, str], several: bool) -> Variant:
    """The variant with its label, and with a name for its folder; `several`: of more than one recipe."""
    if not settings:
        return Variant(file, config, config.name, settings)
    pairs = {_short(key): value for key, value in settings.items()}
    label = " ".join([*([config.name] if several else []), *(f"{key}={value}" for key, value in pairs.items())])
    exact = "-".join([config.name, *(f"{key}-{value}" for key, value in pairs.items())])
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", exact).rstrip("_")[:LONGEST_NAME]
    if name != exact:  # two values may look alike without their brackets or slashes
        name += f"-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"
    return Variant(file, dataclasses.replace(config, name=name), label, settings)


def _short(key: str) -> str:
    """A setting's name without its section, unless another section has one of that name."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(name.rsplit(".", 1)[-1] == last for name in parsing.settings_of(Config)) == 1 else key
