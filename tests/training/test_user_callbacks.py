"""Each callback that Lightning has works in a run, or is refused in one line before anything is written."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, LambdaCallback
from lightning.pytorch.loggers.logger import DummyLogger
from small_runs import said_by_lightning, small_settings

from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import read_checkpoint
from minigpt.training.run import train
from minigpt.training.trainer import make_trainer

WORK = {
    "EarlyStopping": {"monitor": "val/loss", "stopping_threshold": 100.0, "verbose": True},
    "LearningRateMonitor": {},
    "ModelCheckpoint": {"monitor": "val/loss", "filename": "{step}", "save_last": True},
    "ModelSummary": {},
}
NEED_A_PACKAGE = {"DeviceStatsMonitor": "psutil", "RichModelSummary": "rich"}
REFUSED = {
    "BackboneFinetuning": "BaseFinetuning",
    "BaseFinetuning": "derives from it",
    "BasePredictionWriter": "sample.py",
    "BatchSizeFinder": "data.batch_size",
    "Callback": "derives from it",
    "Checkpoint": "checkpoint_every_n_steps",
    "EMAWeightAveraging": "optimizer.average_decay",
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches",
    "LambdaCallback": "derives from Callback",
    "LearningRateFinder": "optimizer.learning_rate",
    "ModelPruning": "prune the saved weights",
    "OnExceptionCheckpoint": "checkpoint_every_n_minutes",
    "ProgressBar": "trainer.enable_progress_bar",
    "RichProgressBar": "trainer.enable_progress_bar",
    "SpikeDetection": "on_non_finite",
    "StochasticWeightAveraging": "optimizer.average_decay",
    "ThroughputMonitor": "perf/tokens_per_second",
    "Timer": "trainer.max_time",
    "TQDMProgressBar": "trainer.enable_progress_bar",
    "WeightAveraging": "optimizer.average_decay",
}


def with_callbacks(tmp_path: Path, *class_paths: str, logger: Any = False, **arguments: Any) -> Config:
    """A run of four steps, without samples and maps, with callbacks by their paths."""
    return small_settings(
        tmp_path,
        trainer={
            "callbacks": [{"class_path": path, "init_args": arguments} for path in class_paths],
            "max_steps": 4,
            "val_check_interval": 2,
            "logger": logger,
        },
        attention={"enabled": False},
        sampling={"prompts": []},
    )


@pytest.fixture
def of_the_users(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a class where a recipe can name it; returns its path."""

    def put(kind: type) -> str:
        module = types.ModuleType("of_the_users")
        module.Own = kind
        kind.__module__, kind.__qualname__ = "of_the_users", "Own"
        monkeypatch.setitem(sys.modules, "of_the_users", module)
        return "of_the_users.Own"

    return put


def test_each_callback_that_lightning_has_is_decided_upon() -> None:
    """A new one in a newer Lightning fails here until it is tried: does it do its work in a run of one epoch?"""
    assert {*WORK, *NEED_A_PACKAGE, *REFUSED} == set(lightning_callbacks.__all__)


@pytest.mark.parametrize(("name", "instead"), REFUSED.items())
def test_a_callback_that_cannot_work_is_refused_in_one_line_before_anything_is_written(
    name: str, instead: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        train(with_callbacks(tmp_path, f"lightning.pytorch.callbacks.{name}"))
    assert str(refused.value).startswith(f"trainer.callbacks: class_path=lightning.pytorch.callbacks.{name}: ")
    assert instead in str(refused.value)
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob("runs/*"))


def test_the_others_do_their_work_in_one_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = with_callbacks(tmp_path, logger="tensorboard")
    given = [{"class_path": f"lightning.pytorch.callbacks.{n}", "init_args": a} for n, a in WORK.items()]
    config = Config.from_dict(config.to_dict() | {"trainer": config.to_dict()["trainer"] | {"callbacks": given}})
    with said_by_lightning() as said:
        run = train(config)

    assert read_checkpoint(run.last)["global_step"] == 2  # stopped early
    assert read_checkpoint(run.path / "model_checkpoints" / "step=2.ckpt")["global_step"] == 2
    assert (run.path / "model_checkpoints" / "last.ckpt").is_file()
    assert any("Total params" in text for text in said)
    assert any("Stopping threshold reached" in text for text in said)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert any(name.startswith("lr-") for name in scalars)


@pytest.mark.parametrize(("name", "package"), NEED_A_PACKAGE.items())
def test_what_needs_a_package_that_is_not_installed_says_so_in_one_line(
    name: str, package: str, tmp_path: Path
) -> None:
    config = with_callbacks(tmp_path, f"lightning.pytorch.callbacks.{name}", logger="tensorboard")
    if importlib.util.find_spec(package) is not None:
        train(config)
        return
    with pytest.raises(UserError, match=f"{name}.*pip install -U '?{package}") as refused:
        train(config)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("name", ["DeviceStatsMonitor", "LearningRateMonitor"])
def test_what_writes_to_a_logger_alone_needs_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trainer.logger has none: give tensorboard or wandb"):
        train(with_callbacks(tmp_path, f"lightning.pytorch.callbacks.{name}"))
    assert not list(tmp_path.glob("runs/*"))


def test_a_monitor_finds_a_logger_on_the_ranks_that_do_not_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_callbacks(tmp_path, "lightning.pytorch.callbacks.LearningRateMonitor", logger="tensorboard")
    monkeypatch.setattr("minigpt.training.trainer.is_rank_zero", lambda: False)
    (logger,) = make_trainer(config, RunFolder(tmp_path), []).loggers
    assert isinstance(logger, DummyLogger)


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_a_metric_that_is_not_logged_cannot_be_monitored(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="monitor=val_loss: there are val/loss and val/bits_per_byte"):
        train(with_callbacks(tmp_path, f"lightning.pytorch.callbacks.{name}", monitor="val_loss"))


def test_what_derives_from_a_refused_class_is_refused_and_from_a_base_class_is_not(
    tmp_path: Path, of_the_users: Any
) -> None:
    class Scheduler(GradientAccumulationScheduler):
        pass

    with pytest.raises(UserError, match=r"of_the_users.Own: .*give trainer.accumulate_grad_batches"):
        train(with_callbacks(tmp_path, of_the_users(Scheduler), scheduling={0: 2}))

    steps: list[int] = []

    class Counting(LambdaCallback):
        def __init__(self) -> None:
            super().__init__(on_train_batch_end=lambda trainer, *_: steps.append(trainer.global_step))

    train(with_callbacks(tmp_path, of_the_users(Counting)))
    assert steps == [1, 2, 3, 4]


def test_batches_that_run_out_end_the_run_in_one_line(tmp_path: Path, of_the_users: Any) -> None:
    """Without an end Lightning begins epoch after epoch without a batch, and no signal is answered."""

    class Accumulating(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.accumulate_grad_batches = 2

    with pytest.raises(
        UserError, match=r"ran out at step \d of trainer.max_steps=4: a callback changed .*; remove that callback"
    ):
        train(with_callbacks(tmp_path, of_the_users(Accumulating)))


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start"])
@pytest.mark.parametrize("error", [MisconfigurationException("not\nhere"), AttributeError("not here"), KeyError("not")])
def test_a_callback_that_fails_at_the_start_is_one_line_and_leaves_no_run(
    hook: str, error: Exception, tmp_path: Path, of_the_users: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with pytest.raises(UserError, match=r"trainer.callbacks: of_the_users.Own: .*not") as refused:
        train(with_callbacks(tmp_path, of_the_users(type("Failing", (Callback,), {hook: fail}))))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("runs/*"))


def test_a_callback_of_the_users_own_that_fails_later_keeps_its_traceback(tmp_path: Path, of_the_users: Any) -> None:
    class Failing(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        train(with_callbacks(tmp_path, of_the_users(Failing)))
    assert read_checkpoint(RunFolder(tmp_path / "runs" / "small").last)["global_step"] == 2
