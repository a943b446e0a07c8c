"""Lightning's Trainer from the `trainer` section of the config."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator

from minigpt.config import Config, TrainerConfig
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.training.checkpoints import AtomicCheckpointIO, refuse_shards
from minigpt.training.class_path import instantiate
from minigpt.training.dashboards import make_loggers
from minigpt.training.distributed import FSDP2
from minigpt.training.launchers import ONE_DEVICE, check_notebook, check_processes, devices_of, find_launcher
from minigpt.training.lightning_compat import DummyLogger, is_rank_zero, spare_ddp
from minigpt.training.progress import ProgressBar
from minigpt.training.stopping import MaxTime
from minigpt.training.user_callbacks import save_beside


def quieten() -> None:
    """Silence Lightning's advice against settings that are deliberate here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for asked_for in ("callbacks", "profilers"):  # the user configured these for their printed tables
        logging.getLogger(f"lightning.pytorch.{asked_for}").setLevel(logging.INFO)
    for pattern in (
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # a resume prints its changes itself
        ".*treespec.*",
        ".*`isinstance\\(.*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", pattern)


def make_trainer(config: Config, folder: RunFolder, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer from the config.

    Raises:
        UserError: Lightning refuses a setting, or a class_path cannot be built.
    """
    given = {f.name: getattr(config.trainer, f.name) for f in dataclasses.fields(TrainerConfig)}
    settings = {name: instantiate(value) for name, value in given.items() if name != "logger"}
    users_callbacks = settings["callbacks"] or []
    for made, value in zip(users_callbacks, config.trainer.callbacks or [], strict=True):
        if not isinstance(made, L.Callback):
            raise UserError(f"trainer.callbacks: class_path={value['class_path']}: is not a Lightning Callback")
    save_beside(users_callbacks, folder)
    n_batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    interval = settings["val_check_interval"]
    launcher = find_launcher(settings["plugins"] or [])
    if launcher is not None:
        settings["devices"] = devices_of(launcher, settings["devices"], settings["num_nodes"])
    settings |= {
        "callbacks": [*users_callbacks, *callbacks, *([MaxTime(settings["max_time"])] if settings["max_time"] else [])],
        "max_time": None,  # Lightning's own timer
        "plugins": [AtomicCheckpointIO(), *(settings["plugins"] or [])],
        "strategy": FSDP2() if settings["strategy"] == "fsdp2" else settings["strategy"],
        "precision": best_precision(settings["accelerator"])
        if settings["precision"] == "auto"
        else settings["precision"],
        "default_root_dir": settings["default_root_dir"] or folder.path,
        # Lightning refuses an interval beyond the last batch; here it means one validation, at the end.
        "val_check_interval": min(interval, n_batches) if isinstance(interval, int) else interval,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "overfit_batches": 0.0,  # the loaders repeat the batches, so that a run stays one epoch
        "max_epochs": 1,  # else, if the batches run out, Lightning loops over empty epochs for ever
        "min_epochs": 0,  # else min_steps makes Lightning finish an epoch, which is the whole run
    }
    settings["logger"] = False
    if config.trainer.loggers and not config.trainer.fast_dev_run:
        # Only rank 0 logs, but Lightning's monitors require a logger on every rank.
        settings["logger"] = (make_loggers(config, folder) if is_rank_zero() else [DummyLogger()]) or False
    try:
        trainer = L.Trainer(**settings)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        if "interactive environment" in str(error):  # Lightning recommends to fork
            raise UserError(f"trainer.devices={given['devices']}: {ONE_DEVICE}") from error
        raise UserError(f"{_culprits(given, str(error))}: {' '.join(str(error).split())}") from error
    if launcher is not None:
        check_processes(trainer, launcher)
    _check_precision(trainer)
    check_notebook(trainer, given["devices"])
    refuse_shards(trainer)
    spare_ddp(trainer.strategy)
    return trainer


def _check_precision(trainer: L.Trainer) -> None:
    precision: str = trainer.precision
    if precision == "64-true" and trainer.strategy.root_device.type == "mps":
        raise UserError("trainer.precision=64-true: Apple GPUs have no float64; use 32-true or trainer.accelerator=cpu")
    if precision in {"16-true", "transformer-engine-float16"}:
        raise UserError(
            f"trainer.precision={precision}: float16 rounds the optimizer's small numbers to 0, and the loss grows "
            "or becomes NaN; use 16-mixed, or bf16-true"
        )


def slow_precision(trainer: L.Trainer) -> str | None:
    """Advice on a precision that the run's device emulates, so that it is slower than 32-true; None for others."""
    precision, kind = str(trainer.precision), trainer.strategy.root_device.type
    if kind == "cpu" and precision.startswith(("16-", "bf16-")):
        return (
            f"trainer.precision={precision}: most CPUs emulate it, slower than 32-true; `minigpt doctor` compares them"
        )
    if kind == "cuda" and precision.startswith("bf16-") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"trainer.precision={precision}: this GPU emulates bfloat16; 16-mixed and 32-true are faster"
    return None


def _culprits(given: dict[str, Any], complaint: str) -> str:
    """The settings that an error of Lightning names; if none, all device settings that differ from the defaults."""
    about = ("accelerator", "devices", "strategy", "precision", "num_nodes", "profiler", "plugins", "callbacks")
    defaults = dataclasses.asdict(TrainerConfig())
    changed = {name: value for name, value in given.items() if value != defaults[name]}
    named = [name for name, value in changed.items() if name in complaint.lower() or f"'{value}'" in complaint]
    shown = named or [name for name in about if name in changed]
    return ", ".join(f"trainer.{name}={changed[name]}" for name in shown) or "trainer"


def best_precision(accelerator: object) -> str:
    """bf16-mixed on a GPU with native bfloat16, else 32-true: CPUs without bfloat16 units emulate it slowly."""
    wants_cuda = accelerator in ("auto", "gpu", "cuda") or isinstance(accelerator, CUDAAccelerator)
    has_cuda = wants_cuda and torch.cuda.is_available()
    return "bf16-mixed" if has_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
