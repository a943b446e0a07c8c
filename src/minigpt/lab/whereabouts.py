"""A run -> a file of one line that always says where it is, for whoever kills it: step, and what it is doing there."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from minigpt.lab.place import END, SAVE, STEP, VALIDATION

_LENGTH = 32
"""Of the line: a shorter one would leave the end of the one before."""


class Whereabouts(Callback):
    """One write of a few bytes at each step; it has no state, so a checkpoint holds nothing of it."""

    def __init__(self, path: str) -> None:
        """Args: the file."""
        self.path = path
        self._file: int | None = None

    def _note(self, trainer: L.Trainer, phase: str) -> None:
        if not trainer.is_global_zero:
            return
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(self._file, f"{phase} {trainer.global_step}".ljust(_LENGTH).encode(), 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(trainer, STEP)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._note(trainer, STEP)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._note(trainer, VALIDATION)

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        self._note(trainer, SAVE)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(trainer, END)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
