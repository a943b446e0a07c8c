"""What programs print in one line, with exit code 2: mistakes of the user, and too little memory."""

from __future__ import annotations

import errno
import re


class UserError(ValueError):
    """A mistake that one line can explain: programs print it and exit with code 2, without a traceback."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # what is quoted, as a path, may hold line breaks

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks print for it."""
        return [f"error: {self}"]


def memory_reason(error: Exception) -> str:
    """How much was asked for, in the words of torch or numpy, or the error's first sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    asked = re.search(r"(?:tried|unable) to allocate [\d.,]+ ?\w+", text, re.IGNORECASE)
    return asked[0][0].lower() + asked[0][1:] if asked else text.split(". ")[0]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a device or the CPU had too little memory, also where a compiler wraps that error in one of its own.

    By what torch says, without importing it: its CPU's and Apple's allocators raise plain RuntimeErrors.
    """
    said = "out of memory", "can't allocate memory", "not enough memory"
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError) and any(each in str(error) for each in said):
            return True
        error = error.__cause__ or error.__context__
    return False
