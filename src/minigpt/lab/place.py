"""Where a run is, as a line of a file: written by the run, read by whoever waits for a place in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

START, STEP, SAVE, VALIDATION, END = PHASES = ("start", "step", "save", "validation", "end")
"""start: before the first step. save: from a checkpoint's beginning to the next step. end: when no step is left."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is."""

    phase: str = START
    step: int = 0
    """Optimizer steps that are done."""

    @property
    def order(self) -> tuple[int, int]:
        """Grows while a run goes on: of a number of done steps, what belongs to the last one comes first."""
        return self.step, (START, VALIDATION, SAVE, STEP, END).index(self.phase)

    @classmethod
    def read(cls, path: Path) -> Place:
        """What stands in the file; the start where there is none."""
        words = path.read_text(encoding="utf-8").split() if path.exists() else []
        return cls(words[0], int(words[1])) if len(words) == 2 else cls()
