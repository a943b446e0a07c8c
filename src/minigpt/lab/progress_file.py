"""A run's phase and step in a one-line file: a callback writes it, `prove_resume` reads it to time its kills."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

START, STEP, SAVE, VALIDATION, END = PHASES = ("start", "step", "save", "validation", "end")
"""start: before the first step. save: from the start of a checkpoint to the next step. end: after the last step."""

_LENGTH = 32
"""Fixed length of the line in bytes: a shorter line would leave the end of the previous one."""


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


class ProgressRecorder(Callback):
    """Writes a few bytes at each step. It has no state, so it does not change the checkpoints."""

    def __init__(self, path: str) -> None:
        """Args: path is the file."""
        self.path = path
        self._file: int | None = None

    def _note(self, trainer: L.Trainer, phase: str) -> None:
        if not trainer.is_global_zero:
            return
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(self._file, f"{phase} {trainer.global_step}".ljust(_LENGTH).encode(), 0)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._note(trainer, STEP)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._note(trainer, STEP)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._note(trainer, VALIDATION)

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        self._note(trainer, SAVE)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._note(trainer, END)

    def teardown(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
