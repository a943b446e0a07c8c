"""The processes of a run: all start alike, and none outlives another that was killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from minigpt.config import Config
from minigpt.data.shards import PreparedData
from minigpt.errors import UserError
from minigpt.training.lightning_compat import replaced_observer
from minigpt.training.stopping import SECONDS_TO_EXIT

SECONDS_TO_NOTICE = 3
"""How long a process may take to fail by itself once another is gone. gloo fails at once, NCCL waits half an hour."""
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)
"""In messages of errors that mean a lost connection: gloo raises plain RuntimeErrors."""
PLACES = ("data.dir", "data.source", "data.val_source", "data.tokenizer", "attention.relations")
"""Settings that hold paths, which may differ between machines. Ranks compare the text itself; only rank 0 reads
relations."""
# The number of loader workers does not change a batch, and each machine chooses whether to compile.
MAY_DIFFER = {*PLACES, "runs_dir", "initial_weights", "trainer.default_root_dir", "data.num_workers", "compile"}
RANK_ZERO = "MINIGPT_RANK_ZERO"
"""Variable with the process id of rank 0, in the environment of the processes that Lightning starts from it."""
MOST_NAMED = 3
"""Differences that are named."""


class Alike(Callback):
    """Refuses a run whose ranks would train different runs, before the checkpoint is loaded.

    Such as with `--resume auto` where each node has its own runs folder, or with other settings, text or version on one
    node. NCCL would wait for the missing rank, or train on a mixture without a word.
    """

    def __init__(self, config: Config, data: PreparedData, step: int) -> None:
        """Step: the step at which this rank starts, 0 for a new run."""
        text = f"{data.manifest.text_fingerprint[:12]} {data.tokenizer.vocab_size}"
        self.own = {"step at the start": str(step), "text": text}
        for name, value in config.to_dict().items():
            section = value if isinstance(value, dict) else {}
            named = {f"{name}.{key}": each for key, each in section.items()} or {name: value}
            self.own |= {key: str(each) for key, each in named.items() if key not in MAY_DIFFER}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        ranks: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(ranks, {"minigpt's code": code_digest(), **self.own})
        if (why := difference(ranks)) is None:
            return
        if not trainer.is_global_zero:
            time.sleep(SECONDS_TO_EXIT)  # torchrun kills all processes as soon as one fails, and rank 0 has the message
            raise SystemExit(2)
        raise UserError(why)


def code_digest() -> str:
    """A digest of minigpt's files: a checkout changes more often than the version."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def difference(ranks: list[dict[str, str]]) -> str | None:
    """What differs between the ranks, and what to do; None if nothing does."""
    first, found = ranks[0], list[str]()
    for name in dict.fromkeys(name for each in ranks for name in each):
        other = next((rank for rank, each in enumerate(ranks) if each.get(name) != first.get(name)), None)
        if other is not None:
            found.append(f"{name} is {first.get(name)} on rank 0, {ranks[other].get(name)} on rank {other}")
    if not found:
        return None
    more = f", and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    remedy = "start every rank with the same command, text and version"
    if ranks[0]["step at the start"] not in {each["step at the start"] for each in ranks[1:]}:
        remedy = "put runs_dir on a disk that all nodes share, or start without --resume"
    return f"the ranks would train different runs: {'; '.join(found[:MOST_NAMED])}{more}: {remedy}"


class Watch:
    """A thread that ends this process if another one is gone and this one does not notice by itself.

    Rank 0 watches the processes that Lightning started from it, and they watch rank 0. Lightning's own thread would
    kill rank 0 up to five seconds later, without a word, and nothing watches rank 0. Under torchrun, torchrun watches.
    """

    def __init__(self, trainer: L.Trainer, say: Callable[[str], str]) -> None:
        """Say: completes a message such as "rank 1 was killed" with how to go on."""
        self.trainer, self.say = trainer, say
        self.processes: list[subprocess.Popen[bytes]] = []  # started from this one
        is_started = trainer.local_rank > 0 and os.environ.get(RANK_ZERO) == str(os.getppid())
        self.parent = os.getppid() if is_started else None  # rank 0, if it started this process
        self._is_over = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, this process does not outlive another. An error that follows from a loss is one line."""
        if self.parent is not None:
            self._start()
        elif self.trainer.world_size > 1:
            os.environ[RANK_ZERO] = str(os.getpid())  # for the processes that Lightning starts
        try:
            with replaced_observer(self._observe):
                yield
        except Exception as error:
            lost = None if isinstance(error, UserError) else self._loss_behind(error)
            if lost is None:
                raise
            if not self._speaks:
                raise SystemExit(2) from error
            raise UserError(self.say(lost)) from error
        finally:
            self._is_over.set()

    def wait_for_rank_zero(self) -> None:
        """In a process that rank 0 started: wait until rank 0 has printed its error, and ends this process."""
        deadline = time.monotonic() + SECONDS_TO_EXIT
        while self.parent == os.getppid() and time.monotonic() < deadline:
            time.sleep(0.1)

    @property
    def _speaks(self) -> bool:
        """Whether the message is this process's to print, of all that are left on this machine."""
        return self.trainer.local_rank == (0 if self.parent is None else 1)

    def _observe(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self.processes = processes
        self._start()

    def _lost(self) -> str | None:
        """Which process is gone, and how; None if all run or have ended well."""
        if self.parent is not None and os.getppid() != self.parent:
            return f"rank 0 (process {self.parent}) was killed"
        for rank, process in enumerate(self.processes, start=1):
            if code := process.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"rank {self.trainer.global_rank + rank} (process {process.pid}) {how}"
        return None

    def _start(self) -> None:
        threading.Thread(target=self._run, name="watch-ranks", daemon=True).start()

    def _run(self) -> None:
        while not self._is_over.wait(0.2):
            if (lost := self._lost()) is not None:
                if not self._is_over.wait(SECONDS_TO_NOTICE):
                    self._end(lost)
                return

    def _end(self, lost: str) -> None:
        """End this process and its own from this thread, as the main thread waits for the lost one in C++."""
        for process in self.processes:
            process.kill()
        if self._speaks:
            os.write(2, f"error: {self.say(lost)}\n".encode())
        os._exit(2)

    def _loss_behind(self, error: Exception) -> str | None:
        """The lost process that has caused an error; None if none was lost."""
        if self.trainer.world_size == 1 or not is_lost_connection(error):
            return None
        deadline = time.monotonic() + SECONDS_TO_NOTICE / 2
        while (self.processes or self.parent is not None) and time.monotonic() < deadline:
            if (lost := self._lost()) is not None:
                return lost
            time.sleep(0.05)
        return f"rank {self.trainer.global_rank} lost the connection to another rank, which was probably killed"


def is_lost_connection(error: BaseException) -> bool:
    """Whether the error is one of torch's communication with other processes."""
    of_torch = getattr(torch.distributed, "DistError", ())
    return isinstance(error, of_torch) or (isinstance(error, RuntimeError) and LOST.search(str(error)) is not None)
