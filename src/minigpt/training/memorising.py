"""Says when a run memorises its text: val/loss rises from its best while train/loss goes on falling."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from minigpt.config import Config
from minigpt.training.callbacks import metrics_of
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.module import TrainingModule

SHARE, NATS = 0.01, 0.02
"""A rise of val/loss counts if it is more than this share of the best and at least this many nats: else it is noise."""
IN_A_ROW = 2
"""Consecutive validations with such a rise after which the run memorises."""


class Memorising(Callback):
    """Prints one line when the run memorises, and ends it there with `stop_when_memorising`.

    Both losses are the same on all ranks, so all take the same decision.
    """

    def __init__(self, config: Config) -> None:
        self.stops = config.stop_when_memorising
        self.best, self.best_step = math.inf, -1
        self.train_at_best = math.nan
        self.in_a_row = 0
        self.said = False

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_step", "train_at_best", "in_a_row", "said")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def notes(self, step: int, val_loss: float, train_loss: float) -> bool:
        """Take in a validation; returns whether the run memorises. A NaN train_loss (none logged yet) is not a fall."""
        if val_loss < self.best:
            self.best, self.best_step, self.train_at_best = val_loss, step, train_loss
        rise = val_loss - self.best
        is_rise = rise > SHARE * self.best and rise >= NATS
        self.in_a_row = self.in_a_row + 1 if is_rise and train_loss < self.train_at_best else 0
        return self.in_a_row >= IN_A_ROW

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.sanity_checking:
            return
        train_loss = metrics_of(trainer).train_loss
        if not self.notes(trainer.global_step, pl_module.val_loss, train_loss):
            return
        if not self.said:
            saves = any(isinstance(each, Checkpoints) for each in trainer.callbacks)  # type: ignore[attr-defined]
            trainer.print(self._line(pl_module.val_loss, train_loss, saves=saves), flush=True)
        self.said = True
        if self.stops:
            trainer.should_stop = True  # before `Checkpoints` saves, so that the checkpoint says that the run ended

    def _line(self, val_loss: float, train_loss: float, *, saves: bool) -> str:
        kept = "; the best weights are kept" if saves else ""
        end = "; stop_when_memorising ends the run here" if self.stops else ""
        advice = "Use fewer steps, more text, weight_decay or dropout"
        return (
            f"memorising: val/loss has risen from {self.best:.2f} (step {self.best_step}) to {val_loss:.2f} while "
            f"train/loss fell to {train_loss:.2f}{kept}{end}. {advice}"
            f"{'' if self.stops else ', or --stop_when_memorising true to end here'}"
        )
