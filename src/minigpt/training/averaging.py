"""Exponential moving average (EMA) of the weights, used for validation, samples and the saved best weights."""

from __future__ import annotations

import copy
from typing import Any

import torch

from minigpt.model.gpt import GPT


class Average:
    """The EMA of a model's weights. It is no nn.Module, so the model's owner neither trains nor saves it by accident.

    Lightning's EMAWeightAveraging swaps the average out before `on_validation_end`, where samples, attention maps and
    the best weights are written: those would not be the weights whose loss was measured. It also keeps the average on
    the CPU, as it copies the model before that is moved to its device.
    """

    def __init__(self, model: GPT, decay: float) -> None:
        """Args: the model; decay of the average per step, in [0, 1)."""
        self.model, self.decay = model, decay
        self.averaged = copy.deepcopy(model)
        self.n_averaged = 0
        self.in_place = False  # whether `model` holds the average, and `averaged` the trained weights

    @torch.no_grad()
    def update(self) -> None:
        """Average in the weights after a step; the first ones are copied."""
        for average, current in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            average.copy_(self.decay * average + (1 - self.decay) * current if self.n_averaged else current)
        self.n_averaged += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and trained weights."""
        for average, current in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            trained = current.clone()
            current.copy_(average)
            average.copy_(trained)
        self.in_place = not self.in_place

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put the average in `state_dict`, which other programs load, and the trained weights beside it."""
        average = {f"model.{name}": value for name, value in self.averaged.state_dict().items()}
        trained = checkpoint["state_dict"]
        if self.in_place:
            average, trained = trained, average
        checkpoint |= {
            "state_dict": average,
            "current_model_state": trained,
            "averaging_state": {"n_averaged": torch.tensor(self.n_averaged)},
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the average out of a checkpoint, and leave the trained weights in its `state_dict`."""
        average = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        self.averaged.load_state_dict(average)
        self.n_averaged = int(checkpoint["averaging_state"]["n_averaged"])
        checkpoint["state_dict"] = checkpoint["current_model_state"]
