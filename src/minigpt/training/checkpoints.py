"""Training state -> checkpoints: last.ckpt, earlier ones and best.ckpt, for exact resume; and weights alone."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.plugins.io import TorchCheckpointIO

from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.files import link_or_copy
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import read_checkpoint, save_checkpoint, save_weights, tensors_in
from minigpt.signals import SIGNALS
from minigpt.training.distributed import any_rank, gather_model, local, on_rank_zero, reduce_max
from minigpt.training.lightning_compat import (
    is_between_steps,
    set_validation_counters,
    sharded_checkpoint_setting,
    validate,
    validates_next,
    validation_counters,
)
from minigpt.training.module import TrainingModule
from minigpt.training.stopping import StopSignals


class Checkpoints(Checkpoint):
    """Saves last.ckpt and best.ckpt at points from which resume is exact; saves and ends the run on a stop signal.

    A checkpoint is saved between optimizer steps, never between micro-batches. If a validation is due at the same step,
    the checkpoint waits for it, since Lightning would not repeat it after a resume. A stop signal does not wait: the
    resumed run then starts with that validation.
    """

    def __init__(self, folder: RunFolder, config: Config, stop: StopSignals) -> None:
        self.folder, self.config, self.stop = folder, config, stop
        self.best_val_loss, self.best_step = math.inf, -1
        self.validation_due = False
        self.ended = False  # whether the run ended with this checkpoint: steps or time used up, or a callback
        self._val_progress: dict[str, Any] = {}  # Lightning's counters before a validation
        self._saved_at = time.monotonic()
        self._step_of_last: int | None = None  # None until this process has saved last.ckpt itself

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_val_loss": self.best_val_loss,
            "best_step": self.best_step,
            "validation_due": self.validation_due,
            "ended": self.ended,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_val_loss, self.best_step = state_dict["best_val_loss"], state_dict["best_step"]
        self.validation_due = state_dict.get("validation_due", False)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # EarlyStopping restores its patience from the checkpoint; the current config's counts.
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.keep_for(trainer)
        self._saved_at = time.monotonic()
        if self.validation_due:
            self.validation_due = False
            validate(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step >= self.config.trainer.max_steps:
            trainer.should_stop = True  # makes Lightning validate at the very end, whatever the interval
        if not is_between_steps(trainer):
            return
        keep = self.config.keep_every_n_steps
        if keep and step % keep == 0:
            # Weights alone: inspection needs no optimizer state, which is twice as large.
            self._check_finite(trainer, pl_module)
            self._save_weights(trainer, pl_module, self.folder.kept(step))
        validates, is_last = validates_next(trainer), self._ends(trainer)
        assert isinstance(pl_module, TrainingModule)
        # As of the optimizer step: what was asked after it is read after the next one.
        number, is_time = self._told(pl_module.requested)
        if validates and (is_last or not number):
            return
        every = self.config.checkpoint_every_n_steps
        if number or is_time or (every and step % every == 0):
            self.validation_due = validates
            self._save_last(trainer, pl_module)
        if number:
            raise SystemExit(128 + number)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._val_progress = validation_counters(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.sanity_checking or self._ends(trainer):  # with this validation
            return
        number = self._signal(trainer)
        if number:
            self.validation_due = True
            set_validation_counters(trainer, self._val_progress)
            self._save_last(trainer, pl_module)
            raise SystemExit(128 + number)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.sanity_checking:
            return
        is_best = pl_module.val_loss < self.best_val_loss
        if is_best:
            self.best_val_loss, self.best_step = pl_module.val_loss, trainer.global_step
        self.validation_due = False
        self._save_last(trainer, pl_module, is_best=is_best)
        number = self._signal(trainer)
        if number:
            raise SystemExit(128 + number)

    def _ends(self, trainer: L.Trainer) -> bool:
        """Whether the run ends with this step; before min_steps, Lightning ignores should_stop."""
        return trainer.should_stop and trainer.global_step >= (self.config.trainer.min_steps or 0)

    def requests(self) -> list[bool]:
        """Whether this rank has received each of SIGNALS, and whether a timed checkpoint is due by its clock."""
        minutes = self.config.checkpoint_every_n_minutes
        is_time = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return [*(self.stop.received == number for number in SIGNALS), is_time]

    def _told(self, requested: list[bool]) -> tuple[int, bool]:
        """The stop signal that any rank has received (0: none), and whether a timed checkpoint is due."""
        *signals, is_time = requested
        return max((number for number, asked in zip(SIGNALS, signals, strict=True) if asked), default=0), is_time

    def _signal(self, trainer: L.Trainer) -> int:
        """The stop signal that any rank has received by now; 0: none. Collective."""
        return reduce_max(trainer, self.stop.received)[0]

    def _save_weights(self, trainer: L.Trainer, module: L.LightningModule, file: Path) -> None:
        assert isinstance(module, TrainingModule)
        model = gather_model(module.model)
        on_rank_zero(
            trainer, lambda: save_weights(file, model, self.config, module.data.tokenizer, trainer.global_step)
        )

    def _save_last(self, trainer: L.Trainer, module: L.LightningModule, *, is_best: bool = False) -> None:
        """Save last.ckpt. Whenever the process dies, a complete last.ckpt remains, and an earlier one if two are kept.

        The best weights of this step are written before it: a run resumed from it would not write them again.
        """
        assert isinstance(module, TrainingModule)
        self._check_finite(trainer, module)
        on_rank_zero(trainer, module.data.check_unchanged)  # do not save weights trained on tokens that changed on disk
        step = trainer.global_step
        self.ended = self._ends(trainer)
        on_rank_zero(trainer, lambda: self._keep_last_as_earlier(step))
        if is_best:
            self._save_weights(trainer, module, self.folder.weights)
        trainer.save_checkpoint(self.folder.best if is_best else self.folder.last)
        on_rank_zero(trainer, lambda: self._check_saved(trainer))
        if is_best:
            on_rank_zero(trainer, lambda: link_or_copy(self.folder.best, self.folder.last))
        self._step_of_last, self._saved_at = step, time.monotonic()
        on_rank_zero(trainer, lambda: self._remove_earlier(step))

    def _keep_last_as_earlier(self, step: int) -> None:
        if self.config.keep_checkpoints == 1 or not self.folder.last.exists():
            return
        if self._step_of_last is None:
            try:
                self._step_of_last = int(read_checkpoint(self.folder.last)["global_step"])
            except UserError:
                return  # a damaged file is overwritten
        if self._step_of_last != step:
            link_or_copy(self.folder.last, self.folder.earlier(self._step_of_last))

    def _remove_earlier(self, step: int) -> None:
        """Delete checkpoints beyond keep_checkpoints, and later ones, left if the run resumed from an earlier one."""
        before = [file for number, file in self.folder.all_earlier.items() if number < step]
        for file in set(self.folder.all_earlier.values()) - set(before[: self.config.keep_checkpoints - 1]):
            file.unlink(missing_ok=True)

    def _check_saved(self, trainer: L.Trainer) -> None:
        saver = trainer.strategy.checkpoint_io
        if isinstance(saver, AtomicCheckpointIO) and saver.failure is not None:
            raise saver.failure

    def _check_finite(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        state = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        for what, tensors in (("a weight", list(module.parameters())), ("the optimizer's state", tensors_in(state))):
            if any_rank(trainer, not all(bool(torch.isfinite(local(tensor)).all()) for tensor in tensors)):
                raise UserError(not_finite(what, trainer.global_step, self.folder))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and reads them with weights_only, which runs no code from the file."""

    def __init__(self) -> None:
        self.failure: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            save_checkpoint(Path(path), checkpoint)
        except UserError as error:
            if not torch.distributed.is_initialized():
                raise
            self.failure = error  # the other ranks wait at Lightning's barrier; `Checkpoints` stops all after it

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path), mmap=False)  # the optimizer keeps these tensors: no memory map


def refuse_shards(trainer: L.Trainer) -> None:
    """Refuse sharded checkpoints: Lightning writes them in place, so a crash leaves half of one, and as pickles.

    Raises:
        UserError: the strategy writes shards; names the option that makes it write one file.
    """
    setting = sharded_checkpoint_setting(trainer.strategy)
    if setting == "state_dict_type":
        raise UserError("trainer.strategy: state_dict_type=sharded writes no single file: use full")
    if setting is not None:
        raise UserError(f"trainer.strategy: writes no single file: give it {setting}: false")


def not_finite(what: str, step: int, folder: RunFolder) -> str:
    """The message of a run that stops because `what` is NaN or infinite."""
    before = f"{folder.last} was saved before that; " if folder.last.exists() else ""
    return (
        f"{what} is NaN or infinite at step {step}, so the run stops; {before}try a lower optimizer.learning_rate or a "
        "smaller trainer.gradient_clip_val"
    )
