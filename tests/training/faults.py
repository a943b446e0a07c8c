"""Callbacks that spoil a run, for tests of what is to notice it."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class MovesOnResume(Callback):
    """A weight of a run that goes on is a little another one."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            with torch.no_grad():
                next(pl_module.parameters()).mul_(1.0001)


class DropsByTheClock(Callback):
    """Dropout is drawn anew each time."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seeded = pl_module.on_train_batch_start

        def by_the_clock(*arguments: Any) -> None:
            seeded(*arguments)
            torch.manual_seed(time.time_ns())

        pl_module.on_train_batch_start = by_the_clock  # type: ignore[method-assign]


class FailsOnResume(Callback):
    """A run that goes on does not."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            raise ValueError("no, thank you")
