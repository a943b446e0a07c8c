"""Weights after each step -> their moving average, which is what is validated, shown and saved."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging


class Averaging(EMAWeightAveraging):
    """Lightning's exponential moving average, in place for as long as anybody looks.

    Lightning's own takes the average away before `on_validation_end`, where samples are written, attention is looked at
    and the best weights are saved: those would not be the weights whose loss was measured.
    """

    def __init__(self, decay: float) -> None:
        """Args: share of the average that stays at each step."""
        super().__init__(decay=decay, use_buffers=False)
        self.in_place = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        """A step that was left out is none of the average's either."""
        if pl_module.left_out:
            self._latest_update_step = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, *rest)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self.in_place = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Too early; the module calls `restore`."""

    def restore(self, module: L.LightningModule) -> None:
        """Put the weights that are trained back into the model."""
        if self.in_place:
            self._swap_models(module)
            self.in_place = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.in_place:  # then each of the two holds the other's weights
            average, trained = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint |= {"state_dict": average, "current_model_state": trained}
