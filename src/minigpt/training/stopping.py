"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 -> a stop that all processes of a run make behind the same step."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType

import lightning as L

from minigpt.signals import SIGNALS, exit_by_signal, handle, handled_by
from minigpt.training.processes import started_by

SECONDS_TO_EXIT = 10
"""What a process has for ending by itself, when the run of all is over."""


class StopSignals:
    """Before training a signal ends the process, while training it is kept.

    `Checkpoints` asks for it between steps, saves, and ends the run. A second Ctrl-C does not wait for that.
    """

    def __init__(self) -> None:
        self.received = 0
        self._is_listening = False
        self._trainer: L.Trainer | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Meanwhile signals come here."""
        with handled_by(self._on_signal):
            self._is_listening = True
            try:
                yield self
            finally:
                self._is_listening, self._trainer = False, None

    def keep_for(self, trainer: L.Trainer) -> None:
        """From now on a signal waits until it is asked for. Called anew where Lightning has put handlers of its own,
        which talk to the other processes in the middle of whatever these do."""
        self._trainer = trainer
        if self._is_listening:
            handle(self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            self._end_at_once()
        self.received = self.received or number
        if self._trainer is None:
            exit_by_signal(number, frame)

    def _end_at_once(self) -> None:
        if "ipykernel" in sys.modules:  # a notebook is not ours to end
            raise KeyboardInterrupt
        for process in () if self._trainer is None else started_by(self._trainer):
            process.kill()
        os.write(2, b"\nstopped at once\n")
        os._exit(128 + signal.SIGINT)


def requeue() -> str | None:
    """Let SLURM run this job again, which is what SIGUSR1 asks for there (`#SBATCH --signal=USR1@120`).

    Returns:
        What to tell the user; None where the job is not SLURM's.
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
        return f"SLURM did not take the job again ({' '.join(command)}: {error})"
    if done.returncode:
        return f"SLURM did not take the job again ({' '.join(command)}: {done.stderr.strip()})"
    return f"SLURM will run job {job} again"


def leave_stopping_to_the_main_process(worker: int) -> None:
    """In a loader's worker: finish what the step needs that the main process still makes.

    A scheduler, and Ctrl-C in a terminal, signals all processes there are; without workers, that step would fail.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGALRM, which nobody handles, ends the worker, should the main process not.
    handle(lambda *_: signal.setitimer(signal.ITIMER_REAL, 60), set(SIGNALS) - {signal.SIGINT})
