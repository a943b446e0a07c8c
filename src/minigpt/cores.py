"""CPU cores available to this process, and work spread over them in threads."""

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
    """Cores in the affinity mask of the process, at most the CPU quota of its container; at least 1.

    PyTorch starts a thread for each core of the machine. In a container with a quota of 2 of 64 cores, most of them
    would wait for one another.
    """
    # macOS and Windows have no sched_getaffinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota() or cores)))


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Results of a function for each part, in order. Parallel only if the function releases the GIL.

    An interrupt waits for the parts in progress, so each should take less than a second.
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
    """CPU quota of the container in cores (Linux cgroups); None without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroups v2 and v1
        try:
            quota, period = " ".join((CGROUPS / file).read_text() for file in files).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None
