"""Prepared tokens -> the loaders that Lightning reads, starting wherever the run stands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Sampler

from minigpt.config import Config, UserError
from minigpt.data.batches import TrainBatches, ValBatches
from minigpt.data.prepare import PreparedData


class _TrainSampler(Sampler[int]):
    """Indices of this device's micro-batches, from the trainer's position on.

    The position is read when iteration begins, after a checkpoint has been loaded; Lightning keeps it. So a batch
    depends on the step alone, and resuming needs neither replay nor loader state.
    """

    def __init__(self, dataset: Sized, trainer: L.Trainer) -> None:
        self.dataset, self.trainer = dataset, trainer

    def __len__(self) -> int:
        return len(self.dataset) // self.trainer.world_size

    def __iter__(self) -> Iterator[int]:
        start = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        for index in range(start, len(self)):
            yield index * self.trainer.world_size + self.trainer.global_rank


class _ValSampler(Sampler[int]):
    """Each batch of the val split on exactly one device."""

    def __init__(self, dataset: Sized, trainer: L.Trainer) -> None:
        self.dataset, self.trainer = dataset, trainer

    def _indices(self) -> range:
        return range(self.trainer.global_rank, len(self.dataset), self.trainer.world_size)

    def __len__(self) -> int:
        return len(self._indices())

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices())


class _TrainLoader(DataLoader[Any]):
    """Tells Lightning that its position in mid-epoch is meant, and which text it belongs to.

    Without a state, Lightning warns at each resume that the loader will start again; ours does not.
    """

    text_fingerprint = ""

    def state_dict(self) -> dict[str, str]:
        return {"text_fingerprint": self.text_fingerprint}

    def load_state_dict(self, state: dict[str, str]) -> None:
        if state["text_fingerprint"] != self.text_fingerprint:
            raise UserError("the checkpoint belongs to another text: give the text it was trained on")


def make_loaders(config: Config, data: PreparedData, trainer: L.Trainer) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of train and val micro-batches; overfit_batches repeats a few train batches for both.

    Raises:
        UserError: a split is too short for model.context_length.
    """
    context_length, batch_size = config.model.context_length, config.data.batch_size
    n_batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches * trainer.world_size
    overfit = config.trainer.overfit_batches
    repeat = overfit if isinstance(overfit, int) else math.ceil(overfit * n_batches)
    train = TrainBatches(
        data.train.tokens,
        context_length=context_length,
        batch_size=batch_size,
        n_batches=n_batches,
        seed=config.seed,
        repeat=repeat,
    )
    val: TrainBatches | ValBatches = ValBatches(data.val.tokens, context_length=context_length, batch_size=batch_size)
    if repeat:
        val = TrainBatches(
            data.train.tokens,
            context_length=context_length,
            batch_size=batch_size,
            n_batches=repeat,
            seed=config.seed,
        )
    options: dict[str, Any] = {
        "batch_size": None,  # the datasets yield whole batches
        "num_workers": config.data.num_workers,
        "persistent_workers": config.data.num_workers > 0,
        "pin_memory": trainer.strategy.root_device.type == "cuda",
    }
    train_loader = _TrainLoader(train, sampler=_TrainSampler(train, trainer), **options)
    train_loader.text_fingerprint = data.manifest.text_fingerprint
    return train_loader, DataLoader(val, sampler=_ValSampler(val, trainer), **options)
