"""`trainer`: Lightning's Trainer, by Lightning's own names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from minigpt.config.checks import is_object, require, require_at_least, require_finite, require_types, take_paths

_ONE_EPOCH = "a run is one epoch of trainer.max_steps optimizer steps"


_WITHOUT_USE: dict[str, tuple[tuple[Any, ...], str]] = {
    "limit_train_batches": (
        (None, 1.0),
        f"{_ONE_EPOCH}: give fewer of them, or trainer.overfit_batches to repeat a few batches",
    ),
    "limit_test_batches": ((None, 1.0), "there is no test loop; trainer.limit_val_batches shortens validation"),
    "limit_predict_batches": ((None, 1.0), "there is no predict loop; trainer.limit_val_batches shortens validation"),
    "check_val_every_n_epoch": ((1, None), f"{_ONE_EPOCH}: give trainer.val_check_interval"),
    "max_epochs": ((None,), f"{_ONE_EPOCH}: give trainer.max_steps"),
    "min_epochs": ((None,), f"{_ONE_EPOCH}: give trainer.min_steps"),
    "reload_dataloaders_every_n_epochs": ((0,), f"{_ONE_EPOCH}, and its batches are a function of the step"),
    "use_distributed_sampler": ((False,), "the batches are divided among the devices already"),
    "sync_batchnorm": ((False,), "the model has no batch norm; model.norm names its own"),
    "barebones": ((False,), "it switches off what a run is made of; trainer.profiler=simple shows where time goes"),
}
"""Arguments of Lightning's Trainer without a use here -> the values that change nothing, and what to say to others."""


@dataclass(frozen=True)
class TrainerConfig:
    """Lightning's Trainer, by Lightning's own names; the defaults that differ from Lightning's say so."""

    max_steps: int = 600
    """Number of optimizer steps."""
    max_time: str | None = None
    """Stop after this time, as DD:HH:MM:SS; the learning rate reaches its end by then, or at max_steps if sooner."""
    val_check_interval: int | float | None = 200
    """Validate every so many micro-batches (int) or share of the run (float); and always at the end."""
    accumulate_grad_batches: int = 1
    """Micro-batches per optimizer step."""
    gradient_clip_val: int | float | None = 1.0
    """Clip the gradient's norm to this value."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """Clip by norm (default) or by value."""
    precision: str | int | None = "auto"
    """auto is bf16-mixed where the GPU has bfloat16, else 32-true; or any of Lightning's own names."""
    accelerator: str | dict[str, Any] = "auto"
    """cpu, gpu, mps, or auto for the best one there."""
    devices: int | str | list[int] = "auto"
    """How many devices, or which ones; by default as many as torchrun or SLURM starts on a node, else all there are."""
    strategy: str | dict[str, Any] = "auto"
    """How several devices work together: ddp, fsdp2 (shares of weights), Lightning's, or {class_path, init_args}."""
    num_nodes: int = 1
    """Number of machines."""
    logger: (
        Literal["wandb", "tensorboard"] | bool | dict[str, Any] | list[Literal["wandb", "tensorboard"] | dict[str, Any]]
    ) = "wandb"
    """wandb (online if logged in), tensorboard, false for files alone, {class_path, init_args}, or a list of those."""
    callbacks: list[dict[str, Any]] | None = None
    """More callbacks, each as {class_path, init_args}; those of Lightning's that do not fit a run here are refused."""
    plugins: list[dict[str, Any]] | None = None
    """Plugins, each as {class_path, init_args}."""
    profiler: str | dict[str, Any] | None = None
    """simple, advanced, pytorch, or {class_path, init_args}."""
    log_every_n_steps: int | None = 10
    """Write training metrics every so many steps."""
    limit_train_batches: int | float | None = None
    """Lightning's; a run here is one epoch, so give max_steps, or overfit_batches to repeat a few batches."""
    limit_val_batches: int | float | None = None
    """Validate on this many (int) or this share (float) of the val batches: then val/loss is not that of the whole."""
    limit_test_batches: int | float | None = None
    """Lightning's; there is no test loop here."""
    limit_predict_batches: int | float | None = None
    """Lightning's; there is no predict loop here."""
    overfit_batches: int | float = 0.0
    """Train and validate on this many batches again and again: a check that learning works."""
    num_sanity_val_steps: int | None = 0
    """Validation batches before training starts; Lightning's own default is 2."""
    check_val_every_n_epoch: int | None = 1
    """Lightning's; a run here is one epoch, so give val_check_interval."""
    max_epochs: int | None = None
    """Lightning's; a run here is one epoch, so give max_steps."""
    min_epochs: int | None = None
    """Lightning's; a run here is one epoch, so give min_steps."""
    min_steps: int | None = None
    """Do not stop before this step."""
    fast_dev_run: int | bool = False
    """Run this many batches of everything, as a check; nothing is saved."""
    enable_checkpointing: bool | None = None
    """false writes no checkpoint and no weights."""
    enable_progress_bar: bool | None = None
    """false for no progress bar."""
    enable_model_summary: bool | None = False
    """Lightning's table of layers; Lightning's own default is true."""
    deterministic: bool | Literal["warn"] | None = None
    """Use only deterministic kernels, or warn about others."""
    benchmark: bool | None = None
    """cuDNN's autotuner."""
    inference_mode: bool = True
    """Validate under torch.inference_mode rather than torch.no_grad."""
    use_distributed_sampler: bool = False
    """Batches are already divided among devices here; Lightning's own default is true."""
    detect_anomaly: bool = False
    """Find the operation that made a NaN; slow."""
    barebones: bool = False
    """Lightning's; it switches off what a run here is made of."""
    sync_batchnorm: bool = False
    """Lightning's; there is no batch norm here."""
    reload_dataloaders_every_n_epochs: int = 0
    """Lightning's; a run here is one epoch."""
    default_root_dir: str | None = None
    """Folder for what Lightning itself writes; the run folder when not given."""
    enable_autolog_hparams: bool = True
    """Log hyperparameters at the start."""
    model_registry: str | None = None
    """Lightning's model registry."""

    def __post_init__(self) -> None:
        take_paths(self, "default_root_dir")
        require_types("trainer", self)
        require_finite("trainer", self)
        require_at_least("trainer", self, 1, "max_steps", "accumulate_grad_batches", "log_every_n_steps", "num_nodes")
        require_at_least("trainer", self, 0, "gradient_clip_val", "overfit_batches")
        require_at_least("trainer", self, 0, "limit_train_batches", "limit_val_batches")
        require_at_least("trainer", self, -1, "num_sanity_val_steps")
        require(
            isinstance(self.overfit_batches, int) or self.overfit_batches <= 1,
            f"trainer.overfit_batches={self.overfit_batches}: a whole number of batches, or a share of at most 1.0",
        )
        interval = self.val_check_interval
        require(
            interval is None or (isinstance(interval, int) and interval >= 1) or 0 < interval <= 1,
            f"trainer.val_check_interval={interval}: a whole number of batches from 1, or a share in (0, 1]",
        )
        require(
            self.max_time is None or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time) is not None,
            f"trainer.max_time={self.max_time}: must look like 00:00:03:00 (days:hours:minutes:seconds)",
        )
        require(self.max_time_seconds != 0, f"trainer.max_time={self.max_time}: must be above zero")
        require(
            not isinstance(self.devices, int) or self.devices >= 1 or self.devices == -1,
            f"trainer.devices={self.devices}: must be at least 1, or -1 for all there are",
        )
        for name in ("accelerator", "strategy", "logger", "profiler", "callbacks", "plugins"):
            value = getattr(self, name)
            for each in value if isinstance(value, list) else [value]:
                require(
                    not isinstance(each, dict) or is_object(each),
                    f"trainer.{name}={each}: an object is {{class_path: module.Class, init_args: {{name: value}}}}",
                )
        for name, (neutral, instead) in _WITHOUT_USE.items():
            value = getattr(self, name)
            # 1.0 is all of the batches and 1 is one of them, which Python takes for equal.
            known = any(type(value) is type(each) and value == each for each in neutral)
            require(known, f"trainer.{name}={value}: {instead}")
        require(
            self.limit_val_batches is None or self.limit_val_batches > 0,
            f"trainer.limit_val_batches={self.limit_val_batches}: a run validates at its end, where it saves the "
            "model: give 1 or more, and a long trainer.val_check_interval",
        )
        require(
            self.min_steps is None or self.min_steps <= self.max_steps,
            f"trainer.min_steps={self.min_steps}: is above trainer.max_steps={self.max_steps}",
        )

    @property
    def loggers(self) -> list[str | dict[str, Any]]:
        """What `logger` asks for, one by one."""
        named = ["wandb"] if self.logger is True else [] if self.logger is False else self.logger
        return list(named) if isinstance(named, list) else [named]

    @property
    def max_time_seconds(self) -> float | None:
        """max_time in seconds, None when there is no limit."""
        if self.max_time is None:
            return None
        days, hours, minutes, seconds = map(int, self.max_time.split(":"))
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
