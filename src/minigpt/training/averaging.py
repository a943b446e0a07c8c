"""Exponential moving average (EMA) of the weights, used for validation, samples and the saved best weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from minigpt.model.gpt import GPT


class Average:
    """The EMA of a model's weights. It is no nn.Module, so the model's owner neither trains nor saves it by accident.

    Lightning's EMAWeightAveraging swaps the average out before `on_validation_end`, where samples, attention maps and
    the best weights are written: those would not be the weights whose loss was measured. It also keeps the average on
    the CPU in float32, as it copies the model before that is moved to its device and precision. torch's AveragedModel
    counts on the device and reads the count at each update, one more wait for the GPU.
    """

    def __init__(self, model: GPT, decay: float) -> None:
        """Args: the model; decay of the average per step, in [0, 1)."""
        self.model, self.decay = model, decay
        self.averaged = copy.deepcopy(model)
        self.n_averaged = 0
        self._trained: dict[str, Tensor] | None = None  # the trained weights, while the model has the average

    def attach(self) -> None:
        """Move to the model's device and precision, but at least float32: small changes add up in an average."""
        weight = next(self.model.parameters())
        self.averaged.to(weight.device, torch.promote_types(weight.dtype, torch.float32))

    @torch.no_grad()
    def update(self) -> None:
        """Average in the weights after a step; the first ones and frozen ones are copied."""
        for average, current in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            # Frozen weights are copied: the rounded sum would not be exactly theirs.
            averages = self.n_averaged and current.requires_grad
            average.copy_(self.decay * average + (1 - self.decay) * current if averages else current)
        self.n_averaged += 1

    def swap_in(self) -> None:
        """Give the model the average."""
        self._trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged.state_dict())

    def swap_out(self) -> None:
        """Give the model its trained weights back, if it has the average."""
        if self._trained is not None:
            self.model.load_state_dict(self._trained)
            self._trained = None

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put the average in `state_dict`, which other programs load, and the trained weights beside it."""
        trained = self.model.state_dict() if self._trained is None else self._trained
        checkpoint |= {
            "state_dict": {f"model.{name}": value for name, value in self.averaged.state_dict().items()},
            "current_model_state": {f"model.{name}": value for name, value in trained.items()},
            "averaging_state": {"n_averaged": torch.tensor(self.n_averaged)},
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the average out of a checkpoint, and leave the trained weights in its `state_dict`."""
        average = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        self.averaged.to(next(iter(average.values())).dtype).load_state_dict(average)
        self.n_averaged = int(checkpoint["averaging_state"]["n_averaged"])
        checkpoint["state_dict"] = checkpoint["current_model_state"]
