"""A training state -> last.ckpt, those before it, best.ckpt, where a resume is exact; and weights to look back at."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from minigpt.checkpoint import read_checkpoint, save_checkpoint, save_weights, tensors_in
from minigpt.config import Config, UserError
from minigpt.files import link_or_copy
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
        self._saved_at = time.monotonic()
        self._step_of_last: int | None = None  # until something is saved, last.ckpt is another process's

    def state_dict(self) -> dict[str, Any]:
        return {"best_val_loss": self.best_val_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_val_loss, self.best_step = state_dict["best_val_loss"], state_dict["best_step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old_handlers[number] = signal.signal(number, self._on_signal)
        self._saved_at = time.monotonic()

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
        if stop or (every and step % every == 0) or self._is_time(trainer):
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
        if is_best:
            self._on_first(trainer, lambda: self._save_best(pl_module))
        if self._must_stop(trainer):
            raise SystemExit(128 + (self.stop_signal or signal.SIGTERM))

    def _save_best(self, module: TrainingModule) -> None:
        link_or_copy(self.folder.last, self.folder.best)
        save_weights(self.folder.weights, module.model, self.config, module.data.tokenizer)

    def _must_stop(self, trainer: L.Trainer) -> bool:
        return _any_process(trainer, self.stop_signal is not None)

    def _is_time(self, trainer: L.Trainer) -> bool:
        minutes = self.config.checkpoint_every_n_minutes
        if minutes is None:
            return False
        return _any_process(trainer, time.monotonic() - self._saved_at >= 60 * minutes)

    def _keep(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The weights alone: whoever looks back needs no optimizer, which is twice as large."""
        assert isinstance(module, TrainingModule)
        self._check_finite(trainer, module)
        file = self.folder.kept(trainer.global_step)
        self._on_first(trainer, lambda: save_weights(file, module.model, self.config, module.data.tokenizer))

    def _save_last(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Whenever the process dies in here, last.ckpt is there, and where there are two, one before it."""
        self._check_finite(trainer, module)
        step = trainer.global_step
        self._on_first(trainer, lambda: self._keep_last_as_earlier(step))
        trainer.save_checkpoint(self.folder.last)
        self._on_first(trainer, lambda: self._check_saved(trainer))
        self._step_of_last, self._saved_at = step, time.monotonic()
        self._on_first(trainer, lambda: self._remove_earlier(step))

    def _keep_last_as_earlier(self, step: int) -> None:
        if self.config.keep_checkpoints == 1 or not self.folder.last.exists():
            return
        if self._step_of_last is None:
            try:
                self._step_of_last = int(read_checkpoint(self.folder.last)["global_step"])
            except UserError:
                return  # a damaged one makes room
        if self._step_of_last != step:
            link_or_copy(self.folder.last, self.folder.earlier(self._step_of_last))

    def _remove_earlier(self, step: int) -> None:
        """What is beyond the number to keep; and later steps, which a run has had that went back."""
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
            if _any_process(trainer, not all(bool(torch.isfinite(tensor).all()) for tensor in tensors)):
                raise UserError(not_finite(what, trainer.global_step, self.folder))

    def _on_first(self, trainer: L.Trainer, work: Callable[[], None]) -> None:
        """Let the first process write. Where it cannot, all stop, as the others would wait for it forever."""
        failure = None
        if trainer.is_global_zero:
            try:
                work()
            except UserError as error:
                failure = error
        if _any_process(trainer, failure is not None):
            raise failure or SystemExit(2)


def _any_process(trainer: L.Trainer, here: bool) -> bool:
    """Whether something is so in any of the processes, which all ask together."""
    if trainer.world_size == 1:
        return here
    return bool(trainer.strategy.reduce_boolean_decision(here, all=False))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Files that are complete or not there, opened without running what is in them."""

    def __init__(self) -> None:
        self.failure: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            save_checkpoint(Path(path), checkpoint)
        except UserError as error:
            if not torch.distributed.is_initialized():
                raise
            self.failure = error  # Lightning's other processes wait for this one next; `Checkpoints` stops all

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path), mmap=False)  # the optimizer keeps these very tensors


def refuse_shards(trainer: L.Trainer) -> None:
    """Refuse strategies that write a folder of shards: in place, so that a crash leaves half of it, and as pickles.

    Raises:
        UserError: the strategy does.
    """
    strategy = trainer.strategy
    if getattr(strategy, "_state_dict_type", None) == "sharded":
        raise UserError("trainer.strategy: state_dict_type=sharded writes no single file: use full")
    if getattr(strategy, "_save_distributed_checkpoint", False):
        raise UserError("trainer.strategy: writes no single file: give it save_distributed_checkpoint: false")


def not_finite(what: str, step: int, folder: RunFolder) -> str:
    """What to say of a run that has gone to NaN or infinity."""
    before = f"{folder.last} is from before; " if folder.last.exists() else ""
    return (
        f"{what} is no finite number by step {step}, so the run stops; {before}a lower optimizer.learning_rate or a "
        "smaller trainer.gradient_clip_val may help"
    )
