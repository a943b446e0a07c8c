"""`trainer`: arguments of Lightning's Trainer, under Lightning's names."""

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
    "use_distributed_sampler": ((False,), "the batches are already sharded among the devices; leave it out"),
    "sync_batchnorm": ((False,), "the model has no batch norm; model.norm chooses its norm"),
    "barebones": ((False,), "a run needs checkpoints and logging; trainer.profiler=simple shows where time goes"),
}
"""Trainer arguments without a use here -> the values that change nothing, and what to use instead."""


@dataclass(frozen=True)
class TrainerConfig:
    """Arguments of Lightning's Trainer; help lines name Lightning's default where this one differs."""

    max_steps: int = 600
    """Number of optimizer steps."""
    max_time: str | None = None
    """Time limit as DD:HH:MM:SS; the learning rate schedule ends at max_time or max_steps, whichever comes first."""
    val_check_interval: int | float | None = 200
    """Validate every N micro-batches (int) or this share of the run (float), and always at the end."""
    accumulate_grad_batches: int = 1
    """Gradient accumulation: micro-batches per optimizer step."""
    gradient_clip_val: int | float | None = 1.0
    """Gradient clipping threshold, of the global norm by default; null is off."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """Clip gradients by norm (default) or by value."""
    precision: str | int | None = "auto"
    """auto is bf16-mixed on GPUs with bfloat16, else 32-true; or any of Lightning's names."""
    accelerator: str | dict[str, Any] = "auto"
    """cpu, gpu, mps, or auto for the best available."""
    devices: int | str | list[int] = "auto"
    """Number or list of devices; by default as many as torchrun or SLURM starts per node, else all available."""
    strategy: str | dict[str, Any] = "auto"
    """Distributed strategy: ddp, fsdp2 (sharded weights), any of Lightning's names, or {class_path, init_args}."""
    num_nodes: int = 1
    """Number of nodes (machines)."""
    logger: (
        Literal["wandb", "tensorboard"] | bool | dict[str, Any] | list[Literal["wandb", "tensorboard"] | dict[str, Any]]
    ) = "wandb"
    """wandb (online if logged in), tensorboard, false for local files only, {class_path, init_args}, or a list."""
    callbacks: list[dict[str, Any]] | None = None
    """More callbacks, each as {class_path, init_args}; Lightning's that conflict with a run are refused."""
    plugins: list[dict[str, Any]] | None = None
    """Plugins, each as {class_path, init_args}."""
    profiler: str | dict[str, Any] | None = None
    """simple, advanced, pytorch, or {class_path, init_args}."""
    log_every_n_steps: int | None = 10
    """Log training metrics every N steps (Lightning's default: 50)."""
    limit_train_batches: int | float | None = None
    """Not used: a run is one epoch; use max_steps, or overfit_batches to repeat a few batches."""
    limit_val_batches: int | float | None = None
    """Validate on only N batches (int) or this share of them (float); val/loss then covers that part only."""
    limit_test_batches: int | float | None = None
    """Not used: there is no test loop."""
    limit_predict_batches: int | float | None = None
    """Not used: there is no predict loop."""
    overfit_batches: int | float = 0.0
    """Overfit on N batches (int) or this share of them (float), as a sanity check; 0 is off."""
    num_sanity_val_steps: int | None = 0
    """Validation batches run before training starts (Lightning's default: 2)."""
    check_val_every_n_epoch: int | None = 1
    """Not used: a run is one epoch; use val_check_interval."""
    max_epochs: int | None = None
    """Not used: a run is one epoch; use max_steps."""
    min_epochs: int | None = None
    """Not used: a run is one epoch; use min_steps."""
    min_steps: int | None = None
    """Minimum number of optimizer steps, before early stopping or max_time may end the run."""
    fast_dev_run: int | bool = False
    """Smoke test: run N training and validation batches (true for 1); nothing is saved."""
    enable_checkpointing: bool | None = None
    """false saves no checkpoints and no weights."""
    enable_progress_bar: bool | None = None
    """false hides the progress bar."""
    enable_model_summary: bool | None = False
    """Print Lightning's table of layers (Lightning's default: true)."""
    deterministic: bool | Literal["warn"] | None = None
    """Use deterministic algorithms only (true), or warn about others (warn)."""
    benchmark: bool | None = None
    """Enable cuDNN's autotuner (torch.backends.cudnn.benchmark)."""
    inference_mode: bool = True
    """Validate under torch.inference_mode instead of torch.no_grad."""
    use_distributed_sampler: bool = False
    """Not used: batches are already sharded among devices (Lightning's default: true)."""
    detect_anomaly: bool = False
    """Enable autograd anomaly detection, which finds the operation that produced a NaN; slow."""
    barebones: bool = False
    """Not used: it disables checkpoints and logging, which a run needs."""
    sync_batchnorm: bool = False
    """Not used: there is no batch norm."""
    reload_dataloaders_every_n_epochs: int = 0
    """Not used: a run is one epoch."""
    default_root_dir: str | None = None
    """Folder for files that Lightning itself writes; the run folder by default."""
    enable_autolog_hparams: bool = True
    """Log hyperparameters at the start."""
    model_registry: str | None = None
    """Name of the model in Lightning's model registry."""

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
            # 1.0 means all batches and 1 means one batch, but Python compares them equal.
            known = any(type(value) is type(each) and value == each for each in neutral)
            require(known, f"trainer.{name}={value}: {instead}")
        require(
            self.limit_val_batches is None or self.limit_val_batches > 0,
            f"trainer.limit_val_batches={self.limit_val_batches}: a run validates at its end to save the model: "
            "give 1 or more, and a long trainer.val_check_interval",
        )
        require(
            self.min_steps is None or self.min_steps <= self.max_steps,
            f"trainer.min_steps={self.min_steps}: is above trainer.max_steps={self.max_steps}",
        )

    @property
    def loggers(self) -> list[str | dict[str, Any]]:
        """`logger` as a list."""
        named = ["wandb"] if self.logger is True else [] if self.logger is False else self.logger
        return list(named) if isinstance(named, list) else [named]

    @property
    def max_time_seconds(self) -> float | None:
        """`max_time` in seconds; None for no limit."""
        if self.max_time is None:
            return None
        days, hours, minutes, seconds = map(int, self.max_time.split(":"))
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
