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
    """Teacher forcing: in one pass, each position predicts the next token under the causal mask.

    One optimizer step is read here: learning rate, loss, clipping. Lightning calls the hooks in this order.
    """

    def __init__(self, config: Config, data: PreparedData) -> None:
        """Args: a config whose model.vocab_size is set, and the prepared data."""
        super().__init__()
        self.run_config, self.data = config, data
        torch.manual_seed(config.seed)
        self.model = GPT(config.model)
        # Compile the loss function rather than the module: parameter names get no "_orig_mod." prefix, and samples and
        # probes use the uncompiled model.
        loss = functools.partial(model_loss, self.model)
        is_compiled = compiles(config.compile, config.trainer.accelerator, config.trainer.max_steps)
        self.loss: Callable[..., Tensor] = compiled(loss) if is_compiled else loss
        self.recent_losses: list[Tensor] = []
        self.tokens_seen = 0  # training targets, over all devices
        self.has_trained = False  # in this process
        self._began_at_step, self._seen_before = 0, 0
        self.total_norm = torch.tensor(math.nan)  # of the gradient, before clipping
        self.grad_norm = math.nan  # total_norm as a float; `Anomalies` sets both, and left_out, at each step
        self.left_out = False  # whether the last step was skipped because its loss or gradient was NaN or infinite
        self.learning_rate = 0.0
        self.share_of_time = 0.0  # fraction of max_time elapsed on rank 0's clock; `Anomalies` sets it at each step
        self.val_loss = math.nan
        self.val_bits_per_byte = math.nan
        self._nats, self._count = 0.0, 0

    def configure_model(self) -> None:
        if self.device_mesh is not None and not is_shared_out(self.model):  # Lightning may call it more than once
            share_out(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # A fused optimizer unscales gradients inside its step, after clipping has already used the scaled norm.
        fused = gradient_scaler(self.trainer) is None
        return make_optimizer(self.model, self.run_config.optimizer, fused=fused)

    def on_train_start(self) -> None:
        # Loading an optimizer state restores the checkpoint's hyperparameters too; the current config overrides them.
        optimizer = self.run_config.optimizer
        self.share_of_time = self.trainer.strategy.broadcast(self.read_clock())
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if "betas" in group:  # Muon's matrices have none
                group["betas"] = (optimizer.beta1, optimizer.beta2)
            if "ns_steps" in group:
                group["ns_steps"] = optimizer.ns_steps
            group["weight_decay"] = optimizer.weight_decay if group["decays"] else 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on (seed, micro-batch) alone, so a resumed run repeats it without stored random state.
        # Only this device is seeded: torch.manual_seed records a stack trace for each device type that is not
        # initialised, which costs time at every step.
        seed = (self.run_config.seed << 32) + self.micro_batch(batch_idx)
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        optimizer, config = self.optimizers(), self.run_config.optimizer
        # Lightning's callbacks log by this counter, which is one behind after a resume from between validations.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        self.learning_rate = follow_schedule(optimizer, config, self.global_step, self.progress)  # type: ignore[arg-type]

    def micro_batch(self, batch_idx: int) -> int:
        """Index in the whole run, over all devices, of this device's micro-batch batch_idx.

        A resumed run may use another number of devices or of accumulated micro-batches: it counts on from those that
        the checkpoint has seen.
        """
        since = batch_idx - self._began_at_step * self.run_config.trainer.accumulate_grad_batches
        return self._seen_before + since * self.trainer.world_size + self.global_rank

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, 0 to 1, by steps or by max_time if that ends sooner. Equal on all ranks."""
        return max(self.global_step / self.run_config.trainer.max_steps, self.share_of_time)

    def read_clock(self) -> float:
        """Fraction of max_time elapsed on this process's clock, 0 without max_time. Ranks differ; rank 0's counts."""
        limit = self.run_config.trainer.max_time_seconds
        timers = [callback for callback in self.trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        return min(1.0, timers[0].time_elapsed() / limit) if limit and timers else 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, targets = batch
        self.has_trained = True
        loss = self.loss(tokens, targets)
        self.recent_losses.append(loss.detach())
        # Counting synchronises with the device; only padded batches need it.
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
        # torch's clip_grad_norm_, but with the norm that `Anomalies` has computed already, and without the
        # multiplication where it would change nothing.
        if gradient_clip_val and not self.left_out and self.grad_norm + 1e-6 > gradient_clip_val:
            gradients = [local(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_mul_(gradients, (gradient_clip_val / (self.total_norm + 1e-6)).clamp(max=1.0))

    def on_train_epoch_end(self) -> None:
        trainer = self.trainer
        if self.global_step < trainer.max_steps and not trainer.should_stop:
            raise UserError(
                f"the batches ran out at step {self.global_step} of trainer.max_steps={trainer.max_steps}: a callback "
                f"changed trainer.accumulate_grad_batches={self.run_config.trainer.accumulate_grad_batches} to "
                f"{trainer.accumulate_grad_batches}; remove that callback"
            )

    def on_validation_epoch_start(self) -> None:
        self._nats, self._count = 0.0, 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        tokens, targets = batch
        self._nats += float(self.loss(tokens, targets, "sum"))
        self._count += int((targets != IGNORED).sum())

    def on_validation_epoch_end(self) -> None:
        # Sum over all tokens, then divide: a mean of batch means would depend on batch size and number of devices.
        nats, count = totals(self.trainer, self._nats, self._count)
        split = self.data.train if self.run_config.trainer.overfit_batches else self.data.val
        self.val_loss = nats / count
        # Tokens per byte of the whole split: exact if validation covers it, as it does by default.
        n_targets = len(split.tokens) - (self.run_config.data.mode == "packed")  # the first token is no target
        self.val_bits_per_byte = self.val_loss / math.log(2) * n_targets / split.n_bytes
        # Only for Lightning's callbacks, such as EarlyStopping: `Metrics` writes files and loggers.
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
            "working_directory": str(Path.cwd()),  # the config's relative paths start here
            "micro_batches": self.micro_batch(self.global_step * self.run_config.trainer.accumulate_grad_batches)
            - self.global_rank,
            "tokens_seen": self.tokens_seen,
            "n_threads": torch.get_num_threads(),  # the order of a sum, hence its rounding, depends on it
            "recent_losses": [float(loss) for loss in self.recent_losses],  # not yet logged
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.recent_losses = [
            torch.tensor(loss, dtype=torch.float64) for loss in checkpoint[CHECKPOINT_KEY]["recent_losses"]
        ]
        self.tokens_seen = checkpoint[CHECKPOINT_KEY]["tokens_seen"]
        self._began_at_step = checkpoint["global_step"]
        self._seen_before = checkpoint[CHECKPOINT_KEY]["micro_batches"]
        # Lightning restores a count of this device's micro-batches, which is wrong if the number of devices or the
        # accumulation changed. And a finished run that gets more steps must reopen its only epoch.
        n_batches = self._began_at_step * self.run_config.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, n_batches))
        progress["is_last_batch"] = False
        # EarlyStopping restores its patience from the checkpoint; the current config's counts.
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience


def gradient_scaler(trainer: L.Trainer) -> Any:
    """The loss scaler against underflow in 16-mixed; None in other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _clips_as_torch_does(trainer: L.Trainer) -> bool:
    """Whether Lightning would call torch's clip_grad_norm_ on plain gradients.

    False under a gradient scaler (unscale first), Lightning's FSDP (no rank has the total norm) and DeepSpeed (it clips
    itself).
    """
    plugin = type(trainer.precision_plugin)
    by_lightning = plugin.clip_gradients in {Precision.clip_gradients, MixedPrecision.clip_gradients}
    by_norm = plugin.clip_grad_by_norm is Precision.clip_grad_by_norm
    return by_lightning and by_norm and gradient_scaler(trainer) is None
