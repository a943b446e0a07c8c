"""Exponential moving average (EMA) of the weights, used for validation, samples and the saved best weights."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging


class Averaging(EMAWeightAveraging):
    """Lightning's EMA, kept in the model until the end of validation.

    Lightning's own swaps the average out before `on_validation_end`, where samples, attention maps and the best weights
    are written: those would not be the weights whose loss was measured.
    """

    def __init__(self, decay: float) -> None:
        """Args: decay of the average per step, in [0, 1)."""
        super().__init__(decay=decay, use_buffers=False)
        self.in_place = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        """Skipped steps do not update the EMA."""
        if pl_module.left_out:
            self._latest_update_step = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, *rest)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self.in_place = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do not swap here, as Lightning does: the module calls `restore` later."""

    def restore(self, module: L.LightningModule) -> None:
        """Swap the trained weights back into the model."""
        if self.in_place:
            self._swap_models(module)
            self.in_place = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.in_place:  # average and trained weights are swapped at this moment
            average, trained = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint |= {"state_dict": average, "current_model_state": trained}
