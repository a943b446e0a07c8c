"""Stop signals (SIGINT, SIGTERM, SIGHUP, SIGUSR1): all ranks stop after the same step; SLURM requeues the job."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from minigpt.signals import SIGNALS, exit_by_signal, handle, handled_by
from minigpt.training.lightning_compat import leave_out_sigterm_broadcast, started_processes

SECONDS_TO_EXIT = 10
"""How long a process may take to exit once the run is over, before it is killed."""


class StopSignals:
    """Before training, a signal ends the process; during training, it is stored in `received`.

    `Checkpoints` reads it between steps, saves, and ends the run. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self._is_listening = False
        self._trainer: L.Trainer | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Handle the stop signals inside the context."""
        with handled_by(self._on_signal):
            self._is_listening = True
            try:
                yield self
            finally:
                self._is_listening, self._trainer = False, None

    def keep_for(self, trainer: L.Trainer) -> None:
        """From now on store signals instead of ending the process.

        To be called again after Lightning has installed its own handlers, which would communicate with the other ranks
        in the middle of a step.
        """
        self._trainer = trainer
        if self._is_listening:
            handle(self._on_signal)
            leave_out_sigterm_broadcast(trainer)  # its handler of SIGTERM is replaced

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            self._end_at_once()
        self.received = self.received or number
        if self._trainer is None:
            exit_by_signal(number, frame)

    def _end_at_once(self) -> None:
        if "ipykernel" in sys.modules or hasattr(sys, "ps1"):  # do not kill a notebook's kernel or a Python prompt
            raise KeyboardInterrupt
        for process in () if self._trainer is None else started_processes(self._trainer):
            process.kill()
        os.write(2, b"\nstopped at once\n")
        os._exit(128 + signal.SIGINT)


class MaxTime(Timer):
    """Ends the run by rank 0's clock, as the module read it in the last step.

    Lightning's Timer broadcasts that clock after each micro-batch.
    """

    @property
    def state_key(self) -> str:
        return "Timer"  # as in checkpoints of version 0.1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        trainer.should_stop = trainer.should_stop or pl_module.share_of_time >= 1


def requeue() -> str | None:
    """Requeue this SLURM job, the usual reaction to SIGUSR1 before a time limit (`#SBATCH --signal=USR1@120`).

    Returns:
        A message for the user; None outside a SLURM job.
    """
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "")
    if array is not None:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return None
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM did not requeue the job ({' '.join(command)}: {error})"
    if done.returncode:
        return f"SLURM did not requeue the job ({' '.join(command)}: {done.stderr.strip()})"
    return f"SLURM has requeued job {job}"


def leave_stopping_to_the_main_process(worker: int) -> None:
    """In a DataLoader worker: ignore stop signals, so that the main process can finish its step.

    A scheduler and Ctrl-C signal all processes; if the workers died, the step would fail before the checkpoint is
    saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The unhandled SIGALRM ends the worker after 60 s, in case the main process does not.
    handle(lambda *_: signal.setitimer(signal.ITIMER_REAL, 60), set(SIGNALS) - {signal.SIGINT})
