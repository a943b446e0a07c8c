"""Each thing of Lightning's that it does not promise still works as minigpt uses it: one test a touch."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, FSDPPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from minigpt.training import lightning_compat as compat


class Tiny(L.LightningModule):
    """Eight training batches of two numbers, and two of validation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Record(L.Callback):
    """Keeps what is found before and after each batch and at each validation."""

    def __init__(self, after_batch: Any = lambda trainer: None) -> None:
        self.after_batch, self.found, self.events = after_batch, list[Any](), list[str]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.events.append(f"batch {batch_idx}")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.found.append(self.after_batch(trainer))

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        self.events.append("validation")


def fit(*callbacks: L.Callback, ckpt_path: Path | None = None, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = L.Trainer(callbacks=list(callbacks), **(defaults | settings))
    trainer.fit(Tiny(), DataLoader(torch.ones(8, 2)), DataLoader(torch.ones(2, 2)), ckpt_path=ckpt_path)
    return trainer


def on_two() -> L.Trainer:
    """A trainer that would start another process."""
    return L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)


def test_the_rank_is_known_before_there_is_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_zero_only.rank == 0
    assert compat.is_rank_zero()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert not compat.is_rank_zero()


def test_the_launcher_keeps_the_processes_that_it_started() -> None:
    trainer = on_two()
    assert trainer.strategy.launcher.procs == []
    trainer.strategy.launcher.procs.append("a process")
    assert compat.started_processes(trainer) == ["a process"]
    assert compat.started_processes(L.Trainer(accelerator="cpu", devices=1, logger=False)) == []


def test_the_processes_that_lightning_starts_are_given_to_another_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seen, before = on_two(), list[Any](), subprocess_script._launch_process_observer
    launcher = trainer.strategy.launcher
    monkeypatch.setattr(launcher, "_call_children_scripts", lambda: launcher.procs.append("a process"))
    with compat.replaced_observer(seen.append):
        launcher.launch(lambda: None)
    assert seen == [["a process"]]
    assert subprocess_script._launch_process_observer is before


def test_lightning_broadcasts_no_sigterm_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[str]()
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_, **__: found.append("broadcast"))
    trainer = on_two()
    loop = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor()
    compat.leave_out_sigterm_broadcast(trainer)
    loop._broadcast_sigterm_tensor()
    assert found == ["broadcast"]
    assert "_broadcast_sigterm_tensor()" in inspect.getsource(loop.advance), "what the loop calls"


def test_gradients_of_ddp_are_views_unless_the_setting_says_otherwise() -> None:
    for strategy, expected in (("ddp", True), (DDPStrategy(gradient_as_bucket_view=False), False)):
        trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
        compat.spare_ddp(trainer.strategy)
        wrapped = trainer.strategy._ddp_kwargs
        assert wrapped["gradient_as_bucket_view"] is expected


def test_the_size_of_the_mesh_can_be_set_once_devices_are_known() -> None:
    strategy = ModelParallelStrategy(tensor_parallel_size=1)
    strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * 3, 2
    assert strategy._data_parallel_size == "auto"
    compat.set_data_parallel_size(strategy)
    assert strategy._data_parallel_size == 6


@pytest.mark.parametrize(
    ("strategy", "setting"),
    [
        (FSDPStrategy(state_dict_type="sharded"), "state_dict_type"),
        (FSDPStrategy(state_dict_type="full"), None),
        (ModelParallelStrategy(save_distributed_checkpoint=True), "save_distributed_checkpoint"),
        (ModelParallelStrategy(save_distributed_checkpoint=False), None),
    ],
)
def test_strategies_say_whether_they_write_shards(strategy: Any, setting: str | None) -> None:
    assert compat.sharded_checkpoint_setting(strategy) == setting


@pytest.mark.parametrize(
    ("plugin", "scales", "clips"),
    [
        (Precision(), False, True),
        (MixedPrecision("bf16-mixed", "cpu"), False, True),
        (MixedPrecision("16-mixed", "cpu"), True, False),
        (FSDPPrecision("32-true"), False, False),
        (object.__new__(DeepSpeedPrecision), False, False),  # which is made only where DeepSpeed is installed
    ],
    ids=lambda value: type(value).__name__,
)
def test_precisions_say_whether_they_scale_the_loss_and_clip_as_torch_does(
    plugin: Precision, scales: bool, clips: bool
) -> None:
    trainer: Any = SimpleNamespace(precision_plugin=plugin)
    assert (compat.gradient_scaler(trainer) is not None) == scales
    assert compat.clips_as_torch_does(trainer) == clips


def test_lightnings_callbacks_log_by_a_counter_that_can_be_set() -> None:
    class Behind(Record):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            loop = trainer.fit_loop.epoch_loop
            assert loop._batches_that_stepped == trainer.global_step
            loop._batches_that_stepped -= 1  # as after a resume
            compat.set_logged_step(trainer)
            self.found.append(loop._batches_that_stepped)

    behind = Behind(lambda trainer: trainer.fit_loop.epoch_loop._batches_that_stepped)
    fit(behind, max_steps=3)
    assert behind.found == [0, 0, 1, 1, 2, 2]


def test_a_batch_within_accumulation_is_told_from_the_end_of_a_step() -> None:
    record = Record(compat.is_between_steps)
    fit(record, accumulate_grad_batches=3)
    assert record.found == [False, False, True, False, False, True, False, True]  # the last step is a short one


def test_a_validation_is_known_at_the_end_of_the_batch_before_it() -> None:
    record = Record(compat.validates_next)
    fit(record, val_check_interval=3)
    assert record.found == [False, False, True, False, False, True, False, False]
    assert [i for i, event in enumerate(record.events) if event == "validation"] == [3, 7]


def test_a_validation_can_run_before_the_first_batch() -> None:
    class First(Record):
        def on_train_start(self, trainer: Any, *_: Any) -> None:
            compat.validate(trainer)
            assert trainer.training

    first = First()
    fit(first, max_steps=2, val_check_interval=2)
    assert first.events == ["validation", "batch 0", "batch 1", "validation"]


def test_the_counters_of_a_validation_can_be_set_back() -> None:
    counters = list[Any]()

    class Back(L.Callback):
        def on_validation_start(self, trainer: Any, *_: Any) -> None:
            counters.append(compat.validation_counters(trainer))

        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            counters.append(compat.validation_counters(trainer))
            if len(counters) == 3:
                compat.set_validation_counters(trainer, counters[0])
                counters.append(compat.validation_counters(trainer))

    fit(Back())
    before, during, _, after = counters
    assert before == after != during


def test_a_checkpoint_says_how_many_batches_are_done(tmp_path: Path) -> None:
    trainer = fit(max_steps=8)
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    content = torch.load(tmp_path / "all.ckpt", weights_only=True)
    content["global_step"] = 5
    content["loops"]["fit_loop"]["epoch_progress"]["current"] = dict.fromkeys(
        content["loops"]["fit_loop"]["epoch_progress"]["current"], 0
    )
    compat.set_batches_done(content, 5)
    torch.save(content, tmp_path / "five.ckpt")
    record = Record()
    fit(record, max_steps=100, ckpt_path=tmp_path / "five.ckpt", limit_val_batches=0)
    assert record.events[0] == "batch 5"


def test_the_bars_on_the_screen_are_known_and_can_be_written_above() -> None:
    found = list[Any]()

    class Bar(TQDMProgressBar):
        def on_train_batch_start(self, *given: Any) -> None:
            super().on_train_batch_start(*given)
            found.extend(compat.open_bars(self))

    assert compat.open_bars(TQDMProgressBar()) == []
    fit(Bar(), max_steps=1, enable_progress_bar=True, limit_val_batches=0)
    assert [type(bar) for bar in found] == [compat.Tqdm]
    with compat.Tqdm.external_write_mode():
        pass


def test_a_logger_that_logs_nothing_satisfies_callbacks_that_need_one() -> None:
    trainer = L.Trainer(accelerator="cpu", logger=[compat.DummyLogger()], enable_checkpointing=False)
    assert len(trainer.loggers) == 1
    trainer.logger.log_metrics({"a": 1.0}, step=1)


def test_the_callback_that_failed_is_found_in_the_traceback() -> None:
    class Fails(L.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            raise ValueError

    class Refused(L.Callback):
        def state_dict(self) -> Any:
            raise ValueError

        def on_train_start(self) -> None:  # type: ignore[override]  # Lightning's own call of it fails
            pass

    for callback, error in ((Fails(), ValueError), (Refused(), TypeError)):
        with pytest.raises(error) as caught:
            fit(callback, max_steps=1)
        assert any(each is callback for each in compat.active_objects(caught.value.__traceback__))
