"""`trainer`: arguments of Lightning's Trainer, under Lightning's names.

Arguments that mean something here have types and bounds, those without a use say what to give instead, and the others
(of type Any) are handed to Lightning as they are. All are fields: a run folder must open, and `--help` answer, without
importing Lightning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from minigpt.config.checks import PathName, PositiveInt, Rule, Section, bounds, matches, require

ONE_EPOCH = "a run is one epoch of trainer.max_steps optimizer steps"


def unused(instead: str, *neutral: object) -> Rule:
    """An argument without a use here: only None and the neutral values, which change nothing, are taken."""
    # 1.0 means all batches and 1 means one batch, but Python compares them equal.
    return Rule(lambda value: any(type(value) is type(each) and value == each for each in neutral), instead)


def _is_object(value: dict[str, Any]) -> bool:
    path, arguments = value.get("class_path"), value.get("init_args", {})
    named = isinstance(path, str) and re.fullmatch(r"\w+(\.\w+)+", path) is not None
    return named and isinstance(arguments, dict) and set(value) <= {"class_path", "init_args"}


def _starts_programs(strategy: str | dict[str, Any]) -> bool:
    how = strategy if isinstance(strategy, str) else str(strategy.get("init_args", {}).get("start_method", ""))
    return re.search("spawn|fork|notebook", how) is None


def _is_interval(every: float) -> bool:
    return every >= 1 if isinstance(every, int) else 0 < every <= 1


Object = Annotated[
    dict[str, Any], Rule(_is_object, "an object is {{class_path: module.Class, init_args: {{name: value}}}}")
]
Strategy = Annotated[
    str | Object,
    Rule(
        _starts_programs,
        "a run's processes are started anew: use ddp, with minigpt train in a terminal; in a notebook, one device",
    ),
]
Dashboard = Literal["wandb", "tensorboard"]
Interval = Annotated[int | float, Rule(_is_interval, "a whole number of batches from 1, or a share in (0, 1]")]
Duration = Annotated[
    str,
    matches(r"\d+:\d\d:\d\d:\d\d", "must look like 00:00:03:00 (days:hours:minutes:seconds)"),
    matches(r".*[1-9].*", "must be above zero"),
]
DeviceCount = Annotated[int, Rule(lambda n: n >= 1 or n == -1, "must be at least 1, or -1 for all there are")]
ValBatches = Annotated[
    int | float,
    bounds(ge=0),
    bounds(
        gt=0,
        text="a run validates at its end to save the model: give 1 or more, and a long trainer.val_check_interval",
    ),
]
Overfit = Annotated[
    int | float,
    bounds(ge=0),
    Rule(lambda n: isinstance(n, int) or n <= 1, "a whole number of batches, or a share of at most 1.0"),
]
NoLoop = Annotated[
    int | float | None, unused("there is no such loop; trainer.limit_val_batches shortens validation", 1.0)
]


def as_max_time(seconds: float) -> str:
    """Whole seconds in the format of `max_time`, DD:HH:MM:SS; the inverse of `max_time_seconds`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 1440:02}:{minutes // 60 % 24:02}:{minutes % 60:02}:{rest:02}"


@dataclass(frozen=True)
class TrainerConfig(Section):
    """Arguments of Lightning's Trainer; help lines name Lightning's default where this one differs."""

    SECTION = "trainer"

    max_steps: PositiveInt = 600
    """Number of optimizer steps."""
    max_time: Duration | None = None
    """Time limit as DD:HH:MM:SS; the learning rate schedule ends at max_time or max_steps, whichever comes first."""
    val_check_interval: Interval | None = 200
    """Validate every N micro-batches (int) or this share of the run (float), and always at the end."""
    accumulate_grad_batches: PositiveInt = 1
    """Gradient accumulation: micro-batches per optimizer step."""
    gradient_clip_val: Annotated[int | float, bounds(ge=0)] | None = 1.0
    """Gradient clipping threshold, of the global norm by default; null is off."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """Clip gradients by norm (default) or by value."""
    precision: str | int | None = "auto"
    """auto is bf16-mixed on GPUs with bfloat16, else 32-true; or any of Lightning's names."""
    accelerator: str | Object = "auto"
    """cpu, gpu, mps, or auto for the best available."""
    devices: DeviceCount | str | list[int] = "auto"
    """Number or list of devices; by default as many as torchrun or SLURM starts per node, else all available."""
    strategy: Strategy = "auto"
    """Distributed strategy: ddp, fsdp2 (sharded weights), any of Lightning's names, or {class_path, init_args}."""
    num_nodes: PositiveInt = 1
    """Number of nodes (machines)."""
    logger: Dashboard | bool | Object | list[Dashboard | Object] = "wandb"
    """wandb (online if logged in), tensorboard, false for local files only, {class_path, init_args}, or a list."""
    callbacks: list[Object] | None = None
    """More callbacks, each as {class_path, init_args}; Lightning's that conflict with a run are refused."""
    plugins: list[Object] | None = None
    """Plugins, each as {class_path, init_args}."""
    profiler: str | Object | None = None
    """simple, advanced, pytorch, or {class_path, init_args}."""
    log_every_n_steps: PositiveInt | None = 10
    """Log training metrics every N steps (Lightning's default: 50)."""
    limit_val_batches: ValBatches | None = None
    """Validate on only N batches (int) or this share of them (float); val/loss then covers that part only."""
    overfit_batches: Overfit = 0.0
    """Overfit on N batches (int) or this share of them (float), as a sanity check; 0 is off."""
    num_sanity_val_steps: Annotated[int, bounds(ge=-1)] | None = 0
    """Validation batches run before training starts (Lightning's default: 2)."""
    min_steps: int | None = None
    """Minimum number of optimizer steps, before early stopping or max_time may end the run."""
    fast_dev_run: int | bool = False
    """Smoke test: run N training and validation batches (true for 1); nothing is saved."""
    enable_checkpointing: bool | None = None
    """false saves no checkpoints and no weights."""
    enable_progress_bar: bool | None = None
    """false hides the progress bar."""
    default_root_dir: PathName | None = None
    """Folder for files that Lightning itself writes; the run folder by default."""
    enable_model_summary: Any = False
    """Print Lightning's table of layers (Lightning's default: true)."""
    deterministic: Any = None
    """Use deterministic algorithms only (true), or warn about others (warn)."""
    benchmark: Any = None
    """Enable cuDNN's autotuner (torch.backends.cudnn.benchmark)."""
    inference_mode: Any = True
    """Validate under torch.inference_mode instead of torch.no_grad."""
    detect_anomaly: Any = False
    """Enable autograd anomaly detection, which finds the operation that produced a NaN; slow."""
    enable_autolog_hparams: Any = True
    """Log hyperparameters at the start."""
    model_registry: Any = None
    """Name of the model in Lightning's model registry."""
    limit_train_batches: Annotated[
        int | float | None,
        bounds(ge=0),
        unused(f"{ONE_EPOCH}: give fewer of them, or trainer.overfit_batches to repeat a few batches", 1.0),
    ] = None
    """Not used: a run is one epoch; use max_steps, or overfit_batches to repeat a few batches."""
    limit_test_batches: NoLoop = None
    """Not used: there is no test loop."""
    limit_predict_batches: NoLoop = None
    """Not used: there is no predict loop."""
    check_val_every_n_epoch: Annotated[int | None, unused(f"{ONE_EPOCH}: give trainer.val_check_interval", 1)] = 1
    """Not used: a run is one epoch; use val_check_interval."""
    max_epochs: Annotated[int | None, unused(f"{ONE_EPOCH}: give trainer.max_steps")] = None
    """Not used: a run is one epoch; use max_steps."""
    min_epochs: Annotated[int | None, unused(f"{ONE_EPOCH}: give trainer.min_steps")] = None
    """Not used: a run is one epoch; use min_steps."""
    reload_dataloaders_every_n_epochs: Annotated[
        int, unused(f"{ONE_EPOCH}, and its batches are a function of the step", 0)
    ] = 0
    """Not used: a run is one epoch."""
    use_distributed_sampler: Annotated[
        bool, unused("the batches are already sharded among the devices; leave it out", False)
    ] = False
    """Not used: batches are already sharded among devices (Lightning's default: true)."""
    sync_batchnorm: Annotated[bool, unused("the model has no batch norm; model.norm chooses its norm", False)] = False
    """Not used: there is no batch norm."""
    barebones: Annotated[
        bool, unused("a run needs checkpoints and logging; trainer.profiler=simple shows where time goes", False)
    ] = False
    """Not used: it disables checkpoints and logging, which a run needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
