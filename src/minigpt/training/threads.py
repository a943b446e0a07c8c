"""CPU threads of a run: how many, and whether they flush denormal numbers to zero."""

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
"""OpenMP's omp_pause_soft: ends idle threads; the next parallel region starts new ones."""


def choose_threads(before: int | None) -> None:
    """Use one thread per core, or as many as a resumed run had: their number changes how sums are rounded.

    OMP_NUM_THREADS takes precedence: the user set it, or Lightning did because several processes share the machine.

    Args:
        before: threads of the run before a resume, from its checkpoint; None for a new run.
    """
    cores = usable_cores()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(before if before and before <= cores else min(torch.get_num_threads(), cores))
    if before not in {None, (now := torch.get_num_threads())}:
        print(f"note: {now} threads, the run had {before}: equal up to rounding, not bit for bit", file=sys.stderr)


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Inside the context, all threads flush denormals (float32 below 1.2e-38) to zero: Intel CPUs compute them slowly.

    They arise where a softmax is nearly one-hot, and in its gradient. A GPT-2 without QK norm, with AdamW at 8e-3,
    takes twice as long per step after some hundred steps because of them.
    """
    if _are_zero() or not torch.set_flush_denormal(True):  # False if the CPU cannot
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
    """End idle OpenMP threads: a thread keeps the mode it was started with.

    If no OpenMP library is found, only threads started later get the new mode.
    """
    for library in (Path(torch.__file__).parent / "lib").glob("lib*omp*"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).omp_pause_resource_all(_PAUSE_SOFT)
