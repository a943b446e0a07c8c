"""Callbacks that spoil a run, for tests of what is to notice it."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class MovesOnResume(Callback):
    """A weight of a run that goes on is a little another one."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            with torch.no_grad():
                next(pl_module.parameters()).mul_(1.0001)


class DropsByTheClock(Callback):
    """Dropout is drawn anew each time."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seeded = pl_module.on_train_batch_start

        def by_the_clock(*arguments: Any) -> None:
            seeded(*arguments)
            torch.manual_seed(time.time_ns())

        pl_module.on_train_batch_start = by_the_clock  # type: ignore[method-assign]


class FailsOnResume(Callback):
    """A run that goes on does not."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            raise ValueError("no, thank you")


class RateTimes(Callback):
    """The learning rate is `times` what the schedule says, from a step on."""

    def __init__(self, times: float, step: int = 0) -> None:
        self.times, self.step = times, step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= self.times if trainer.global_step >= self.step else 1.0


class BadBatch(Callback):
    """The batches of some steps are random tokens."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            for tensor in batch:
                tensor.random_(0, 250, generator=torch.Generator().manual_seed(0))


class FrozenLayer(Callback):
    """A layer gets no gradients, from a step on."""

    def __init__(self, layer: int, step: int = 0) -> None:
        self.layer, self.step = layer, step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step >= self.step:
            for parameter in pl_module.model.blocks[self.layer].parameters():
                parameter.grad = None


class PositionsOff(Callback):
    """Rotary positions do not turn, and others are zero."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        model = pl_module.model
        if model.rotary is not None:
            model.rotary[0], model.rotary[1] = 1.0, 0.0
        else:
            model.position_embedding.weight.requires_grad_(False).zero_()


class HeadOfZeros(Callback):
    """The output of a head is zero, from a step on."""

    def __init__(self, layer: int, head: int, step: int = 0) -> None:
        self.layer, self.head, self.step = layer, head, step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        attention = pl_module.model.blocks[self.layer].attn
        if trainer.global_step >= self.step:
            with torch.no_grad():
                attention.proj.weight.unflatten(1, (attention.n_head, -1))[:, self.head].zero_()
