"""The weights of a file as arrays, to decode a model without torch, and torch's model of them on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minigpt.config import GPTConfig

if TYPE_CHECKING:
    from minigpt.model.gpt import GPT

Float32 = npt.NDArray[np.float32]


class StoredModel:
    """Weights in memory; `model` makes a `GPT` of them, and what is changed in that one counts from then on."""

    def __init__(self, config: GPTConfig, weights: dict[str, Float32]) -> None:
        """Args: weights by their names in `GPT`, of the shapes of `tables.weight_shapes`."""
        self.config, self.weights = config, weights
        self.opened: GPT | None = None
        """The model of torch, if one has asked for it."""

    @property
    def model(self) -> GPT:
        """The model of torch, in eval mode, with its own copy of the weights."""
        if self.opened is None:
            import torch

            from minigpt.model.gpt import GPT

            with torch.inference_mode(False):  # parameters made in inference mode could never be trained
                model = GPT(self.config)
                model.load_state_dict({name: torch.from_numpy(weight) for name, weight in self.weights.items()})
            self.opened = model.eval()
            self.weights = {}
        return self.opened
