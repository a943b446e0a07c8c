"""Error texts that several readers share."""

from __future__ import annotations

from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import reason


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder that cannot be read."""
    return UserError(f"data.source: {path}: {reason(error)}")
