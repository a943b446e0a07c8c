"""Every touch of what Lightning does not promise, each with its reason.

The upper bound of `lightning` in pyproject.toml covers the releases that tests/training/test_lightning_compat.py has
passed with; that file has a test for each function here.
"""

from __future__ import annotations

import contextlib
import copy
import subprocess
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm as Tqdm  # its class of bars, to write above them
from lightning.pytorch.loggers.logger import DummyLogger as DummyLogger  # what it gives to ranks that do not log
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only

# Processes


def is_rank_zero() -> bool:
    """Whether this is rank 0, according to the launcher's environment: before a Trainer exists, nothing else says."""
    return getattr(rank_zero_only, "rank", 0) == 0


def started_processes(trainer: L.Trainer) -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning started from this one for the other ranks: it does not end them if rank 0 fails."""
    return list(getattr(trainer.strategy.launcher, "procs", ()))


@contextlib.contextmanager
def replaced_observer(observe: Callable[[list[subprocess.Popen[bytes]]], None]) -> Iterator[None]:
    """Within the context, `observe` gets the processes that Lightning starts.

    Lightning's own observer kills this process with SIGKILL, up to five seconds after another has ended and without a
    word.
    """
    before = subprocess_script._launch_process_observer  # type: ignore[attr-defined]
    subprocess_script._launch_process_observer = observe  # type: ignore[attr-defined, assignment]
    try:
        yield
    finally:
        subprocess_script._launch_process_observer = before  # type: ignore[attr-defined]


def leave_out_sigterm_broadcast(trainer: L.Trainer) -> None:
    """Spare a collective and a wait for the device in each micro-batch: Lightning asks rank 0 for its SIGTERM there."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def spare_ddp(strategy: Strategy) -> None:
    """Let DDP's gradients be views of what it sends, and our constant buffers stay; unless the setting says otherwise.

    That saves a copy of the gradients, and a broadcast a step. Set afterwards, since Lightning chooses the strategy for
    "auto", and only it knows the devices.
    """
    if type(strategy) is DDPStrategy:
        strategy._ddp_kwargs = {"gradient_as_bucket_view": True, "broadcast_buffers": False} | strategy._ddp_kwargs


def set_data_parallel_size(strategy: ModelParallelStrategy) -> None:
    """Use all devices of all nodes as one mesh: the constructor takes a number, which only the started run knows."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def sharded_checkpoint_setting(strategy: Strategy) -> str | None:
    """The argument of the strategy that makes it write a folder of shards; None if it writes one file."""
    if getattr(strategy, "_state_dict_type", None) == "sharded":
        return "state_dict_type"
    if getattr(strategy, "_save_distributed_checkpoint", False):
        return "save_distributed_checkpoint"
    return None


# One optimizer step


def gradient_scaler(trainer: L.Trainer) -> Any:
    """The loss scaler against underflow in 16-mixed; None in other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def clips_as_torch_does(trainer: L.Trainer) -> bool:
    """Whether Lightning would call torch's clip_grad_norm_ on plain gradients; then a norm that is known can be reused.

    False under a gradient scaler (unscale first), Lightning's FSDP (no rank has the total norm) and DeepSpeed (it clips
    itself).
    """
    plugin = type(trainer.precision_plugin)
    by_lightning = plugin.clip_gradients in {Precision.clip_gradients, MixedPrecision.clip_gradients}
    by_norm = plugin.clip_grad_by_norm is Precision.clip_grad_by_norm
    return by_lightning and by_norm and gradient_scaler(trainer) is None


def set_logged_step(trainer: L.Trainer) -> None:
    """Let Lightning's callbacks log by the step: their counter is one behind after a resume between validations."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def is_between_steps(trainer: L.Trainer) -> bool:
    """Whether the last micro-batch ended an optimizer step, rather than one among accumulated ones."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


# Validation and resume


def validates_next(trainer: L.Trainer) -> bool:
    """Whether a validation follows this training batch: a checkpoint then waits for it."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def validate(trainer: L.Trainer) -> None:
    """Run a validation before the first training batch, as the resumed run was stopped before it."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True


def validation_counters(trainer: L.Trainer) -> dict[str, Any]:
    """A copy of the counters of validation batches."""
    return copy.deepcopy(trainer.fit_loop.epoch_loop.val_loop.batch_progress.state_dict())


def set_validation_counters(trainer: L.Trainer, counters: dict[str, Any]) -> None:
    """Undo a validation that a stop signal has ended: else a resumed run would count its batches as done."""
    trainer.fit_loop.epoch_loop.val_loop.batch_progress.load_state_dict(counters)


def set_batches_done(checkpoint: dict[str, Any], n_batches: int) -> None:
    """Make Lightning resume after this device's first `n_batches` micro-batches.

    Its own count is wrong if the number of devices or the accumulation changed. And a finished run that gets more steps
    must reopen its only epoch.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, n_batches))
    progress["is_last_batch"] = False


# What the user sees


def open_bars(bar: TQDMProgressBar) -> list[Tqdm]:
    """The bars that are on the screen: the public properties raise where there is none."""
    return [each for each in (bar._val_progress_bar, bar._train_progress_bar) if each is not None]


def active_objects(trace: TracebackType | None) -> Iterator[Any]:
    """What the functions in a traceback were methods of, and which callback Lightning's loop over callbacks was at."""
    while trace is not None:
        for name in ("self", "callback"):
            if name in trace.tb_frame.f_locals:
                yield trace.tb_frame.f_locals[name]
        trace = trace.tb_next
