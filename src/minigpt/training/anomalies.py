"""Reports steps whose loss or gradient is NaN or infinite, decides what follows, and notes loss spikes."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from minigpt.command_line import command
from minigpt.config import Config
from minigpt.data.batches import IGNORED, TrainBatches
from minigpt.data.tokenizers.base import decode
from minigpt.errors import UserError
from minigpt.files import append, write_csv, write_text
from minigpt.inspection.capture import attention_hooks, evaluation_mode
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import AttentionSpec, attention_scores, query_chunks
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import newest_checkpoint
from minigpt.training.distributed import gather_on_rank_zero, on_rank_zero, reshard
from minigpt.training.loss import model_loss
from minigpt.training.module import TrainingModule, total_norm
from minigpt.training.rows import keep_rows_up_to

MOST_SKIPPED = 10
"""Consecutive skipped steps after which the run stops: the weights are at fault, not one bad batch."""
MOST_ROLLBACKS = 3
"""Rollbacks to one checkpoint after which the run stops: the checkpoint is at fault, not one bad batch."""
SPIKE = 6.0
"""A spike is a loss this many standard deviations above the mean of the last steps."""
WINDOW, ENOUGH = 128, 64
"""Most and fewest steps from which that mean is computed."""
SPIKE_COLUMNS = ("step", "loss", "mean", "std", "micro_batches")


class Anomalies(Callback):
    """Writes a report of each bad step and a row for each loss spike. All ranks take the same decision.

    The module finds bad steps; `on_bad_step` tells it to skip the step or to roll back, or stops the run.
    """

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config = folder, config
        self.skipped_in_a_row = 0
        self.losses = deque[float](maxlen=WINDOW)
        self.newest_spike: tuple[int, float, float, float, str] | None = None
        """Step, loss, mean and standard deviation of those before, and micro-batches."""
        self._rolled_back_to, self._n_rollbacks = -1, 0
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses.extend(state_dict["losses"])
        self.skipped_in_a_row = state_dict["skipped_in_a_row"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.is_global_zero:
            keep_rows_up_to(self.folder.spikes, SPIKE_COLUMNS, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        is_step, self._step = trainer.global_step > self._step, trainer.global_step
        if is_step and not pl_module.skipped:
            self.skipped_in_a_row = 0
            self._note_spike(trainer, pl_module)

    def on_bad_step(self, module: TrainingModule) -> Path | None:
        """Report a bad step; returns the checkpoint to roll back to, or None to skip the step.

        Raises:
            UserError: the run stops, on rank 0.
            SystemExit: on the other ranks.
        """
        trainer = module.trainer
        ranks = gather_on_rank_zero(trainer, self._describe(trainer, module))
        return on_rank_zero(trainer, lambda: self._decide(trainer, trainer.global_step + 1, ranks))

    def _decide(self, trainer: L.Trainer, step: int, of_ranks: list[dict[str, Any]]) -> Path | None:
        """On rank 0: write the report, print the decision, and return the checkpoint to roll back to, if any.

        Raises:
            UserError: the run stops.
        """
        policy, source, stops = self.config.on_non_finite, None, ""
        bad_loss = any(isinstance(batch["loss"], str) for rank in of_ranks for batch in rank["micro_batches"])
        bad_norm = any(isinstance(rank["gradient_norm"], str) for rank in of_ranks)
        what = " and ".join(["the loss"] * bad_loss + ["the gradient"] * bad_norm)
        action = "the step is skipped"
        if policy == "skip":
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MOST_SKIPPED:
                stops = f"it would be the {MOST_SKIPPED}th skipped step in a row"
        elif policy == "rollback" and not (self.folder.last.exists() or self.folder.all_earlier):
            stops = "there is no checkpoint yet to roll back to"
        elif policy == "rollback":
            source, content = newest_checkpoint(self.folder)
            saved = int(content["global_step"])
            self._n_rollbacks = self._n_rollbacks + 1 if saved == self._rolled_back_to else 1
            self._rolled_back_to = saved
            action = f"training continues after it with the weights and optimizer state of step {saved}"
            if self._n_rollbacks > MOST_ROLLBACKS:
                stops = f"the run has already rolled back to step {saved} {MOST_ROLLBACKS} times"
        ends = policy == "stop" or bool(stops)
        if ends:
            action = "the run stops before the step is taken"
        report = {"step": step, "not_finite": what, "policy": policy, "action": action, "ranks": of_ranks}
        file = self.folder.anomaly(step)
        write_text(file, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        said = f"{what} of step {step} {'is' if ' and ' not in what else 'are'} not finite; {action}"
        if ends:
            raise UserError(f"{said}{stops and f', because {stops}'}; report: {file}; {self._way_on()}")
        trainer.print(f"note: {said}; report: {file}", flush=True)
        return source

    def _way_on(self) -> str:
        skip = "" if self.config.on_non_finite == "skip" else "skip such steps with --on_non_finite skip, or "
        before = f"{self.folder.last} was saved before that: " if self.folder.last.exists() else ""
        resumed = f" ({command('train', '--resume', self.folder.path)})" if before else ""
        return f"{before}{skip}try a lower optimizer.learning_rate{resumed}"

    def _describe(self, trainer: L.Trainer, module: TrainingModule) -> dict[str, Any]:
        """This rank's part of the report, as plain JSON values."""
        layers, bad = defaultdict[str, list[Tensor | None]](list), []
        for name, parameter in module.model.named_parameters():
            layers[".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1])].append(parameter.grad)
            if parameter.grad is not None and not total_norm([parameter.grad]).isfinite():
                bad.append(name)
        dataset, batches = getattr(trainer.train_dataloader, "dataset", None), []
        with trainer.precision_plugin.forward_context():  # repeat the forward pass in the run's precision
            for number, tokens, targets, loss in module.micro_batches:
                origins = dataset.origins(number) if isinstance(dataset, TrainBatches) else None
                scores, rows = _rows_again(module.model, tokens, targets)
                for row, own in enumerate(rows):
                    text = torch.cat([tokens[row, :1], targets[row][targets[row] != IGNORED]]).tolist()
                    own |= {"text": decode(module.data.tokenizer, text)} | (origins[row]._asdict() if origins else {})
                batches.append({"number": number, "loss": _plain(float(loss)), "largest_scores": scores, "rows": rows})
        reshard(module.model)
        return {
            "rank": trainer.global_rank,
            "gradient_norm": _plain(module.grad_norm),
            "gradient_norms": {layer: _plain(float(total_norm(grads))) for layer, grads in layers.items()},
            "parameters_not_finite": bad,
            "micro_batches": batches,
        }

    def _note_spike(self, trainer: L.Trainer, module: TrainingModule) -> None:
        loss = module.step_loss
        if len(self.losses) >= ENOUGH:
            mean, std = float(np.mean(self.losses)), float(np.std(self.losses))
            if loss > mean + SPIKE * std:
                of_rank_zero = (each.number - trainer.global_rank for each in module.micro_batches)
                numbers = " ".join(str(n + rank) for n in of_rank_zero for rank in range(trainer.world_size))
                row = (trainer.global_step, loss, mean, std, numbers)
                self.newest_spike = row
                on_rank_zero(trainer, lambda: self._write_spike(trainer, row))
        self.losses.append(loss)

    def _write_spike(self, trainer: L.Trainer, row: tuple[int, float, float, float, str]) -> None:
        if self.folder.spikes.exists():
            append(self.folder.spikes, ",".join(map(str, row)) + "\n")
        else:
            write_csv(self.folder.spikes, SPIKE_COLUMNS, [row])
        step, loss, mean, std, numbers = row
        trainer.print(
            f"note: the loss of step {step} is a spike: {loss:.4f}, where the last were {mean:.4f} ± {std:.4f} "
            f"(micro-batches {numbers}; {self.folder.spikes})",
            flush=True,
        )


def _rows_again(model: GPT, tokens: Tensor, targets: Tensor) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Repeat a micro-batch's forward pass: the largest absolute score of each layer and head, and each row's loss.

    One row at a time, so that a report needs little memory.
    """
    largest: dict[int, Tensor] = {}
    rows: list[dict[str, Any]] = []

    def hook(layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> None:
        for queries in query_chunks(query.shape[2]):
            edges = spec["graph"].mask(queries, range(key.shape[2]), query.device)
            scores = attention_scores(query, key, spec, queries).abs().masked_fill(~edges, 0.0)
            found = scores.amax(dim=(0, 2, 3))  # NaN wins over numbers
            largest[layer] = torch.maximum(largest.get(layer, found), found)

    with evaluation_mode(model), attention_hooks(model, hook):
        for row, row_targets in zip(tokens.split(1), targets.split(1), strict=True):
            rows.append({"loss_without_dropout": _plain(float(model_loss(model, row, row_targets)))})
    return [[_plain(score) for score in largest[layer].tolist()] for layer in sorted(largest)], rows


def _plain(value: float) -> float | str:
    """The number, or "nan" or "inf" as text: JSON has neither."""
    return value if math.isfinite(value) else str(value)
