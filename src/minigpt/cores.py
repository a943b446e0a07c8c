"""The machine and its containers -> the number of cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """The cores that the process is bound to, and no more than its container's share of time is worth; at least 1.

    PyTorch takes a thread for each core it sees; where a container has the time of two of sixty-four, most of them
    would wait for one another.
    """
    # Not every system lets processes be bound to cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota() or cores)))


def _quota() -> float | None:
    """Cores' worth of time that Linux gives the container; None where there is no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # the second and the first version
        try:
            quota, period = " ".join((CGROUPS / file).read_text() for file in files).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
