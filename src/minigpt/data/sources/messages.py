"""Error texts that several readers share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten

from minigpt.errors import UserError
from minigpt.files import reason


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder that cannot be read."""
    return UserError(f"data.source: {path}: {reason(error)}")


def listed(names: Iterable[str]) -> str:
    """Quoted names on one line, shortened: without a header, they are a text."""
    return shorten(", ".join(map(repr, names)), 300, placeholder=" …") or "none"
