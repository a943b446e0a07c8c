"""Builds objects from {class_path, init_args} mappings in a recipe."""

from __future__ import annotations

import importlib
from typing import Any

from minigpt.errors import UserError


def instantiate(value: Any) -> Any:
    """Build the object of a {class_path, init_args} mapping, alone or in a list; return anything else unchanged.

    Raises:
        UserError: the class cannot be imported or refuses the arguments.
    """
    if isinstance(value, list):
        return [instantiate(item) for item in value]
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    found = find_class(value)
    try:
        return found(**value.get("init_args", {}))
    except Exception as error:  # a class outside minigpt can raise anything
        raise _cannot_be_made(value, error) from error


def find_class(value: dict[str, Any]) -> Any:
    """Import the class of a {class_path, init_args} mapping.

    Raises:
        UserError: it cannot be imported.
    """
    module_name, _, class_name = str(value["class_path"]).rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise _cannot_be_made(value, error) from error


def one_line(error: Exception) -> str:
    """Type and message of any error, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _cannot_be_made(value: dict[str, Any], error: Exception) -> UserError:
    return UserError(f"class_path={value['class_path']}: cannot be built ({one_line(error)})")
