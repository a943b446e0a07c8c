"""Checks trainer.callbacks: refuses those that cannot work in a run, and names what to use instead.

Some of Lightning's callbacks need several epochs, change the data loader or the learning rate, or save checkpoints. A
run here is one epoch, its batches and learning rates are functions of the step, and it saves its own checkpoints, from
which resume is exact. Callbacks that do not fit are refused before the text is prepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from minigpt.config import TrainerConfig
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.training.lightning_compat import active_objects

REFUSED = {
    "BackboneFinetuning": "the model has no backbone to freeze; derive a class from BaseFinetuning",
    "BasePredictionWriter": "a run predicts nothing; sample.py writes with a trained model",
    "BatchSizeFinder": "batches are a function of the step; give data.batch_size",
    "GradientAccumulationScheduler": "an optimizer step has the same number of micro-batches in the whole run; give "
    "trainer.accumulate_grad_batches",
    "LearningRateFinder": "the schedule sets the learning rate at each step; give optimizer.learning_rate",
    "ModelPruning": "it prunes at the end of an epoch, when the only one is over and saved; prune the saved weights",
    "OnExceptionCheckpoint": "a new run would begin with the file that it left; give checkpoint_every_n_steps or "
    "checkpoint_every_n_minutes, and --resume",
    "ProgressBar": "the run has a progress bar of its own, which shows both losses; trainer.enable_progress_bar",
    "SpikeDetection": "it cannot be resumed; give on_non_finite (finite spikes are noted in anomalies/spikes.csv)",
    "StochasticWeightAveraging": "it averages over epochs, and a run is one; give optimizer.average_decay",
    "Timer": "the learning rate would not reach its end by then; give trainer.max_time",
    "WeightAveraging": "its average is gone when samples and weights are written; give optimizer.average_decay",
}
"""Lightning's classes that are refused with their subclasses, each with the reason and what to use instead."""

REFUSED_AS_IT_IS = {
    "BaseFinetuning": "freezes nothing by itself; name a class that derives from it",
    "Callback": "does nothing by itself; name a class that derives from it",
    "Checkpoint": "saves nothing by itself; the run saves its checkpoints, see checkpoint_every_n_steps",
    "LambdaCallback": "takes functions, which a recipe cannot hold; name a class that derives from Callback",
    "ThroughputMonitor": "takes a function, which a recipe cannot hold; perf/tokens_per_second is logged anyway",
}
"""Lightning's classes that are refused themselves; subclasses are allowed."""

NEED_A_LOGGER = ("DeviceStatsMonitor", "LearningRateMonitor", "ThroughputMonitor")
"""Lightning's classes that need a logger."""

MONITORED = ("val/loss", "val/bits_per_byte")
"""Metrics that the training module logs for callbacks."""


def check_callbacks(classes: list[Any], settings: TrainerConfig) -> None:
    """Refuse callbacks that cannot work in a run, without building any; `classes` are those of settings.callbacks.

    Raises:
        UserError: a callback is refused, needs a logger, or monitors an unknown metric.
    """
    # The user's own callbacks may log what another one monitors.
    monitored = MONITORED if all(_is_lightnings(kind) for kind in classes) else None
    for kind, value in zip(classes, settings.callbacks or [], strict=True):
        # A factory function is no type.
        if isinstance(kind, type) and (why := _refusal(kind, value.get("init_args", {}), settings, monitored)):
            raise UserError(f"trainer.callbacks: class_path={value['class_path']}: {why}")


def _refusal(
    kind: type, arguments: dict[str, Any], settings: TrainerConfig, monitored: Sequence[str] | None
) -> str | None:
    def is_a(name: str) -> bool:
        return issubclass(kind, getattr(lightning_callbacks, name))

    for name, why in REFUSED.items():
        if is_a(name):
            return why
    for name, why in REFUSED_AS_IT_IS.items():
        if kind is getattr(lightning_callbacks, name):
            return why
    if not settings.loggers and any(map(is_a, NEED_A_LOGGER)):
        return "needs a logger, and trainer.logger has none: give tensorboard or wandb, or remove the callback"
    monitor = arguments.get("monitor")
    if monitored and monitor not in {None, *monitored} and issubclass(kind, EarlyStopping | ModelCheckpoint):
        return f"monitor={monitor}: there are {' and '.join(monitored)}"
    return None


def _is_lightnings(kind: Any) -> bool:
    return str(kind.__module__).startswith("lightning.")


def save_beside(callbacks: list[Callback], folder: RunFolder) -> None:
    """Give each ModelCheckpoint without a dirpath its own folder: its last.ckpt would otherwise replace the run's."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str((folder.path / "model_checkpoints").absolute())


def explained(error: Exception, callbacks: list[Callback], *, begun: bool) -> UserError | None:
    """A one-line error for a failure that a setting caused.

    Once a step was trained (`begun`), an error in the user's own class keeps its traceback: then None is returned, as
    for an error that none of the user's `callbacks` raised.
    """
    active = list(active_objects(error.__traceback__))
    by = next((each for each in callbacks if any(each is one for one in active)), None)
    what = " ".join(str(error).split())
    if by is None:
        return UserError(f"trainer: {what}") if isinstance(error, MisconfigurationException) else None
    if begun and not _is_lightnings(type(by)):
        return None
    kind = "" if isinstance(error, MisconfigurationException) else f"{type(error).__name__}: "
    return UserError(f"trainer.callbacks: {type(by).__module__}.{type(by).__qualname__}: {kind}{what}".rstrip(": "))
