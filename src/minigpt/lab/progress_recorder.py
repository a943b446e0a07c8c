"""The callback that writes a run's `ProgressFile`. Apart from it, as Lightning takes seconds to import."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from minigpt.lab.progress_file import END, SAVE, STEP, VALIDATION

_LENGTH = 32
"""Fixed length of the line in bytes: a shorter line would leave the end of the previous one."""


class ProgressRecorder(Callback):
    """Writes a few bytes at each step. It has no state, so it does not change the checkpoints."""

    def __init__(self, path: str) -> None:
        """Args: path is the file."""
        self.path = path
        self._file: int | None = None
        self._first: int | None = None  # step from which this process trains

    def _note(self, trainer: L.Trainer, phase: str) -> None:
        if not trainer.is_global_zero:
            return
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(self._file, f"{phase} {trainer.global_step}".ljust(_LENGTH).encode(), 0)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._first = trainer.global_step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != self._first:  # the first step compiles, and takes as long as hundreds of others
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
