"""A run's phase and step in a one-line file, which `prove_resume` reads to time its kills."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

START, STEP, SAVE, VALIDATION, END = PHASES = ("start", "step", "save", "validation", "end")
"""start: until the process has done its first step. save: from the start of a checkpoint to the next step. end: after
the last step."""


@dataclass(frozen=True)
class ProgressFile:
    """A run's current phase and step."""

    phase: str = START
    step: int = 0
    """Completed optimizer steps."""

    @property
    def order(self) -> tuple[int, int]:
        """Sort key that grows during a run: validation and save after a step come before the next step."""
        return self.step, (START, VALIDATION, SAVE, STEP, END).index(self.phase)

    @classmethod
    def read(cls, path: Path) -> ProgressFile:
        """Read the file; the start if there is none."""
        words = path.read_text(encoding="utf-8").split() if path.exists() else []
        return cls(words[0], int(words[1])) if len(words) == 2 else cls()
