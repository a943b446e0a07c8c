"""Where the compiled step is kept between runs: a folder for each kind of step, in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from minigpt.config import Config
from minigpt.model.compiling import CompiledWithFallback

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""torch's name for the folder of compiled code. A folder that the user has set is used as it is, and never cleared."""
MOST_BYTES = 1 << 30
"""Of all folders together. That of a small model's step on a CPU has 6 MB (measured)."""
FREE_BYTES = 256 << 20
"""Free disk space below which the temporary folder is used, as when the cache folder cannot be written."""
IN_USE_SECONDS = 3600.0
"""A folder that a run began to use less than this ago is not deleted: that run may be compiling."""


class CompileCache:
    """The compiled step of one kind of run: of its model, batch, precision, device, threads and versions."""

    def __init__(self, config: Config, trainer: L.Trainer, given: str | None) -> None:
        """
        Args:
            config: with model.vocab_size set.
            trainer: of the run.
            given: the value of VARIABLE before the run.
        """
        key = _digest(config, trainer.strategy.root_device, trainer.precision)
        self.is_own = given is None or _is_default(Path(given))
        self.folder = user_cache_path("minigpt", False) / "compiled" / key if self.is_own else Path(str(given))
        self.marker = self.folder / f"minigpt-{key}"

    @property
    def is_warm(self) -> bool:
        """Whether such a step has been compiled and its code is still there."""
        return self.marker.is_file()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside, torch.compile reads and writes here, or in the temporary folder if this one cannot be used."""
        before = os.environ.get(VARIABLE)
        with contextlib.ExitStack() as held:
            if self.is_own and self._is_usable():
                os.environ[VARIABLE] = str(self.folder)
                drop_oldest(self.folder.parent, MOST_BYTES)
                if not self.is_warm:
                    held.enter_context(self._cleared())
            try:
                yield
            finally:
                if before is None:
                    os.environ.pop(VARIABLE, None)
                else:
                    os.environ[VARIABLE] = before

    @contextlib.contextmanager
    def _cleared(self) -> Iterator[None]:
        """Clear the folder, unless another process is compiling into it, and keep others from clearing it meanwhile.

        A process that was killed while it compiled leaves half-written code, which torch would try to load for ever.
        """
        lock = FileLock(self.folder / "compiling.lock")
        with contextlib.suppress(OSError, NotImplementedError, Timeout):  # some file systems have no locks
            lock.acquire(blocking=False)
            for each in self.folder.iterdir():
                if each.is_dir():
                    shutil.rmtree(each, ignore_errors=True)
                elif each != Path(lock.lock_file):
                    each.unlink()
        try:
            yield
        finally:
            lock.release()

    def _is_usable(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            os.utime(self.folder)  # used last of all, see `drop_oldest`
            return shutil.disk_usage(self.folder).free >= FREE_BYTES
        except OSError:
            return False

    def mark(self) -> None:
        """Record that the step is compiled and kept here, unless it went to the temporary folder."""
        if os.environ.get(VARIABLE) in {str(self.folder), str(self.folder.absolute())}:
            with contextlib.suppress(OSError):
                self.marker.touch()


class MarkCompiled(L.Callback):
    """Marks the cache as warm at the first validation: both programs, of training and of validation, are compiled."""

    def __init__(self, cache: CompileCache) -> None:
        self.cache = cache

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = pl_module.loss
        if trainer.is_global_zero and isinstance(loss, CompiledWithFallback) and loss.compiles:
            self.cache.mark()


def drop_oldest(folder: Path, most_bytes: int) -> None:
    """Delete the folders in `folder` that were used longest ago until the others have at most most_bytes together."""
    kept = list[tuple[float, int, Path]]()
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            with contextlib.suppress(OSError):  # another process may delete it at the same time
                size = sum(file.stat().st_size for file in each.rglob("*") if file.is_file())
                kept.append((each.stat().st_mtime, size, each))
    total = sum(size for _, size, _ in kept)
    for used, size, each in sorted(kept):
        if total <= most_bytes or time.time() - used < IN_USE_SECONDS:
            return
        # Renamed first, so that no run finds a marker beside half of the code.
        gone = each.with_name(f".{each.name}-{os.getpid()}")
        with contextlib.suppress(OSError):
            each.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        total -= size


def _is_default(folder: Path) -> bool:
    """Whether torch has named the folder: on import, it puts its default into VARIABLE."""
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


def _digest(config: Config, device: torch.device, precision: str) -> str:
    """Of whatever changes the compiled code; text, name, length and optimizer do not."""
    on_gpu = device.type == "cuda"
    versions = [importlib.metadata.version(name) for name in ("torch", "minigpt")]
    kind = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    content = [
        *versions,
        platform.python_version(),
        platform.machine(),
        device.type,
        kind,
        torch.get_num_threads(),
        str(precision),
        config.to_dict()["model"],
        [config.data.batch_size, config.data.mode, config.lora, config.optimizer.qk_clip],
        [config.trainer.deterministic, str(config.trainer.strategy), config.activation_checkpointing],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
