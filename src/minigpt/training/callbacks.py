"""Callbacks that write metrics and attention maps to files and loggers during training."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from minigpt.config import Config
from minigpt.data.relations import read_relations
from minigpt.data.shards import PreparedData
from minigpt.data.tokenising import RELATIONS
from minigpt.errors import UserError
from minigpt.files import write_csv, write_text
from minigpt.inspection.capture import DivergedError
from minigpt.inspection.diagnostics import Diagnostics, diagnose_model
from minigpt.inspection.heads import HeadScores, head_table, label_heads, score_heads
from minigpt.inspection.probes import PROBE_TOKENS, Probe, read_examples
from minigpt.inspection.snapshot import Snapshot, history_of, step_of
from minigpt.pages.attention import render_page
from minigpt.pages.grid import grid_image, save_png
from minigpt.pages.scores_image import scores_image
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY
from minigpt.training.checkpoints import not_finite
from minigpt.training.dashboards import log_image, log_page, log_scalars, log_table
from minigpt.training.distributed import gather_model
from minigpt.training.module import TrainingModule
from minigpt.training.rows import keep_rows_up_to, put_row

PLAIN_LINE_SECONDS = 10
"""Shortest time between two progress lines, printed if there is no progress bar."""

POSITION_TOKENS = 4096
"""Tokens on which the loss is measured by position at the end, in windows of the full context; at least one window."""

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
)


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
        self.recent_losses: list[Tensor] = []  # of the micro-batches since the last row
        self.seconds = 0.0  # of training steps, without validation, resumes included
        self._mark, self._mark_tokens = 0.0, 0
        self._last_line = time.monotonic()
        self._last_row: dict[str, Any] = {}  # of metrics.csv

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "train_loss": self.train_loss,
            "recent_losses": [float(loss) for loss in self.recent_losses],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.train_loss = state_dict.get("train_loss", math.nan)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Up to version 0.1 the module saved the losses.
        losses = (checkpoint["callbacks"]["Metrics"] | checkpoint[CHECKPOINT_KEY])["recent_losses"]
        self.recent_losses = [torch.tensor(loss, dtype=torch.float64) for loss in losses]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self.logged = (trainer.global_step, {})
        self._start_watch(pl_module)
        if trainer.is_global_zero:
            self._last_row = keep_rows_up_to(self.folder.metrics, COLUMNS, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        self.recent_losses.append(pl_module.micro_batches[-1].loss)
        if pl_module.skipped and step > self._step:
            self.recent_losses = [loss for loss in self.recent_losses if loss.isfinite()]  # else the mean is NaN
        self._step = step
        # With accumulation, several micro-batches share one global_step.
        if step == self.logged[0] or step % (self.config.trainer.log_every_n_steps or 1):
            return
        loss = self._mean_loss(trainer, pl_module)
        self._stop_watch(trainer, pl_module)
        row = {
            "train/loss": loss,
            "learning_rate": pl_module.learning_rate,
            "grad_norm": pl_module.grad_norm,
            "perf/tokens_per_second": self.tokens_per_second,
        }
        # `Anomalies` reports NaN and inf; the field in metrics.csv stays empty.
        self.logged = (step, {name: value for name, value in row.items() if math.isfinite(value)})
        self.write(trainer, *self.logged)
        if math.isfinite(loss):
            self.train_loss = loss
        if trainer.progress_bar_callback is None and time.monotonic() - self._last_line > PLAIN_LINE_SECONDS:
            self._print_line(trainer, f"{self.tokens_per_second:,.0f} tokens/s")

    def _mean_loss(self, trainer: L.Trainer, module: TrainingModule) -> float:
        """Mean over all devices and the micro-batches since the last row; NaN if no loss was finite."""
        dtype = torch.promote_types(next(module.parameters()).dtype, torch.float32)
        zero = torch.zeros((), device=module.device, dtype=dtype)
        losses = [loss.to(zero) for loss in self.recent_losses]
        self.recent_losses.clear()
        mean = torch.stack(losses).mean() if losses else zero
        total, n = trainer.strategy.reduce(torch.stack([mean, zero + bool(losses)]), reduce_op="sum").tolist()
        return total / n if n else math.nan

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_watch(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if not trainer.sanity_checking:
            self.val_loss = pl_module.val_loss
            if not math.isfinite(self.val_loss):
                raise UserError(not_finite("val/loss", trainer.global_step, self.folder))
            row = {"val/loss": pl_module.val_loss, "val/bits_per_byte": pl_module.val_bits_per_byte}
            self.write(trainer, trainer.global_step, row)
            self._print_line(trainer, "   ".join(f"{name} {value:.4f}" for name, value in row.items()))

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


class AttentionMaps(Callback):
    """Records attention maps and head scores on a fixed probe, for the page and the curves.

    It runs at each validation, or every attention.every_n_steps. Most heads form early, so before the first of these it
    also records steps 0, 1, 2, 4, 8, ...: snapshot and curves only, no page. After the last step it also computes the
    slower head scores and a table of all heads.
    """

    def __init__(self, folder: RunFolder, config: Config, data: PreparedData) -> None:
        self.folder, self.settings, self.tokenizer = folder, config.attention, data.tokenizer
        self.probe = _probe(config, data)
        # With examples, a window of the split has several texts, which the model never reads together.
        self.val_windows = self.probe.windows if config.data.mode == "examples" else _val_windows(config, data)
        self.max_steps = config.trainer.max_steps
        self.first_regular_step = _first_regular_step(config)
        self.looked_at = -1
        self.newest: tuple[Snapshot, Diagnostics | None] | None = None  # on rank 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.looked_at = trainer.global_step  # a resumed run has recorded its checkpoint's step
        if trainer.is_global_zero:
            self.probe.save(self.folder.probe)
        if not trainer.global_step:
            with metrics_of(trainer).paused(trainer, pl_module):
                self._look(trainer, pl_module, is_early=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        every, step = self.settings.every_n_steps, trainer.global_step
        is_early = step < self.first_regular_step and step & (step - 1) == 0
        is_regular = every is not None and step % every == 0
        # Several micro-batches share one step; the last step is recorded after its validation.
        if (is_early or is_regular) and self.looked_at < step < self.max_steps:
            with metrics_of(trainer).paused(trainer, pl_module):
                self._look(trainer, pl_module, is_early=is_early)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_last = trainer.should_stop or trainer.global_step >= self.max_steps
        if not trainer.sanity_checking and (is_last or self.settings.every_n_steps is None):
            self._look(trainer, pl_module, is_last=is_last)

    def _look(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, is_last: bool = False, is_early: bool = False
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step, began = trainer.global_step, time.perf_counter()
        self.looked_at = step
        model = gather_model(pl_module.model)
        if not trainer.is_global_zero or not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            return  # the next loss or checkpoint reports weights that are NaN or infinite
        try:
            seen = score_heads(model, self.tokenizer, self.probe, step, everything=is_last)
        except DivergedError:
            return  # weights so large that activations overflow: the next loss reports them too
        windows = self.val_windows if is_last else self.probe.windows[:1]
        self.newest = (seen.snapshot, diagnose_model(model, windows) if len(windows) else None)
        seen.snapshot.save(self.folder.snapshot(step))
        if not is_early:
            self._show(trainer, seen, is_last=is_last)
        numbers = {**seen.snapshot.numbers, "probe_seconds": time.perf_counter() - began}
        log_scalars(trainer.loggers, {f"attn/{name}": number for name, number in numbers.items()}, step)

    def _show(self, trainer: L.Trainer, seen: HeadScores, *, is_last: bool) -> None:
        """Write page, grid and, at the end, the table of heads."""
        snapshot, step = seen.snapshot, seen.snapshot.step
        grid, page = grid_image(snapshot), self._page(seen)
        save_png(self.folder.attention_grid, grid)
        write_text(self.folder.attention_page, page)
        log_image(trainer.loggers, "attn/grid", grid, step)
        if snapshot.scores:
            log_image(trainer.loggers, "attn/scores", scores_image(snapshot.scores), step)
        log_page(trainer.loggers, "attn/page", page, step)
        if is_last:
            columns, rows = head_table(snapshot.scores, seen.ablation_kind)
            write_csv(self.folder.heads, columns, rows)
            log_table(trainer.loggers, "attn/heads", columns, rows, step)

    def _page(self, seen: HeadScores) -> str:
        newest = seen.snapshot
        earlier = [path for path in self.folder.snapshots if step_of(path) < newest.step]
        history = history_of(newest, earlier, self.settings.max_snapshots)
        labels = [label_heads(snapshot.scores) for snapshot in history]
        return render_page(
            history,
            title=f"{self.folder.path.name}: attention while training",
            links=self.probe.links,
            labels=labels if all(labels) else (),
            causes=[seen.causes],
            ablation_kind=seen.ablation_kind,
            n_measured=seen.measured_tokens,
            notes=seen.notes,
        )


def _probe(config: Config, data: PreparedData) -> Probe:
    """The probe text: attention.text, else texts with known relations, else the beginning of the val split."""
    settings, context_length = config.attention, config.model.context_length
    enough = PROBE_TOKENS + 1 + context_length
    ground_truth = data.folder / f"val{RELATIONS}"
    known = None
    if settings.text is not None:
        try:
            tokens = data.tokenizer.encode(settings.text)
        except UserError as error:
            raise UserError(f"attention.text: {error}") from None
    elif settings.relations is not None or ground_truth.is_file():
        try:
            tokens, known = read_examples(data.tokenizer, read_relations(settings.relations or ground_truth), enough)
        except UserError as error:
            raise UserError(f"attention.relations={error}" if settings.relations is not None else str(error)) from None
    else:
        tokens = data.val.tokens.read(0, min(enough, len(data.val.tokens))).tolist()
    if not tokens:
        given = "text is empty" if settings.text is not None else f"relations={settings.relations}: has no text"
        raise UserError(f"attention.{given}; give a text, or remove the setting to use the beginning of the val split")
    if config.data.mode == "examples" and known is None:  # each training text starts with end_of_text too
        tokens = [data.tokenizer.end_of_text, *tokens]
    one_by_one = config.data.mode == "examples"
    return Probe.of(data.tokenizer, tokens, context_length, settings.max_tokens, known=known, one_by_one=one_by_one)


def _val_windows(config: Config, data: PreparedData) -> Tensor:
    """(B, T + 1) ids of the beginning of the val split, on which the loss is measured by position."""
    T = min(config.model.context_length, len(data.val.tokens) - 1)
    n_windows = max(1, min(POSITION_TOKENS, len(data.val.tokens) - 1) // T)
    return torch.from_numpy(data.val.tokens.read(0, n_windows * T + 1).astype("int64")).unfold(0, T + 1, T)


def _first_regular_step(config: Config) -> int:
    """The step of the first regular record: of attention.every_n_steps, or of the first validation."""
    trainer, every = config.trainer, config.attention.every_n_steps
    interval = trainer.max_steps if trainer.val_check_interval is None else trainer.val_check_interval
    if every is not None:
        return every
    batches = interval * (trainer.max_steps * trainer.accumulate_grad_batches if isinstance(interval, float) else 1)
    return math.ceil(batches / trainer.accumulate_grad_batches)
