"""The losses and gradients of a step -> whether it is taken; a report where they are not finite, a note of a spike."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Iterable
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
from minigpt.inspection.capture import tapped, undisturbed
from minigpt.model.attention import How, attention_scores
from minigpt.model.gpt import GPT
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import newest_checkpoint, read_checkpoint
from minigpt.training.averaging import Averaging
from minigpt.training.callbacks import keep_rows_up_to
from minigpt.training.loss import model_loss
from minigpt.training.module import TrainingModule, gradient_scaler
from minigpt.training.processes import any_process, on_first
from minigpt.training.sharding import share_again, whole

MOST_SKIPPED = 10
"""Steps in a row: then it is no bad batch, but the weights."""
MOST_ROLLBACKS = 3
"""To one checkpoint: then it is no bad batch, but what that checkpoint leads to."""
SPIKE = 6.0
"""Standard deviations above the mean, of the losses of the last steps."""
WINDOW, ENOUGH = 128, 64
"""Steps whose losses a spike is measured against: at most, and at least."""
SPIKE_COLUMNS = ("step", "loss", "mean", "std", "micro_batches")
QUERIES_AT_ONCE = 256
"""Rows of attention scores that a report holds at a time."""


class Anomalies(Callback):
    """Looks at each step's losses and gradients before the optimizer does; all processes come to one decision.

    A step that is left out counts as done: the schedule and the data go on, so that a step is all that a resume needs
    to know. Weights, the optimizer's state and the average of the weights stay as they were. Under a gradient scaler
    (16-mixed) overflowing gradients are everyday, and the scaler's own affair; only losses count there.
    """

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config = folder, config
        self.skipped_in_a_row = 0
        self.losses = deque[float](maxlen=WINDOW)
        self._rolled_back_to, self._n_rollbacks = -1, 0
        self._batches = list[tuple[int, tuple[Tensor, Tensor]]]()  # of this step, with Lightning's numbers

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses.extend(state_dict["losses"])
        self.skipped_in_a_row = state_dict["skipped_in_a_row"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            keep_rows_up_to(self.folder.spikes, SPIKE_COLUMNS, trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append((batch_idx, batch))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """After the backward pass of the step's last micro-batch, and before clipping."""
        assert isinstance(pl_module, TrainingModule)
        # In the order in which torch's clip_grad_norm_ adds up.
        norm = _norm(parameter.grad for group in optimizer.param_groups for parameter in group["params"])
        own = torch.stack([norm, *(loss.to(norm) for loss in pl_module.recent_losses[-len(self._batches) :])])
        checked = own if gradient_scaler(trainer) is None else own[1:]
        clock = norm.new_full((), pl_module.read_clock() if trainer.is_global_zero else 0.0)
        shared = torch.stack([(~checked.isfinite().all()).to(own), own[1:].mean(), clock])
        if trainer.world_size > 1:
            shared = trainer.strategy.reduce(shared, reduce_op="sum")
        # One look at what the device has worked out.
        pl_module.total_norm = norm
        pl_module.grad_norm, *losses, n_bad, total, pl_module.share_of_time = torch.cat([own, shared]).tolist()
        pl_module.left_out = n_bad > 0
        if pl_module.left_out:
            self._leave_out(trainer, pl_module, optimizer, losses)
        else:
            self.skipped_in_a_row = 0
            self._note_spike(trainer, pl_module, total / trainer.world_size)
        self._batches.clear()

    def _leave_out(
        self, trainer: L.Trainer, module: TrainingModule, optimizer: torch.optim.Optimizer, losses: list[float]
    ) -> None:
        step, of_ranks = trainer.global_step + 1, _gathered(trainer, self._describe(trainer, module, losses))
        source = on_first(trainer, lambda: self._decide(trainer, step, of_ranks))
        module.recent_losses = [loss for loss in module.recent_losses if loss.isfinite()]  # the mean that is logged
        for parameter in module.parameters():
            parameter.grad = None  # which an optimizer passes over
        if source is not None:
            _go_back(trainer, module, optimizer, source)

    def _decide(self, trainer: L.Trainer, step: int, of_ranks: list[dict[str, Any]]) -> Path | None:
        """On the first process: write the report and say what happens; returns the checkpoint to go back to.

        Raises:
            UserError: the run stops.
        """
        policy, source, stops = self.config.on_non_finite, None, ""
        bad_loss = any(isinstance(batch["loss"], str) for rank in of_ranks for batch in rank["micro_batches"])
        bad_norm = any(isinstance(rank["gradient_norm"], str) for rank in of_ranks)
        what = " and ".join(["the loss"] * bad_loss + ["the gradient"] * bad_norm)
        action = "the step is left out"
        if policy == "skip":
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MOST_SKIPPED:
                stops = f"it would be the {MOST_SKIPPED}th in a row to be left out"
        elif policy == "rollback" and not (self.folder.last.exists() or self.folder.all_earlier):
            stops = "there is no checkpoint yet to go back to"
        elif policy == "rollback":
            source, content = newest_checkpoint(self.folder)
            saved = int(content["global_step"])
            self._n_rollbacks = self._n_rollbacks + 1 if saved == self._rolled_back_to else 1
            self._rolled_back_to = saved
            action = f"training goes on behind it with the weights and the optimizer of step {saved}"
            if self._n_rollbacks > MOST_ROLLBACKS:
                stops = f"the run went back to step {saved} {MOST_ROLLBACKS} times already"
        ends = policy == "stop" or bool(stops)
        if ends:
            action = "the run stops before the step is taken"
        report = {"step": step, "not_finite": what, "policy": policy, "action": action, "ranks": of_ranks}
        file = self.folder.anomaly(step)
        write_text(file, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        said = f"{what} of step {step} {'is' if ' and ' not in what else 'are'} not finite; {action}"
        if ends:
            raise UserError(f"{said}{stops and f', as {stops}'}; {file} says more; {self._way_on()}")
        trainer.print(f"note: {said}; {file} says more", flush=True)
        return source

    def _way_on(self) -> str:
        skip = "" if self.config.on_non_finite == "skip" else "leave out such steps with --on_non_finite skip, or "
        before = f"{self.folder.last} is from before: " if self.folder.last.exists() else ""
        resumed = f" ({command('train', '--resume', self.folder.path)})" if before else ""
        return f"{before}{skip}try a lower optimizer.learning_rate{resumed}"

    def _describe(self, trainer: L.Trainer, module: TrainingModule, losses: list[float]) -> dict[str, Any]:
        """What this process knows of the step, as JSON can say it."""
        layers, bad = defaultdict[str, list[Tensor | None]](list), []
        for name, parameter in module.model.named_parameters():
            layers[".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1])].append(parameter.grad)
            if parameter.grad is not None and not _norm([parameter.grad]).isfinite():
                bad.append(name)
        dataset, batches = getattr(trainer.train_dataloader, "dataset", None), []
        with trainer.precision_plugin.forward_context():  # the precision that it happened in
            for loss, (index, (tokens, targets)) in zip(losses, self._batches, strict=True):
                number = module.micro_batch(index)
                places = dataset.places(number) if isinstance(dataset, TrainBatches) else None
                scores, rows = _rows_again(module.model, tokens, targets)
                for row, own in enumerate(rows):
                    text = torch.cat([tokens[row, :1], targets[row][targets[row] != IGNORED]]).tolist()
                    own |= {"text": decode(module.data.tokenizer, text)} | (places[row]._asdict() if places else {})
                batches.append({"number": number, "loss": _plain(loss), "largest_scores": scores, "rows": rows})
        share_again(module.model)
        return {
            "rank": trainer.global_rank,
            "gradient_norm": _plain(module.grad_norm),
            "gradient_norms": {layer: _plain(float(_norm(grads))) for layer, grads in layers.items()},
            "parameters_not_finite": bad,
            "micro_batches": batches,
        }

    def _note_spike(self, trainer: L.Trainer, module: TrainingModule, loss: float) -> None:
        if len(self.losses) >= ENOUGH:
            mean, std = float(np.mean(self.losses)), float(np.std(self.losses))
            if loss > mean + SPIKE * std:
                own = (module.micro_batch(index) - trainer.global_rank for index, _ in self._batches)
                numbers = " ".join(str(n + rank) for n in own for rank in range(trainer.world_size))
                row = (trainer.global_step + 1, loss, mean, std, numbers)
                on_first(trainer, lambda: self._write_spike(trainer, row))
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
    """A micro-batch once more, row by row: each layer's and head's largest absolute score, and each row's own loss."""
    largest: dict[int, Tensor] = {}
    rows: list[dict[str, Any]] = []

    def look(layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> None:
        T, S = query.shape[2], key.shape[2]
        for start in range(0, T, QUERIES_AT_ONCE):
            queries = range(start, min(start + QUERIES_AT_ONCE, T))
            edges = how["graph"].mask(queries, range(S), query.device)
            scores = attention_scores(query, key, how, queries).abs().masked_fill(~edges, 0.0)
            found = scores.amax(dim=(0, 2, 3))  # of NaN and a number, NaN
            largest[layer] = torch.maximum(largest.get(layer, found), found)

    with undisturbed(model), tapped(model, look):
        for row, row_targets in zip(tokens.split(1), targets.split(1), strict=True):
            rows.append({"loss_without_dropout": _plain(float(model_loss(model, row, row_targets)))})
    return [[_plain(score) for score in largest[layer].tolist()] for layer in sorted(largest)], rows


def _go_back(trainer: L.Trainer, module: TrainingModule, optimizer: torch.optim.Optimizer, source: Path) -> None:
    """Take weights, their average and the optimizer's state from a checkpoint; all else stays where the run is."""
    content, failure = dict[str, Any](), None
    try:
        content = read_checkpoint(source, mmap=False)  # the optimizer keeps these very tensors
    except UserError as error:
        failure = error
    if any_process(trainer, failure is not None):
        raise failure or SystemExit(2)
    trainer.strategy.load_model_state_dict(content, strict=True)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Averaging):
            callback.on_load_checkpoint(trainer, module, content)
    # The rates and decays of this step, not those of the checkpoint's.
    state = content["optimizer_states"][0] | {"param_groups": optimizer.state_dict()["param_groups"]}
    trainer.strategy.load_optimizer_state_dict({"optimizer_states": [state]})


def _norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Of all together, in at least float32."""
    norm: Tensor = whole(torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
    return norm.to(torch.promote_types(norm.dtype, torch.float32))


def _plain(value: float) -> float | str:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)


def _gathered(trainer: L.Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has, on the first one."""
    if trainer.world_size == 1:
        return [own]
    parts: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(own, parts)
    return parts or []
