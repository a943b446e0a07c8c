"""A training state -> last.ckpt and best.ckpt, where and when a resume is exact; and weights kept for looking back."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from minigpt.checkpoint import read_checkpoint, save_weights
from minigpt.config import Config, UserError
from minigpt.files import write_atomically
from minigpt.run_folder import RunFolder
from minigpt.training.module import TrainingModule


class Checkpoints(Checkpoint):
    """last.ckpt and best.ckpt, saved where a resume is exact; Ctrl-C and SIGTERM save and stop.

    A checkpoint is taken between optimizer steps, never within one; and where a validation is due at the same step,
    after it, as Lightning would not run it again.
    """

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config = folder, config
        self.best_val_loss, self.best_step = math.inf, -1
        self.stop_signal: int | None = None
        self._old_handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best_val_loss": self.best_val_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_val_loss, self.best_step = state_dict["best_val_loss"], state_dict["best_step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old_handlers[number] = signal.signal(number, self._on_signal)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def _on_signal(self, number: int, frame: Any) -> None:
        self.stop_signal = number
        # A second Ctrl-C stops at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step >= self.config.trainer.max_steps:
            trainer.should_stop = True  # makes Lightning validate at the very end, whatever the interval
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop._should_accumulate():
            return
        keep = self.config.keep_every_n_steps
        if keep and step % keep == 0:
            self._keep(trainer, pl_module)
        if loop._should_check_val_fx(fetcher):
            return
        every = self.config.checkpoint_every_n_steps
        stop = self._must_stop(trainer)
        if stop or (every and step % every == 0):
            self._save_last(trainer, pl_module)
        if stop:
            raise SystemExit(128 + (self.stop_signal or signal.SIGTERM))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.sanity_checking:
            return
        is_best = pl_module.val_loss < self.best_val_loss
        if is_best:
            self.best_val_loss, self.best_step = pl_module.val_loss, trainer.global_step
        self._save_last(trainer, pl_module)
        if is_best and trainer.is_global_zero:
            write_atomically(self.folder.best, lambda path: _link_or_copy(self.folder.last, path))
            save_weights(self.folder.weights, pl_module.model, self.config, pl_module.data.tokenizer)
        if self._must_stop(trainer):
            raise SystemExit(128 + (self.stop_signal or signal.SIGTERM))

    def _must_stop(self, trainer: L.Trainer) -> bool:
        stop = self.stop_signal is not None
        if trainer.world_size == 1:
            return stop
        return bool(trainer.strategy.reduce_boolean_decision(stop, all=False))

    def _keep(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The weights alone: whoever looks back needs no optimizer, which is twice as large."""
        assert isinstance(module, TrainingModule)
        self._check_finite(trainer, module)
        if trainer.is_global_zero:
            file = self.folder.kept(trainer.global_step)
            save_weights(file, module.model, self.config, module.data.tokenizer)

    def _save_last(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._check_finite(trainer, module)
        trainer.save_checkpoint(self.folder.last)

    def _check_finite(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
            raise UserError(not_finite("a weight", trainer.global_step, self.folder))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Files that are complete or not there, opened without running what is in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def _link_or_copy(source: Path, target: Path) -> None:
    """Both names for one file where the file system can: renaming a new last.ckpt leaves best.ckpt as it is."""
    target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def not_finite(what: str, step: int, folder: RunFolder) -> str:
    """What to say of a run that has gone to NaN or infinity."""
    before = f"{folder.last} is from before; " if folder.last.exists() else ""
    return (
        f"{what} is no finite number by step {step}, so the run stops; {before}a lower optimizer.learning_rate or a "
        "smaller trainer.gradient_clip_val may help"
    )
