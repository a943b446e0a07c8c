"""Metrics of a run: losses and speed, to metrics.csv, the loggers and the progress bar."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY
from minigpt.training.arithmetic import flops_per_token
from minigpt.training.checkpoints import not_finite
from minigpt.training.dashboards import log_scalars
from minigpt.training.devices import peak_flops
from minigpt.training.module import TrainingModule
from minigpt.training.rows import keep_rows_up_to, put_row

PLAIN_LINE_SECONDS = 10
"""Shortest time between two progress lines, printed if there is no progress bar."""

COLUMNS = (
    "step",
    "tokens",
    "seconds",
    "train/loss",
    "val/loss",
    "val/bits_per_byte",
    "learning_rate",
    "grad_norm",
    "perf/tokens_per_second",
    "samples/longest_copied_tokens",
    "samples/copied_20gram_share",
    "val/tokens",
    "perf/mfu",
)


def of_part_of_val(module: TrainingModule) -> str:
    """What the last val/loss is of, if that is not the whole val split: " (on 4,096 of 70,000 tokens)"."""
    if module.val_tokens >= module.n_val_tokens or module.run_config.trainer.overfit_batches:
        return ""
    return f" (on {module.val_tokens:,} of {module.n_val_tokens:,} tokens)"


def seconds_of_training(trainer: L.Trainer) -> float:
    """Seconds of training steps, without validation, since the run first started (resumes included)."""
    return metrics_of(trainer).seconds


def metrics_of(trainer: L.Trainer) -> Metrics:
    """The run's `Metrics` callback; every run has one."""
    return next(c for c in trainer.callbacks if isinstance(c, Metrics))  # type: ignore[attr-defined]


class Metrics(Callback):
    """Writes losses and speed to metrics.csv (one row a step), the loggers and the progress bar.

    It runs every log_every_n_steps. `self.log` in each training step would cost up to three milliseconds, much of a
    small model's step.
    """

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config = folder, config
        self.train_loss = self.val_loss = self.tokens_per_second = math.nan
        self._step = -1
        self.logged: tuple[int, dict[str, float]] = (-1, {})  # step and numbers of the newest row of training
        self.recent_losses: list[float] = []  # of the steps since the last row, over all devices
        self.seconds = 0.0  # of training steps, without validation, resumes included
        self._mark, self._mark_tokens = 0.0, 0
        self._last_line = time.monotonic()
        self._last_row: dict[str, Any] = {}  # of metrics.csv
        self._tokens_at_peak = math.nan  # per second, at the peak rate of all devices; NaN where it is not known

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "train_loss": self.train_loss,
            "recent_losses": self.recent_losses.copy(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.train_loss = state_dict.get("train_loss", math.nan)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Up to version 0.1 the module saved the losses.
        losses = (checkpoint["callbacks"]["Metrics"] | checkpoint[CHECKPOINT_KEY])["recent_losses"]
        self.recent_losses = [float(loss) for loss in losses]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self.logged = (trainer.global_step, {})
        peak = peak_flops(trainer.strategy.root_device, str(trainer.precision))
        # The formula is of training all weights on every position.
        if peak is not None and self.config.data.mode == "packed" and not self.config.lora:
            self._tokens_at_peak = trainer.world_size * peak / flops_per_token(self.config.model)
        self._start_watch(pl_module)
        if trainer.is_global_zero:
            self._last_row = keep_rows_up_to(self.folder.metrics, COLUMNS, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step == self._step:  # with accumulation, several micro-batches share one global_step
            return
        self._step = step
        if math.isfinite(pl_module.finite_loss):  # NaN if all losses of the step are NaN or inf
            self.recent_losses.append(pl_module.finite_loss)
        if step % (self.config.trainer.log_every_n_steps or 1):
            return
        loss = statistics.fmean(self.recent_losses) if self.recent_losses else math.nan
        self.recent_losses.clear()
        self._stop_watch(trainer, pl_module)
        row = {
            "train/loss": loss,
            "learning_rate": pl_module.learning_rate,
            "grad_norm": pl_module.grad_norm,
            "perf/tokens_per_second": self.tokens_per_second,
            "perf/mfu": self.tokens_per_second / self._tokens_at_peak,
        }
        # `Anomalies` reports NaN and inf; the field in metrics.csv stays empty.
        self.logged = (step, {name: value for name, value in row.items() if math.isfinite(value)})
        self.write(trainer, *self.logged)
        if math.isfinite(loss):
            self.train_loss = loss
        if trainer.progress_bar_callback is None and time.monotonic() - self._last_line > PLAIN_LINE_SECONDS:
            mfu = self.logged[1].get("perf/mfu")
            share = "" if mfu is None else f" ({mfu:.0%} MFU)"
            self._print_line(trainer, f"{self.tokens_per_second:,.0f} tokens/s{share}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_watch(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if not trainer.sanity_checking:
            self.val_loss = pl_module.val_loss
            if not math.isfinite(self.val_loss):
                raise UserError(not_finite("val/loss", trainer.global_step, self.folder))
            row = {"val/loss": pl_module.val_loss, "val/bits_per_byte": pl_module.val_bits_per_byte}
            said = "   ".join(f"{name} {value:.4f}" for name, value in row.items()) + of_part_of_val(pl_module)
            self.write(trainer, trainer.global_step, row | {"val/tokens": pl_module.val_tokens})
            self._print_line(trainer, said)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._mark == 0.0:
            self._start_watch(pl_module)

    def _print_line(self, trainer: L.Trainer, rest: str) -> None:
        step = f"step {trainer.global_step}/{self.config.trainer.max_steps}"
        train = [] if math.isnan(self.train_loss) else [f"train/loss {self.train_loss:.4f}"]
        trainer.print("   ".join([step, *train, rest]), flush=True)
        self._last_line = time.monotonic()

    def _start_watch(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._mark, self._mark_tokens = time.perf_counter(), pl_module.tokens_seen

    def _stop_watch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the time since the last mark to `seconds`; validation and its callbacks are not counted."""
        assert isinstance(pl_module, TrainingModule)
        if self._mark == 0.0:
            return
        now, tokens = time.perf_counter(), pl_module.tokens_seen - self._mark_tokens
        self.seconds += now - self._mark
        if tokens:
            self.tokens_per_second = tokens / (now - self._mark)
        self._mark, self._mark_tokens = (0.0, 0) if trainer.validating else (now, pl_module.tokens_seen)

    @contextlib.contextmanager
    def paused(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
        """Time inside the context does not count as training."""
        self._stop_watch(trainer, pl_module)
        yield
        self._start_watch(pl_module)

    def write(self, trainer: L.Trainer, step: int, row: dict[str, float]) -> None:
        """Send numbers of a step to the loggers, and to the step's row of metrics.csv, by the names of `COLUMNS`."""
        log_scalars(trainer.loggers, row, step)
        if not trainer.is_global_zero:
            return
        tokens = trainer.lightning_module.tokens_seen
        self._last_row = put_row(
            self.folder.metrics,
            COLUMNS,
            {"step": step, "tokens": tokens, "seconds": f"{self.seconds:.3f}", **row},
            self._last_row,
        )
