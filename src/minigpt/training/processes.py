"""Communication between a run's ranks: reductions, work on rank 0, and the end of processes started by Lightning."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from typing import Any, TypeVar

import lightning as L
import torch

from minigpt.errors import UserError

Result = TypeVar("Result")


def largest(trainer: L.Trainer, *here: int) -> list[int]:
    """The maximum of each number over all ranks. Collective: every rank must call it."""
    if trainer.world_size == 1:
        return list(here)
    numbers = torch.tensor(here, device=trainer.strategy.root_device)
    return [int(number) for number in trainer.strategy.reduce(numbers, reduce_op="max").tolist()]


def totals(trainer: L.Trainer, *here: float) -> list[float]:
    """The sum of each number over all ranks, in float64 on the CPU, since Apple GPUs have no float64. Collective."""
    if trainer.world_size == 1:
        return list(here)
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, here)
    return [math.fsum(numbers) for numbers in zip(*parts, strict=True)]


def any_process(trainer: L.Trainer, here: bool) -> bool:
    """Whether `here` is true on any rank. Collective."""
    return bool(largest(trainer, here)[0])


def on_first(trainer: L.Trainer, work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0 only and return its result on every rank. Collective.

    Raises:
        UserError: on rank 0, from `work`.
        SystemExit: on the other ranks, if `work` failed; they would otherwise wait for rank 0 forever.
    """
    result, failure = None, None
    if trainer.is_global_zero:
        try:
            result = work()
        except UserError as error:
            failure = error
    if trainer.world_size > 1:
        result, failed = trainer.strategy.broadcast((result, failure is not None))
        if failed and failure is None:
            raise SystemExit(2)
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def started_by(trainer: L.Trainer) -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning started from this one for the other ranks."""
    return list(getattr(trainer.strategy.launcher, "procs", ()))


def is_started_by_lightning(trainer: L.Trainer) -> bool:
    """Whether Lightning started this process from rank 0."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and not environment.creates_processes_externally and trainer.global_rank > 0


def end_started(trainer: L.Trainer, *, seconds: float) -> None:
    """Wait `seconds` for each process that Lightning started, then kill it, so that none outlives the run."""
    for process in started_by(trainer):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
