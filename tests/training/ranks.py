"""A callback that keeps what each rank has, for tests of whether they have the same."""

from pathlib import Path
from typing import Any

import lightning as L
import torch


class Keep(L.Callback):
    """At the end, rank 1's file is `1.pt` in `folder`: the learning rate of each step, and the weights."""

    def __init__(self, folder: str) -> None:
        self.folder, self.rates = Path(folder), list[float]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.rates.append(pl_module.learning_rate)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save((self.rates, pl_module.model.state_dict()), self.folder / f"{trainer.global_rank}.pt")
