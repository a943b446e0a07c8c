"""The machine and its containers -> the cores that this process may use, and work spread over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """The cores that the process is bound to, and no more than its container's share of time is worth; at least 1.

    PyTorch takes a thread for each core it sees; where a container has the time of two of sixty-four, most of them
    would wait for one another.
    """
    # Not every system lets processes be bound to cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota() or cores)))


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """What a function makes of each part, in order: on all cores if it releases the interpreter's lock.

    A signal to stop ends it behind the parts that are being worked on, so each should take less than a second.
    """
    if len(parts) < 2:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(usable_cores()) as pool:
        futures = [pool.submit(work, part) for part in parts]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _quota() -> float | None:
    """Cores' worth of time that Linux gives the container; None where there is no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # the second and the first version
        try:
            quota, period = " ".join((CGROUPS / file).read_text() for file in files).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
