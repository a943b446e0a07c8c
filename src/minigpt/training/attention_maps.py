"""Attention maps and head scores on a fixed probe text, recorded while a model trains."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
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
from minigpt.inspection.heads import HeadScores, head_table, score_heads
from minigpt.inspection.labels import label_history
from minigpt.inspection.probes import PROBE_TOKENS, Probe, read_examples, windows_of
from minigpt.inspection.snapshot import Snapshot, history_of, step_of
from minigpt.pages.attention import render_page
from minigpt.pages.grid import grid_image, save_png
from minigpt.pages.scores_image import scores_image
from minigpt.runs.folder import RunFolder
from minigpt.training.callbacks import metrics_of
from minigpt.training.dashboards import log_image, log_page, log_scalars, log_table
from minigpt.training.distributed import gather_model
from minigpt.training.module import TrainingModule

POSITION_TOKENS = 4096
"""Tokens on which the loss is measured by position at the end, in windows of the full context; at least one window."""


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
        self.recorded_step = -1
        self.newest: tuple[Snapshot, Diagnostics | None] | None = None  # on rank 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.recorded_step = trainer.global_step  # a resumed run has recorded its checkpoint's step
        if trainer.is_global_zero:
            self.probe.save(self.folder.probe)
        if not trainer.global_step:
            with metrics_of(trainer).paused(trainer, pl_module):
                self._record(trainer, pl_module, is_early=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        every, step = self.settings.every_n_steps, trainer.global_step
        is_early = step < self.first_regular_step and step & (step - 1) == 0
        is_regular = every is not None and step % every == 0
        # Several micro-batches share one step; the last step is recorded after its validation.
        if (is_early or is_regular) and self.recorded_step < step < self.max_steps:
            with metrics_of(trainer).paused(trainer, pl_module):
                self._record(trainer, pl_module, is_early=is_early)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_last = trainer.should_stop or trainer.global_step >= self.max_steps
        if not trainer.sanity_checking and (is_last or self.settings.every_n_steps is None):
            self._record(trainer, pl_module, is_last=is_last)

    def _record(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, is_last: bool = False, is_early: bool = False
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step, began = trainer.global_step, time.perf_counter()
        self.recorded_step = step
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
        return render_page(
            history,
            title=f"{self.folder.path.name}: attention while training",
            links=self.probe.links,
            labels=label_history([snapshot.scores for snapshot in history]),
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
    T = config.model.context_length
    enough = min(max(POSITION_TOKENS, T) + 1, len(data.val.tokens))
    return windows_of(data.val.tokens.read(0, enough).tolist(), T, POSITION_TOKENS)


def _first_regular_step(config: Config) -> int:
    """The step of the first regular record: of attention.every_n_steps, or of the first validation."""
    trainer, every = config.trainer, config.attention.every_n_steps
    interval = trainer.max_steps if trainer.val_check_interval is None else trainer.val_check_interval
    if every is not None:
        return every
    batches = interval * (trainer.max_steps * trainer.accumulate_grad_batches if isinstance(interval, float) else 1)
    return math.ceil(batches / trainer.accumulate_grad_batches)
