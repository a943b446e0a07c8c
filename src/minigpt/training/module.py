"""Batches -> losses -> optimizer steps: the model with teacher forcing, as a LightningModule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor

from minigpt.config import Config
from minigpt.data.batches import IGNORED
from minigpt.data.shards import PreparedData
from minigpt.errors import UserError
from minigpt.model.compiling import compiled, compiles
from minigpt.model.gpt import GPT
from minigpt.runs.loading import CHECKPOINT_KEY
from minigpt.training.averaging import Averaging
from minigpt.training.loss import model_loss
from minigpt.training.optimizer import follow_schedule, make_optimizer
from minigpt.training.processes import totals
from minigpt.training.sharding import is_shared_out, local, share_out


class TrainingModule(L.LightningModule):
    """Every position predicts the token that follows it, in one pass, under the causal mask."""

    def __init__(self, config: Config, data: PreparedData) -> None:
        """Args: a config whose model.vocab_size is set, and the text it trains on."""
        super().__init__()
        self.run_config, self.data = config, data
        torch.manual_seed(config.seed)
        self.model = GPT(config.model)
        # A function beside the model, not a module in it: the parameters' names stay clean, and whoever looks at the
        # model (samples, probes) uses the plain one.
        loss = functools.partial(model_loss, self.model)
        is_compiled = compiles(config.compile, config.trainer.accelerator, config.trainer.max_steps)
        self.loss: Callable[..., Tensor] = compiled(loss) if is_compiled else loss
        self.recent_losses: list[Tensor] = []
        self.tokens_seen = 0  # predicted in training, over all devices
        self.has_trained = False  # in this process
        self._began_at_step, self._seen_before = 0, 0
        self.total_norm = torch.tensor(math.nan)  # of the gradient, before clipping
        self.grad_norm = math.nan  # the same as a number; `Anomalies` sets all three for each step
        self.left_out = False  # whether the last step was not taken, its loss or gradient being not finite
        self.learning_rate = 0.0
        self.share_of_time = 0.0  # of max_time that is over, by the clock of rank 0; `Anomalies` sets it at each step
        self.val_loss = math.nan
        self.val_bits_per_byte = math.nan
        self._nats, self._count = 0.0, 0

    def configure_model(self) -> None:
        if self.device_mesh is not None and not is_shared_out(self.model):  # Lightning may call it more than once
            share_out(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # A fused optimizer would take the scale off by itself, too late for clipping.
        fused = gradient_scaler(self.trainer) is None
        return make_optimizer(self.model, self.run_config.optimizer, fused=fused)

    def on_train_start(self) -> None:
        # A resumed optimizer brings the settings of its file; what the user asks for now is what counts.
        optimizer = self.run_config.optimizer
        self.share_of_time = self.trainer.strategy.broadcast(self.read_clock())
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if "betas" in group:  # Muon's own matrices have none
                group["betas"] = (optimizer.beta1, optimizer.beta2)
            if "ns_steps" in group:
                group["ns_steps"] = optimizer.ns_steps
            group["weight_decay"] = optimizer.weight_decay if group["decays"] else 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout is a function of (seed, micro-batch): a resumed run repeats it without any stored random state.
        # Of this device alone: torch.manual_seed notes the whole call stack for each kind of device that is not there.
        seed = (self.run_config.seed << 32) + self.micro_batch(batch_idx)
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        optimizer, config = self.optimizers(), self.run_config.optimizer
        # The step that Lightning's own callbacks log by: after a resume from between validations it is one behind.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        self.learning_rate = follow_schedule(optimizer, config, self.global_step, self.progress)  # type: ignore[arg-type]

    def micro_batch(self, batch_idx: int) -> int:
        """Number in the whole run, over all devices, of this device's micro-batch batch_idx.

        A resumed run may have other devices or accumulate otherwise: it goes on behind what was seen before.
        """
        since = batch_idx - self._began_at_step * self.run_config.trainer.accumulate_grad_batches
        return self._seen_before + since * self.trainer.world_size + self.global_rank

    @property
    def progress(self) -> float:
        """Share of the run that is over: by steps, or by time where max_time ends it sooner. The same on all ranks."""
        return max(self.global_step / self.run_config.trainer.max_steps, self.share_of_time)

    def read_clock(self) -> float:
        """Share of max_time that is over by this process's clock, no two of which agree; 0 without max_time."""
        limit = self.run_config.trainer.max_time_seconds
        timers = [callback for callback in self.trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        return min(1.0, timers[0].time_elapsed() / limit) if limit and timers else 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, targets = batch
        self.has_trained = True
        loss = self.loss(tokens, targets)
        self.recent_losses.append(loss.detach())
        # Counting waits for the device, so only where there is padding.
        packed = self.run_config.data.mode == "packed"
        n_targets = targets.numel() if packed else int((targets != IGNORED).sum())
        self.tokens_seen += n_targets * self.trainer.world_size
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_algorithm not in {None, "norm"} or not _clips_as_torch_does(self.trainer):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # As torch's clip_grad_norm_ does it, but with the norm that is there, and not where it would change nothing.
        if gradient_clip_val and not self.left_out and self.grad_norm + 1e-6 > gradient_clip_val:
            gradients = [local(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_mul_(gradients, (gradient_clip_val / (self.total_norm + 1e-6)).clamp(max=1.0))

    def on_train_epoch_end(self) -> None:
        trainer = self.trainer
        if self.global_step < trainer.max_steps and not trainer.should_stop:
            raise UserError(
                f"the batches ran out at step {self.global_step} of trainer.max_steps={trainer.max_steps}: they were "
                f"made for trainer.accumulate_grad_batches={self.run_config.trainer.accumulate_grad_batches}, and now "
                f"it is {trainer.accumulate_grad_batches}; a callback must not change it"
            )

    def on_validation_epoch_start(self) -> None:
        self._nats, self._count = 0.0, 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        tokens, targets = batch
        self._nats += float(self.loss(tokens, targets, "sum"))
        self._count += int((targets != IGNORED).sum())

    def on_validation_epoch_end(self) -> None:
        # Sums and counts, not means of means: the result is the same for any batch size and number of devices.
        nats, count = totals(self.trainer, self._nats, self._count)
        split = self.data.train if self.run_config.trainer.overfit_batches else self.data.val
        self.val_loss = nats / count
        # The split's own ratio: exact where every token that can be is predicted once, as it is by default.
        n_targets = len(split.tokens) - (self.run_config.data.mode == "packed")  # nothing is before the first
        self.val_bits_per_byte = self.val_loss / math.log(2) * n_targets / split.n_bytes
        # For Lightning's own callbacks (early stopping and the like); files and loggers are written by our callback.
        self.log("val/loss", self.val_loss, logger=False, sync_dist=True)
        self.log("val/bits_per_byte", self.val_bits_per_byte, logger=False, sync_dist=True)

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Averaging):
                callback.restore(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "config": self.run_config.to_dict(),
            "tokenizer": self.data.tokenizer.to_dict(),
            "text_fingerprint": self.data.manifest.text_fingerprint,
            "text_settings": self.data.manifest.settings,
            "working_directory": str(Path.cwd()),  # in which the config's relative paths are meant
            "micro_batches": self.micro_batch(self.global_step * self.run_config.trainer.accumulate_grad_batches)
            - self.global_rank,
            "tokens_seen": self.tokens_seen,
            "n_threads": torch.get_num_threads(),  # sums are rounded otherwise with others
            "recent_losses": [float(loss) for loss in self.recent_losses],  # gathered, not yet logged
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.recent_losses = [
            torch.tensor(loss, dtype=torch.float64) for loss in checkpoint[CHECKPOINT_KEY]["recent_losses"]
        ]
        self.tokens_seen = checkpoint[CHECKPOINT_KEY]["tokens_seen"]
        self._began_at_step = checkpoint["global_step"]
        self._seen_before = checkpoint[CHECKPOINT_KEY]["micro_batches"]
        # Lightning counts this device's micro-batches; with other devices or accumulation they are others. And a run
        # that is given more steps goes on in its one epoch, which Lightning believes to be over.
        n_batches = self._began_at_step * self.run_config.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, n_batches))
        progress["is_last_batch"] = False
        # And of the configured callbacks, these would take their setting from the file as well.
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience


def gradient_scaler(trainer: L.Trainer) -> Any:
    """What scales losses up against underflow, in 16-mixed; else None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _clips_as_torch_does(trainer: L.Trainer) -> bool:
    """Not where a scale is to be taken off first, where no process has the norm of all (Lightning's FSDP), or where
    somebody else clips (DeepSpeed)."""
    plugin = type(trainer.precision_plugin)
    by_lightning = plugin.clip_gradients in {Precision.clip_gradients, MixedPrecision.clip_gradients}
    by_norm = plugin.clip_grad_by_norm is Precision.clip_grad_by_norm
    return by_lightning and by_norm and gradient_scaler(trainer) is None
