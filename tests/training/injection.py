"""A callback that spoils the loss or the gradient of chosen micro-batches; by its name, also in other processes."""

from typing import Any

import lightning as L
import torch


class Injection(L.Callback):
    """`at` is {number of the device's micro-batch: [value, "loss" or "gradient"]}; of one rank, or of all."""

    def __init__(self, at: dict[int, tuple[float, str]], rank: int | None = None) -> None:
        self.at = {int(batch): (float(value), where) for batch, (value, where) in at.items()}
        self.rank, self.now = rank, (0.0, "")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        real = pl_module.loss

        def loss(*arguments: Any, **options: Any) -> torch.Tensor:
            value, where = self.now if trainer.training else (0.0, "")
            # Added, it leaves the gradient as it is: so that it takes a look at the loss itself to find it.
            found: torch.Tensor = real(*arguments, **options)
            return found + value if where == "loss" else found

        pl_module.loss = loss

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        here = self.rank in {None, trainer.global_rank}
        self.now = self.at.get(batch_idx, (0.0, "")) if here else (0.0, "")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        value, where = self.now
        if where == "gradient":
            pl_module.model.blocks[1].mlp.proj.weight.grad[0, 0] = value
