"""What the processes of one run ask each other, what the first does for all, and how those that it started end."""

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
    """The largest of each number that any process has, which all ask for together."""
    if trainer.world_size == 1:
        return list(here)
    numbers = torch.tensor(here, device=trainer.strategy.root_device)
    return [int(number) for number in trainer.strategy.reduce(numbers, reduce_op="max").tolist()]


def totals(trainer: L.Trainer, *here: float) -> list[float]:
    """The sum over all processes of each number, in float64 but never on a device: Apple's have no such type."""
    if trainer.world_size == 1:
        return list(here)
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, here)
    return [math.fsum(numbers) for numbers in zip(*parts, strict=True)]


def any_process(trainer: L.Trainer, here: bool) -> bool:
    """Whether something is so in any of the processes, which all ask together."""
    return bool(largest(trainer, here)[0])


def on_first(trainer: L.Trainer, work: Callable[[], Result]) -> Result:
    """Let the first process read and write, and tell all what came of it.

    Raises:
        UserError: what the first process raised; the others, which would wait for it forever, end with SystemExit.
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
    """The processes of the other ranks, where Lightning has started them from this one."""
    return list(getattr(trainer.strategy.launcher, "procs", ()))


def is_started_by_lightning(trainer: L.Trainer) -> bool:
    """Whether this process is one that Lightning has started from that of rank 0."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and not environment.creates_processes_externally and trainer.global_rank > 0


def end_started(trainer: L.Trainer, *, seconds: float) -> None:
    """Wait for the processes of the other ranks; those that do not end are killed, so that none outlives its run."""
    for process in started_by(trainer):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
