"""Mistakes of the user: what programs print in one line, with exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that one line can explain: programs print it and exit with code 2, without a traceback."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # what is quoted, as a path, may hold line breaks

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks print for it."""
        return [f"error: {self}"]
