"""Batches -> losses -> optimizer steps: the model with teacher forcing, as a LightningModule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from minigpt.config import Config
from minigpt.data.batches import IGNORED, n_val_targets
from minigpt.data.shards import PreparedData
from minigpt.errors import UserError
from minigpt.model.compiling import CompiledWithFallback, compute_exactly
from minigpt.model.gpt import GPT
from minigpt.runs.loading import CHECKPOINT_KEY, read_checkpoint
from minigpt.training.averaging import Average
from minigpt.training.distributed import all_reduce, any_rank, apply_fsdp, gather, is_sharded, reduce_sum
from minigpt.training.lightning_compat import clips_as_torch_does, gradient_scaler, set_batches_done, set_logged_step
from minigpt.training.loss import CHUNK_LOGITS, chunk_logits, model_loss
from minigpt.training.optimizer import follow_schedule, make_optimizer
from minigpt.training.qk_clip import QKClip


class MicroBatch(NamedTuple):
    """A micro-batch of the current optimizer step, on this device."""

    number: int
    """In the whole run, over all devices."""
    tokens: Tensor
    targets: Tensor
    """Both (B, T); targets are shifted by one."""
    loss: Tensor
    """Mean over its targets, without gradient."""


class TrainingModule(L.LightningModule):
    """Teacher forcing: in one pass, each position predicts the next token under the causal mask.

    One optimizer step is read here: learning rate, loss, gradient norm, skipping, clipping, QK-clip, weight average.
    The hooks stand in the order in which Lightning calls them. Callbacks read the results and change nothing: the
    module trains the same without them, under a plain `L.Trainer` with the config's max_steps and
    accumulate_grad_batches.
    """

    def __init__(
        self,
        config: Config,
        data: PreparedData,
        on_bad_step: Callable[[TrainingModule], Path | None] | None = None,
        initial: dict[str, Tensor] | None = None,
        adapt: Callable[[GPT], None] | None = None,
        requests: Callable[[], Sequence[bool]] = tuple,
    ) -> None:
        """Initialise the weights from the seed, or take `initial`.

        Args:
            config: the run, with model.vocab_size set.
            data: the prepared text.
            on_bad_step: called on every rank when a loss or gradient is NaN or infinite, with the gradients still in
                place. It raises to end the run, returns a checkpoint to roll back to, or None to skip the step.
            initial: weights of another run to start from.
            adapt: changes the model before it is trained or resumed, as LoRA does.
            requests: what this rank asks of all ranks, such as to stop. Read once a step, before the optimizer, and
                sent along with the step's numbers; `requested` then tells for each whether any rank has asked.
        """
        super().__init__()
        self.run_config, self.data, self.on_bad_step, self.requests = config, data, on_bad_step, requests
        torch.manual_seed(config.seed)
        self.model = GPT(config.model)
        if initial is not None:
            self.model.load_state_dict(initial)
        if adapt is not None:
            adapt(self.model)
        self.model.recomputes_blocks = config.activation_checkpointing
        # Compile the loss function rather than the module: parameter names get no "_orig_mod." prefix, and samples and
        # probes use the uncompiled model.
        loss = functools.partial(model_loss, self.model)
        self.loss: Callable[..., Tensor] = CompiledWithFallback(loss) if config.compile else loss
        decay = config.optimizer.average_decay
        self.average = None if decay is None else Average(self.model, decay)
        limit = config.optimizer.qk_clip
        self.qk_clip = None if limit is None else QKClip(self.model, limit)
        self._at_a_time = CHUNK_LOGITS  # logits of a chunk of the loss; see `on_fit_start`
        self.has_trained = False  # in this process
        # Targets, over all devices: exact if packed; with examples, estimated from this rank's rows.
        self.tokens_seen = 0
        self._began_at_step, self._n_micro_batches_before = 0, 0  # where the checkpoint of a resumed run stood

        # Results of the last step, for callbacks to read.
        self.micro_batches: list[MicroBatch] = []
        self.learning_rate = 0.0
        self.step_loss = math.nan  # mean over micro-batches and devices
        self.finite_loss = math.nan  # mean over those of them that are finite
        self.grad_norm = math.nan  # total norm of the gradient before clipping
        self.skipped = False  # not taken, as a loss or gradient was NaN or infinite: a skipped step or a rollback
        self.val_loss = self.val_bits_per_byte = math.nan
        self.val_tokens, self.n_val_tokens = 0, 0  # predicted by the last validation; by one on the whole split
        self.share_of_time = 0.0  # fraction of max_time elapsed on rank 0's clock
        self.requested: list[bool] = []  # by any rank, up to the optimizer step

        self._total_norm = torch.tensor(math.nan)  # grad_norm on the device
        self._n_targets = 0  # of the micro-batch that is next
        self._nats, self._count = list[Tensor](), 0  # of the validation that is running, each batch's sum of losses

    def configure_model(self) -> None:
        if self.device_mesh is not None and not is_sharded(self.model):  # Lightning may call it more than once
            apply_fsdp(self.model, self.device_mesh["data_parallel"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen = checkpoint[CHECKPOINT_KEY]["tokens_seen"]
        self._began_at_step = checkpoint["global_step"]
        self._n_micro_batches_before = checkpoint[CHECKPOINT_KEY]["micro_batches"]
        set_batches_done(checkpoint, self._began_at_step * self.run_config.trainer.accumulate_grad_batches)
        if self.trainer.precision == "64-true":
            self.model.double()  # Lightning converts the model only after loading, which would round the weights
        if self.average is not None:
            self.average.load(checkpoint)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # A fused optimizer unscales gradients inside its step, after clipping has already used the scaled norm.
        fused = gradient_scaler(self.trainer) is None
        return make_optimizer(self.model, self.run_config.optimizer, fused=fused)

    def on_fit_start(self) -> None:
        self._at_a_time = chunk_logits(self.device)
        is_compiled = isinstance(self.loss, CompiledWithFallback)
        if is_compiled and self.device.type == "cpu" and self.run_config.trainer.deterministic is None:
            compute_exactly()
        if self.average is not None:
            self.average.attach()
        if self.qk_clip is not None:
            self.qk_clip.attach()

    def on_train_start(self) -> None:
        self.share_of_time = self.trainer.strategy.broadcast(self._read_clock())
        # Loading an optimizer state restores the checkpoint's hyperparameters too; the current config overrides them.
        optimizer = self.run_config.optimizer
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if "betas" in group:  # Muon's matrices have none
                group["betas"] = (optimizer.beta1, optimizer.beta2)
            if "ns_steps" in group:
                group["ns_steps"] = optimizer.ns_steps
            group["weight_decay"] = optimizer.weight_decay if group["decays"] else 0.0

    def on_before_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        # Counted while the batch is on the CPU: on a device, the count would be waited for.
        _, targets = batch
        full = self.run_config.data.mode == "packed" and self.trainer.training
        self._n_targets = targets.numel() if full else int((targets != IGNORED).sum())
        return batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on (seed, micro-batch) alone, so a resumed run repeats it without stored random state.
        # Only this device is seeded: torch.manual_seed records a stack trace for each device type that is not
        # initialised, which costs time at every step.
        seed = (self.run_config.seed << 32) + self.micro_batch_number(batch_idx)
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # the trainer's: a callback may have changed it
            self.micro_batches = []
        set_logged_step(self.trainer)
        optimizer, config = self.optimizers(), self.run_config.optimizer
        self.learning_rate = follow_schedule(optimizer, config, self.global_step, self.progress)  # type: ignore[arg-type]

    def micro_batch_number(self, batch_idx: int) -> int:
        """Index in the whole run, over all devices, of this device's micro-batch batch_idx.

        A resumed run may use another number of devices or of accumulated micro-batches: it counts on from those that
        the checkpoint has seen.
        """
        # The config's accumulation, by which `on_load_checkpoint` sets Lightning's count of batches.
        since = batch_idx - self._began_at_step * self.run_config.trainer.accumulate_grad_batches
        return self._n_micro_batches_before + since * self.trainer.world_size + self.global_rank

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, 0 to 1, by steps or by max_time if that ends sooner. Equal on all ranks."""
        return max(self.global_step / self.run_config.trainer.max_steps, self.share_of_time)

    def _read_clock(self) -> float:
        """Fraction of max_time elapsed on this process's clock, 0 without max_time. Ranks differ; rank 0's counts."""
        limit = self.run_config.trainer.max_time_seconds
        timers = [callback for callback in self.trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        return min(1.0, timers[0].time_elapsed() / limit) if limit and timers else 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, targets = batch
        self.has_trained = True
        loss = self.loss(tokens, targets, at_a_time=self._at_a_time)
        self.micro_batches.append(MicroBatch(self.micro_batch_number(batch_idx), tokens, targets, loss.detach()))
        self.tokens_seen += self._n_targets * self.trainer.world_size
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        # Runs training_step and the backward pass of the last micro-batch, the two hooks below, and the optimizer.
        super().optimizer_step(*arguments, **options)
        if self.qk_clip is not None:
            self.qk_clip.clip(self.trainer, taken=not self.skipped)
        if self.average is not None and not self.skipped:
            self.average.update()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Compute the norm, and skip the step if a loss or gradient is NaN or infinite, on all ranks alike.

        A skipped step counts as done: the schedule and the data advance, so a batch depends on the step alone and
        resume stays exact. Weights, optimizer state and EMA do not change, unless `on_bad_step` names a checkpoint.
        """
        trainer = self.trainer
        norm = total_norm(parameter.grad for group in optimizer.param_groups for parameter in group["params"])
        own = torch.stack([norm, *(each.loss.to(norm) for each in self.micro_batches)])
        # Under a gradient scaler (16-mixed) overflowing gradients are normal, and the scaler skips those steps itself.
        checked = own if gradient_scaler(trainer) is None else own[1:]
        told = (self._read_clock() if trainer.is_global_zero else 0.0, *self.requests())
        losses, are_finite = own[1:], own[1:].isfinite()
        shared = own.new_zeros(4 + len(told))
        shared[0], shared[1] = ~checked.isfinite().all(), losses.mean()
        shared[2], shared[3] = losses.where(are_finite, 0.0).sum(), are_finite.sum()
        for i, number in enumerate(told, start=4):
            if number:  # filling does not wait for the device, as copying a list would
                shared[i].fill_(number)
        # The only reduction of a step over ranks beside that of the gradients: all they tell each other is in it.
        # The norm is not: it is equal on all ranks, as their gradients are averaged already.
        shared = all_reduce(trainer, shared, "sum")
        # One transfer, hence one synchronisation with the device, for all numbers of the step.
        numbers = torch.cat([own[:1], shared]).tolist()
        self.grad_norm, n_bad, loss, finite_sum, n_finite, self.share_of_time, *asked = numbers
        self.requested = [n > 0 for n in asked]
        self._total_norm, self.step_loss, self.skipped = norm, loss / trainer.world_size, n_bad > 0
        self.finite_loss = finite_sum / n_finite if n_finite else math.nan
        if self.skipped:
            checkpoint = None if self.on_bad_step is None else self.on_bad_step(self)
            for parameter in self.parameters():
                parameter.grad = None  # optimizers skip parameters without a gradient
            if checkpoint is not None:
                self._roll_back(optimizer, checkpoint)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that is known already, with torch's own arithmetic.

        Not multiplying where it would change nothing saves a pass over the gradients: torch's coefficient is
        limit / (norm + 1e-6), at most 1.
        """
        config = self.run_config.trainer
        limit = config.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        algorithm = gradient_clip_algorithm or config.gradient_clip_algorithm
        if algorithm not in {None, "norm"} or not clips_as_torch_does(self.trainer):
            self.clip_gradients(optimizer, limit, algorithm)
        elif limit and not self.skipped and self.grad_norm + 1e-6 > limit:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, self._total_norm)

    def _roll_back(self, optimizer: torch.optim.Optimizer, file: Path) -> None:
        """Load weights, EMA and optimizer state from a checkpoint; the step, schedule and data keep their position."""
        content, failure = dict[str, Any](), None
        try:
            content = read_checkpoint(file, mmap=False)  # the optimizer keeps these tensors: no memory map
        except UserError as error:
            failure = error
        if any_rank(self.trainer, failure is not None):
            raise failure or SystemExit(2)
        if self.average is not None:
            self.average.load(content)
        self.trainer.strategy.load_model_state_dict(content, strict=True)
        # Keep this step's learning rates and weight decays, not the checkpoint's.
        state = content["optimizer_states"][0] | {"param_groups": optimizer.state_dict()["param_groups"]}
        self.trainer.strategy.load_optimizer_state_dict({"optimizer_states": [state]})

    def on_validation_epoch_start(self) -> None:
        self._nats, self._count = [], 0
        if self.average is not None:
            self.average.swap_in()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        tokens, targets = batch
        self._count += self._n_targets
        missing = self.run_config.data.batch_size - len(tokens)
        if missing > 0 and isinstance(self.loss, CompiledWithFallback):
            # The last batch is filled up to the shape of the others, for which it would be compiled once more.
            tokens = F.pad(tokens, (0, 0, 0, missing))
            targets = F.pad(targets, (0, 0, 0, missing), value=IGNORED)
        self._nats.append(self.loss(tokens, targets, reduction="sum", at_a_time=self._at_a_time))

    def on_validation_epoch_end(self) -> None:
        # Sum over all tokens, then divide: a mean of batch means would depend on batch size and number of devices.
        # The losses stay on the device until here, for one synchronisation in all; their float64 sum needs the CPU, as
        # Apple GPUs have no float64.
        here = math.fsum(torch.stack(self._nats).tolist()) if self._nats else 0.0
        self._nats = []  # frees them
        nats, count = reduce_sum(self.trainer, here, self._count)
        split = self.data.train if self.run_config.trainer.overfit_batches else self.data.val
        self.val_loss = nats / count
        self.val_tokens, self.n_val_tokens = int(count), n_val_targets(split, self.run_config.data.mode)
        # Tokens per byte of the whole split: exact if validation covers it, as it does by default.
        self.val_bits_per_byte = self.val_loss / math.log(2) * self.n_val_tokens / split.n_target_bytes
        # Only for Lightning's callbacks, such as EarlyStopping: `Metrics` writes files and loggers.
        self.log("val/loss", self.val_loss, logger=False, sync_dist=True)
        self.log("val/bits_per_byte", self.val_bits_per_byte, logger=False, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "config": self.run_config.to_dict(),
            "tokenizer": self.data.tokenizer.to_dict(),
            "text_fingerprint": self.data.manifest.text_fingerprint,
            "text_settings": self.data.manifest.settings,
            "working_directory": str(Path.cwd()),  # the config's relative paths start here
            # Seen by all devices: the number of rank 0's next one.
            "micro_batches": self.micro_batch_number(self.global_step * self.run_config.trainer.accumulate_grad_batches)
            - self.global_rank,
            "tokens_seen": self.tokens_seen,
            "n_threads": torch.get_num_threads(),  # the order of a sum, hence its rounding, depends on it
        }
        if self.average is not None:
            self.average.save(checkpoint)

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        # Later than `on_validation_epoch_end`: in between, the callbacks' `on_validation_end` writes samples, attention
        # and checkpoints, with the weights whose loss was measured.
        if self.average is not None:
            self.average.swap_out()

    def on_train_epoch_end(self) -> None:
        trainer = self.trainer
        if self.global_step < trainer.max_steps and not trainer.should_stop:
            raise UserError(
                f"the batches ran out at step {self.global_step} of trainer.max_steps={trainer.max_steps}: a callback "
                f"changed trainer.accumulate_grad_batches={self.run_config.trainer.accumulate_grad_batches} to "
                f"{trainer.accumulate_grad_batches}; remove that callback"
            )


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """The norm of all gradients together, in at least float32; bit for bit that of torch's clip_grad_norm_."""
    norm: Tensor = gather(torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
    return norm.to(torch.promote_types(norm.dtype, torch.float32))
