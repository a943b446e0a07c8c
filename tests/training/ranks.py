"""Callbacks that keep what each rank has and calls, for tests of whether ranks agree and how often they talk."""

import json
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


class Collectives(L.Callback):
    """At the end of step 7, rank 0's file is `collectives.json`: how often each is called in five optimizer steps."""

    def __init__(self, folder: str) -> None:
        self.file = Path(folder) / "collectives.json"
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.is_on = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 2 and not self.is_on:
            self.is_on = True
            self.profile.start()
        elif trainer.global_step == 7 and self.is_on:
            self.is_on = False
            self.profile.stop()
            counts = {event.key: event.count for event in self.profile.key_averages() if "c10d::" in event.key}
            if trainer.is_global_zero:
                self.file.write_text(json.dumps(counts))
