"""Follows a run, says what happens in it, and writes diagnosis.json with a summary in words at its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from minigpt.config import Config
from minigpt.data.batches import IGNORED
from minigpt.errors import UserError
from minigpt.files import write_text
from minigpt.inspection.diagnostics import Diagnostics
from minigpt.inspection.labels import LABELS
from minigpt.inspection.measuring import measure
from minigpt.inspection.snapshot import read_scores
from minigpt.pages.attention import renew_page
from minigpt.pages.run_record import metric_rows
from minigpt.runs.folder import RunFolder
from minigpt.training.anomalies import Anomalies
from minigpt.training.attention_maps import AttentionMaps
from minigpt.training.callbacks import metrics_of
from minigpt.training.dashboards import alert, log_table
from minigpt.training.diagnosis_summary import diagnosis
from minigpt.training.distributed import is_sharded
from minigpt.training.events import find_events
from minigpt.training.evidence import Event, Evidence, ScoresAtStep, Spike, Update
from minigpt.training.memorising import Memorising
from minigpt.training.module import TrainingModule
from minigpt.training.update_ratios import UpdateRatios

EVERY = 10
"""Steps between two measurements of the updates."""
EARLY = (1, 2, 5)
"""First steps whose updates are measured too: weights are still those of the initialisation."""
MOST_UPDATES = 256
"""Measurements kept; beyond that every second one of the older half is dropped, so a checkpoint stays small."""
SPIKE_FOLLOWED = 3
"""Steps after a spike that tell a bad batch from a bad update."""
MOST_LINES, MOST_ALERTS, MOST_SPIKES = 5, 10, 20
EVENT_COLUMNS = ("step", "event", "where", "warning", "text", "try")
SAID_ELSEWHERE = {"spike", "memorising", "not_finite"}
"""Events of which another callback prints a line."""


class Diagnosis(Callback):
    """Collects evidence on rank 0, announces events at each attention snapshot, and writes the diagnosis at the end.

    It reads what other callbacks have measured. Its own are the update-to-weight ratios, a sample every EVERY steps.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        anomalies: Anomalies,
        memorising: Memorising,
        maps: AttentionMaps | None,
    ) -> None:
        self.folder, self.config = folder, config
        self.anomalies, self.memorising, self.maps = anomalies, memorising, maps
        self.evidence = Evidence(config)
        self.announced: list[str] = []
        self._step = -1
        self._before: dict[str, Tensor] | None = None  # weights before the step that is measured

    def state_dict(self) -> dict[str, Any]:
        found = self.evidence
        return {
            "announced": list(self.announced),
            "diagnostics": {step: dataclasses.asdict(each) for step, each in found.diagnostics.items()},
            "updates": [list(each) for each in found.updates],
            "spikes": [dataclasses.asdict(each) for each in found.spikes],
            "skipped": list(found.skipped),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.announced = state_dict["announced"]
        self.evidence = Evidence(
            self.config,
            diagnostics={step: Diagnostics(**each) for step, each in state_dict["diagnostics"].items()},
            updates=[Update(*each) for each in state_dict["updates"]],
            spikes=[Spike(**each) for each in state_dict["spikes"]],
            skipped=state_dict["skipped"],
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._step = trainer.global_step
        if not trainer.is_global_zero:
            return
        self.updates = UpdateRatios(pl_module.model)
        if self._step:
            read_files(self.evidence, self.folder, self._step)
        self._sample_before_next(self._step)
        self._take_in_snapshot(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step == self._step or not trainer.is_global_zero:  # with accumulation, micro-batches share a step
            return
        self._step = step
        if pl_module.skipped:
            self.evidence.skipped.append(step)
            self._before = None
        else:
            self._follow(trainer, pl_module, step)
        self._sample_before_next(step)
        logged_step, row = metrics_of(trainer).logged
        if logged_step == step:
            add_row(self.evidence, step, row)
        self._take_in_snapshot(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        add_row(self.evidence, trainer.global_step, {"val/loss": metrics_of(trainer).val_loss})
        self._take_in_snapshot(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # A run that a signal stops goes on later, unless that was at its last step; one whose loss is NaN has ended.
        has_ended = isinstance(exception, UserError) or trainer.global_step >= self.config.trainer.max_steps
        if trainer.is_global_zero and has_ended and self.evidence.step:
            self._write(trainer)

    def _follow(self, trainer: L.Trainer, module: TrainingModule, step: int) -> None:
        """Note updates and spikes of a step that was taken."""
        for spike in self.evidence.spikes[-SPIKE_FOLLOWED:]:
            if len(spike.after) < SPIKE_FOLLOWED:
                spike.after.append(module.step_loss)
        if self._before is not None:
            ratios, gradients = self.updates.ratios_and_gradients(self._before)
            self.evidence.updates.append(Update(step, ratios, self._before_clipping(gradients, module)))
            if len(self.evidence.updates) > MOST_UPDATES:
                self.evidence.updates[: MOST_UPDATES // 2] = self.evidence.updates[: MOST_UPDATES // 2 : 2]
        found = self.anomalies.newest_spike
        if found is not None and found[0] == step and len(self.evidence.spikes) < MOST_SPIKES:
            self.evidence.spikes.append(self._spike(module, found))
            self._send(trainer, f"spike step {step}", f"train/loss spiked to {found[1]:.2f} at step {step}", warn=True)

    def _sample_before_next(self, step: int) -> None:
        is_next = (step + 1) % EVERY == 0 or step + 1 in EARLY
        self._before = self.updates.sample() if is_next and self.updates.parts else None

    def _before_clipping(self, gradients: dict[str, float], module: TrainingModule) -> dict[str, float]:
        """Norm of each part's gradient before clipping, if that was by the norm, from that after it."""
        limit = self.config.trainer.gradient_clip_val
        by_norm = limit and self.config.trainer.gradient_clip_algorithm != "value"
        factor = max(1.0, module.grad_norm / limit) if by_norm and limit else 1.0
        return {part: norm * factor for part, norm in gradients.items()}

    def _spike(self, module: TrainingModule, found: tuple[int, float, float, float, str]) -> Spike:
        usual: dict[str, list[float]] = {}
        for update in self.evidence.updates[-20:]:
            for part, norm in update.gradients.items():
                usual.setdefault(part, []).append(norm)
        gradients = self._before_clipping(self.updates.gradients(), module) if usual else {}
        factors = {part: norm / max(float(np.median(usual[part])), 1e-12) for part, norm in gradients.items()}
        return Spike(*found, gradients=factors, scores=self._scores(module))

    def _scores(self, module: TrainingModule) -> dict[str, float]:
        """Largest attention score of each layer on the step's first row, relative to the last snapshot's."""
        snapshots = [each for each in self.evidence.snapshots if "largest_score" in each.scores]
        if not snapshots or is_sharded(module.model):
            return {}
        batch = module.micro_batches[-1]
        row = torch.cat([batch.tokens[:1], batch.targets[:1, -1:].masked_fill(batch.targets[:1, -1:] == IGNORED, 0)], 1)
        largest = measure(module.model, row, {}).scores["largest_score"].max(axis=1)
        before = np.nanmax(snapshots[-1].scores["largest_score"], axis=1)
        pairs = enumerate(zip(largest.tolist(), before.tolist(), strict=True))
        return {f"attention scores of layer {layer}": now / was for layer, (now, was) in pairs if was > 0}

    def _take_in_snapshot(self, trainer: L.Trainer) -> None:
        """Take in a new attention snapshot, or a validation of a run without, and announce new events."""
        found = self.evidence
        if self.maps is not None and self.maps.newest is not None:
            snapshot, diagnostics = self.maps.newest
            if not found.snapshots or found.snapshots[-1].step < snapshot.step:
                found.snapshots.append(ScoresAtStep(snapshot.step, snapshot.scores, snapshot.numbers))
                if diagnostics is not None:
                    found.diagnostics[snapshot.step] = diagnostics
                self._announce(trainer)

    def _events(self) -> list[Event]:
        said = self.memorising.said
        self.evidence.memorises = (
            {"best": self.memorising.best, "best_step": self.memorising.best_step} if said else None
        )
        return find_events(self.evidence)

    def _announce(self, trainer: L.Trainer) -> None:
        for event in self._events():
            if event.key in self.announced or not (event.is_warning or self._is_news(event)):
                continue
            if event.kind not in SAID_ELSEWHERE and len(self.announced) < MOST_LINES:
                trainer.print(f"note: {event.text}{f'; to try: {event.advice}' if event.advice else ''}", flush=True)
            self._send(trainer, event.key, event.text, warn=event.is_warning)

    def _is_news(self, event: Event) -> bool:
        """A drop, or heads of a kind that two snapshots agree on: early scores come and go."""
        of_model = event.where.replace(" ", "_") in LABELS
        return event.kind == "drop" or (
            event.kind == "heads" and of_model and event.step < self.evidence.snapshots[-1].step
        )

    def _send(self, trainer: L.Trainer, key: str, text: str, *, warn: bool) -> None:
        """An alert for an event that has not been announced yet."""
        if key not in self.announced and len(self.announced) < MOST_ALERTS:
            alert(trainer.loggers, key, text, warn=warn)
        if key not in self.announced:
            self.announced.append(key)

    def _write(self, trainer: L.Trainer) -> None:
        events = self._events()
        content = diagnosis(self.evidence, events)
        write_text(self.folder.diagnosis, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        self._mark_on_page([(event.step, event.text) for event in events if event.kind != "heads"])
        rows = [(e.step, e.kind, e.where, e.is_warning, e.text, e.advice) for e in events]
        if rows:
            log_table(trainer.loggers, "attn/events", EVENT_COLUMNS, rows, trainer.global_step)

    def _mark_on_page(self, events: list[tuple[int, str]]) -> None:
        """Show events at the step slider of the run's attention page, which has those of heads by their labels."""
        page = self.folder.attention_page
        if self.maps is not None and events and page.is_file():
            renewed = renew_page(page.read_text(encoding="ascii"), events)
            if renewed is not None:
                write_text(page, renewed)


def add_row(evidence: Evidence, step: int, row: Mapping[str, float]) -> None:
    """Take in a row of metrics.csv."""
    series = {"train/loss": evidence.losses, "val/loss": evidence.val_losses}
    for name, values in series.items():
        if math.isfinite(row.get(name, math.nan)):
            values[step] = row[name]


def read_files(evidence: Evidence, folder: RunFolder, step: int) -> None:
    """Take in what a resumed run wrote up to a step: metrics.csv and the attention snapshots."""
    for row in metric_rows(folder.metrics, []):
        if row["step"] <= step:
            add_row(evidence, int(row["step"]), row)
    shape = evidence.config.model.n_layer, evidence.config.model.n_head
    for path in folder.snapshots:
        with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one must not keep a run from resuming
            found = ScoresAtStep(*read_scores(path))
            if found.step <= step and all(values.shape == shape for values in found.scores.values()):
                evidence.snapshots.append(found)
