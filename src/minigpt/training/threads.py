"""The threads that a run computes with: how many, and what they do with numbers next to zero."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from minigpt.cores import usable_cores

_PAUSE_SOFT = 1
"""OpenMP's omp_pause_soft: ends threads that wait for work; the next that is to be shared makes new ones."""


def choose_threads(before: int | None) -> None:
    """As many threads as there are cores, or as a resumed run had before: with others, sums are rounded otherwise.

    OMP_NUM_THREADS is the user's own choice, and that of Lightning where processes share a machine.
    """
    cores = usable_cores()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(before if before and before <= cores else min(torch.get_num_threads(), cores))
    if before not in {None, (now := torch.get_num_threads())}:
        print(f"note: {now} threads where the run had {before}: equal up to rounding, not bit for bit", file=sys.stderr)


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Meanwhile numbers below 1.2e-38, for which Intel's processors take many times as long, are zero in all threads.

    They come up where a softmax or its gradient has all but decided: a GPT-2 without norms of queries and keys, with
    AdamW at 8e-3, takes twice the time a step for them after some hundred steps.
    """
    if _are_zero() or not torch.set_flush_denormal(True):  # some processors cannot
        yield
        return
    _renew_threads()
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        _renew_threads()


def _are_zero() -> bool:
    return float(torch.tensor(1e-30) * torch.tensor(1e-10)) == 0.0


def _renew_threads() -> None:
    """A thread keeps the mode in which it was made; where this does not work, only those made from now on have it."""
    for library in (Path(torch.__file__).parent / "lib").glob("lib*omp*"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).omp_pause_resource_all(_PAUSE_SOFT)
