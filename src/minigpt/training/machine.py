"""Probes of this machine: memory, disk, speed, torch.compile, versions, reachable services.

No probe leaves a file behind, and each has a time limit.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from minigpt.errors import UserError
from minigpt.files import reason

WITHDRAWN = {"lightning": {"2.6.2", "2.6.3"}}
"""Releases that stole credentials when they were imported (GHSA-w37p-236h-pfx3)."""

ANSWER_SECONDS = 4
"""How long a service may take to answer."""

COMPILE_SECONDS = 15
"""How long torch.compile may take for a function of one line."""

_COMPILING = """
import time, torch
begin = time.perf_counter()
x = torch.ones(64, device="cuda" if torch.cuda.is_available() else "cpu")
torch.compile(lambda x: (x.sin() + 1) * x)(x)
print(time.perf_counter() - begin)
"""


def refuse_withdrawn() -> None:
    """Refuse compromised releases. Call it before importing any of them.

    Raises:
        UserError: a release in WITHDRAWN is installed.
    """
    for name, withdrawn in WITHDRAWN.items():
        version = importlib.metadata.version(name)
        if version in withdrawn:
            raise UserError(
                f"{name} {version}: a compromised release, which steals passwords and keys when imported: "
                f"pip install -c constraints.txt {name}, and replace all keys on this machine"
            )


def versions(*names: str) -> str:
    """The versions of Python and of the named packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def memory() -> tuple[int, int]:
    """Available and total memory in bytes."""
    system = psutil.virtual_memory()
    total = system.total
    with contextlib.suppress(OSError, ValueError):  # a container's limit, unless it is "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(system.available, total), total


def free_disk(folder: Path, setting: str) -> int:
    """Free bytes on the disk of a folder, which need not exist yet, after a test write.

    Raises:
        UserError: the folder cannot be written; names the setting.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    if not there.is_dir():
        raise UserError(f"{setting}={folder}: {there} is a file, not a folder; give another folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            return shutil.disk_usage(there).free
    except OSError as error:
        raise UserError(f"{setting}={folder}: cannot write in {there} ({reason(error)}); give another folder") from None


def speeds(device: torch.device) -> dict[str, float]:
    """Floating-point operations per second of a square matrix product, by dtype."""
    size = 2048 if device.type == "cuda" else 256
    found: dict[str, float] = {}
    for name in ("float32", "bfloat16", "float16"):
        x = torch.ones(size, size, device=device, dtype=getattr(torch, name))
        seconds = []
        for _ in range(3):  # the first is a warm-up
            begin = time.perf_counter()
            float((x @ x)[0, 0])  # synchronises with the device
            seconds.append(time.perf_counter() - begin)
        found[name] = 2 * size**3 / min(seconds)
    return found


class Asking:
    """Whether a service answers, asked in a thread: a DNS lookup has no time limit of its own."""

    def __init__(self, address: Callable[[], str]) -> None:
        """Args: a function that returns the address, called in the thread too."""
        self.host, self.answered = "", False
        self._address = address
        self._thread = threading.Thread(target=self._ask, daemon=True)  # does not keep the program alive
        self._thread.start()
        self._until = time.monotonic() + 2 * ANSWER_SECONDS

    def _ask(self) -> None:
        import requests

        try:
            address = self._address()
            self.host = address.split("/")[2]
            # Any status counts as an answer. Proxies are those of the environment.
            requests.head(address, timeout=ANSWER_SECONDS)
            self.answered = True
        except Exception:  # networks fail with many types of exceptions
            return

    def __bool__(self) -> bool:
        self._thread.join(max(0, self._until - time.monotonic()))
        return self.answered


class Compiling:
    """Tries torch.compile in a separate process with temporary caches, while other probes run."""

    def __init__(self, folder: Path) -> None:
        """Args: a temporary folder."""
        caches = {name: str(folder) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMPILING],
            env=os.environ | caches | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its compilers end with it
        )
        self._until = time.monotonic() + COMPILE_SECONDS

    def result(self) -> str:
        """Whether torch.compile works here, in words; waits up to COMPILE_SECONDS since the start."""
        try:
            out, err = self._process.communicate(timeout=max(0.1, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"one line took more than {COMPILE_SECONDS} s: a slow or busy machine, or a broken compiler"
        finally:
            self.close()
        if self._process.returncode == 0:
            return f"works ({float(out):.1f} s for one line)"
        why = next((line for line in reversed(err.splitlines()) if "Error" in line), "no reason given")
        return f"does not work here, so training goes on without it: {why.strip()[:120]}"

    def close(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(OSError, AttributeError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
