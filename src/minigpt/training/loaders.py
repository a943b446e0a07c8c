"""Prepared tokens -> DataLoaders of train and val batches, starting at the run's current step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from minigpt.config import Config
from minigpt.data.batches import IGNORED, TrainBatches, ValBatches, train_batches
from minigpt.data.shards import PreparedData
from minigpt.data.stream import StreamBatches
from minigpt.errors import UserError
from minigpt.training.module import TrainingModule
from minigpt.training.stopping import leave_stopping_to_the_main_process


class _TrainSampler(Sampler[int]):
    """Indices of this device's micro-batches, from the run's current step on.

    The step is read when iteration begins, after a checkpoint has been loaded. A batch depends on the step alone, so
    resuming needs neither replay nor loader state.
    """

    def __init__(self, n_batches: int, trainer: L.Trainer) -> None:
        """Args: number of this device's micro-batches in the whole run; the trainer, for its step."""
        self.n_batches, self.trainer = n_batches, trainer

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[int]:
        module = self.trainer.lightning_module
        assert isinstance(module, TrainingModule)
        for index in range(module.global_step * self.trainer.accumulate_grad_batches, self.n_batches):
            yield module.micro_batch_number(index)


class _ValSampler(Sampler[int]):
    """Each val batch goes to exactly one device; indices beyond the last batch pad the devices to equal counts."""

    def __init__(self, n_batches: int, trainer: L.Trainer) -> None:
        self.n_batches, self.trainer = n_batches, trainer

    def __len__(self) -> int:
        return -(-self.n_batches // self.trainer.world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.trainer.global_rank, len(self) * self.trainer.world_size, self.trainer.world_size))


class _ValBatches(Dataset[tuple[Tensor, Tensor]]):
    """Val batches; beyond the last one, a batch without targets.

    Sharded devices communicate in each forward pass, so all need the same number of batches.
    """

    def __init__(self, batches: TrainBatches | ValBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index < len(self.batches):
            return self.batches[index]
        tokens, targets = self.batches[0]
        return tokens, torch.full_like(targets, IGNORED)


class _TrainLoader(DataLoader[Any]):
    """Saves the text's fingerprint and a stream's position in the checkpoint.

    Without a state_dict, Lightning warns at each resume that the loader starts from its beginning; this one does not.
    """

    text_fingerprint = ""

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"text_fingerprint": self.text_fingerprint}
        return state | ({"stream": self.dataset.state_dict()} if isinstance(self.dataset, StreamBatches) else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["text_fingerprint"] != self.text_fingerprint:
            raise UserError("the checkpoint was trained on another text: give that text as data.source")
        if isinstance(self.dataset, StreamBatches):
            self.dataset.load_state_dict(state["stream"])


def make_loaders(
    config: Config, data: PreparedData, trainer: L.Trainer, seen: int = 0
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of train and val micro-batches; with overfit_batches, both repeat a few train batches.

    Before a resume, all devices together had seen `seen` micro-batches.

    Raises:
        UserError: a split is too short for model.context_length.
    """
    n_own = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    n_batches = seen + n_own * trainer.world_size
    overfit = config.trainer.overfit_batches
    repeat = overfit if isinstance(overfit, int) else math.ceil(overfit * n_batches)
    train: TrainBatches | StreamBatches
    val: TrainBatches | ValBatches
    if config.data.streaming and not repeat:
        train = StreamBatches(
            config.data, data, context_length=config.model.context_length, n_batches=n_batches, seed=config.seed
        )
    else:
        train = train_batches(config, data, n_batches=n_batches, repeat=repeat)
    if repeat:
        val = train_batches(config, data, n_batches=repeat)
    else:
        val = ValBatches(
            data.val,
            context_length=config.model.context_length,
            batch_size=config.data.batch_size,
            end_of_text=data.manifest.end_of_text,
            mode=config.data.mode,
            max_tokens=config.data.max_val_tokens,
        )
    options: dict[str, Any] = {
        "batch_size": None,  # the datasets yield whole batches
        "num_workers": config.data.num_workers,
        "persistent_workers": config.data.num_workers > 0,
        "worker_init_fn": leave_stopping_to_the_main_process,
        "pin_memory": trainer.strategy.root_device.type == "cuda",
    }
    train_loader = _TrainLoader(train, sampler=_TrainSampler(n_own, trainer), **options)
    train_loader.text_fingerprint = data.manifest.text_fingerprint
    return train_loader, DataLoader(_ValBatches(val), sampler=_ValSampler(len(val), trainer), **options)
