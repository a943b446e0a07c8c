"""Each argument of Lightning's Trainer does what its help says, or is refused when the config is built."""

import dataclasses
import inspect
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import Callback
from small_runs import said_by_lightning, small_settings

from minigpt.config import TrainerConfig
from minigpt.errors import UserError
from minigpt.training.run import train
from minigpt.training.trainer import best_precision, slow_precision

REFUSED = {
    "limit_train_batches": [(5, "trainer.overfit_batches"), (1, "trainer.overfit_batches"), (0.5, "fewer of them")],
    "limit_test_batches": [(5, "trainer.limit_val_batches")],
    "limit_predict_batches": [(5, "trainer.limit_val_batches")],
    "limit_val_batches": [(0, "val_check_interval"), (0.0, "val_check_interval")],
    "check_val_every_n_epoch": [(2, "trainer.val_check_interval")],
    "max_epochs": [(1, "trainer.max_steps"), (-1, "trainer.max_steps")],
    "min_epochs": [(1, "trainer.min_steps")],
    "min_steps": [(601, "trainer.max_steps=600")],
    "reload_dataloaders_every_n_epochs": [(1, "a function of the step")],
    "use_distributed_sampler": [(True, "already sharded among the devices")],
    "sync_batchnorm": [(True, "no batch norm")],
    "barebones": [(True, "trainer.profiler")],
    "overfit_batches": [(1.5, "a share of at most 1.0")],
}
WITHOUT_EFFECT = {"limit_train_batches": 1.0, "limit_test_batches": 1.0, "limit_predict_batches": 1.0}
SEEN = {
    "check_val_every_n_epoch": None,  # as 1: there is one
    "deterministic": True,
    "benchmark": False,
    "detect_anomaly": True,
    "enable_checkpointing": False,
    "enable_model_summary": True,
    "gradient_clip_algorithm": "value",
    "gradient_clip_val": 0.5,
    "inference_mode": False,
    "limit_val_batches": 2,
    "min_steps": 3,
    "num_sanity_val_steps": 1,
    "profiler": "simple",
    "val_check_interval": 2,
    "max_steps": 4,
}
"""Together in one run, whose effects are looked at."""
ELSEWHERE = {
    "accelerator": "test_devices",
    "accumulate_grad_batches": "test_resume",
    "callbacks": "test_user_callbacks",
    "default_root_dir": "passed on",
    "devices": "test_devices",
    "enable_autolog_hparams": "passed on",
    "enable_progress_bar": "test_progress",
    "fast_dev_run": "below",
    "log_every_n_steps": "test_run",
    "logger": "test_callbacks",
    "max_time": "test_resume",
    "model_registry": "passed on",
    "num_nodes": "test_devices",
    "overfit_batches": "test_callbacks",
    "plugins": "passed on",
    "precision": "test_devices",
    "strategy": "test_devices",
}


def test_each_argument_of_the_trainer_is_decided_upon() -> None:
    arguments = set(inspect.signature(L.Trainer).parameters)
    assert {field.name for field in dataclasses.fields(TrainerConfig)} == arguments
    assert {*REFUSED, *SEEN, *ELSEWHERE} == arguments


@pytest.mark.parametrize(
    ("name", "value", "instead"), [(name, *case) for name, cases in REFUSED.items() for case in cases]
)
def test_a_setting_without_use_is_refused_with_what_to_give_instead(name: str, value: Any, instead: str) -> None:
    with pytest.raises(UserError) as refused:
        TrainerConfig(**{name: value})
    assert str(refused.value).startswith(f"trainer.{name}={value}: ")
    assert instead in str(refused.value)


def test_lightnings_own_defaults_of_such_settings_are_taken() -> None:
    TrainerConfig(**WITHOUT_EFFECT)  # type: ignore[arg-type]


class Spy(Callback):
    """Notes what is in force."""

    seen: dict[str, Any] = {}  # noqa: RUF012 (of the one run)

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen |= {"anomaly": torch.is_anomaly_enabled(), "steps": self.seen.get("steps", 0) + 1}
        self.seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
        self.seen["cublas"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        trainer.should_stop = True  # which min_steps overrules
        for parameter in module.parameters():
            parameter.grad.fill_(3.0)

    def on_before_zero_grad(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients and trainer.global_step:
            self.seen["largest"] = max(float(g.abs().max()) for g in gradients)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        kind = "sanity" if trainer.sanity_checking else f"val_{trainer.global_step}"
        self.seen |= {kind: self.seen.get(kind, 0) + 1, "inference": torch.is_inference_mode_enabled()}


def test_settings_that_are_passed_on_have_their_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Spy, "seen", {})
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored at the end
    callbacks = [{"class_path": f"{__name__}.Spy"}]
    quiet: dict[str, Any] = {"attention": {"enabled": False}, "sampling": {"prompts": []}}
    try:
        with said_by_lightning() as said:
            run = train(small_settings(tmp_path, trainer=SEEN | {"callbacks": callbacks}, **quiet))
    finally:
        torch.use_deterministic_algorithms(False)
    assert Spy.seen == {
        "anomaly": True,
        "deterministic": True,
        "cublas": ":4096:8",  # set by Lightning; torch refuses matrix products on CUDA without it
        "inference": False,
        "largest": 0.5,
        "sanity": 1,
        "steps": 3,
        "val_2": 2,
        "val_3": 2,
    }
    assert not list((run.path / "checkpoints").glob("*"))
    assert "Total params" in "".join([*said, capsys.readouterr().out]), "Lightning prints it where rich is installed"
    assert any("Profiler Report" in text for text in said)


@pytest.mark.parametrize("precision", ["16-true", "transformer-engine-float16"])
def test_float16_weights_are_refused_with_what_to_use_instead(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision != "16-true":  # its package needs a GPU
        monkeypatch.setattr(L.Trainer, "precision", precision)
        settings = small_settings(tmp_path)
    else:
        settings = small_settings(tmp_path, trainer={"precision": precision})
    with pytest.raises(UserError, match=rf"trainer.precision={precision}: .*16-mixed, or bf16-true"):
        train(settings)
    assert not list(tmp_path.glob("runs/*"))


def on(kind: str, precision: str) -> Any:
    """A trainer on a device, as far as advice needs it."""
    return SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(kind)))


def test_a_precision_that_the_device_emulates_is_said_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_units in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_units: has)
        assert (slow_precision(on("cuda", "bf16-mixed")) is None) == has_units
        assert slow_precision(on("cuda", "16-mixed")) is None
        assert "emulate" in (slow_precision(on("cpu", "bf16-true")) or "")
        assert slow_precision(on("cpu", "32-true")) is None


def test_a_gpu_that_the_accelerator_does_not_name_chooses_no_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert [best_precision(each) for each in ("auto", "gpu", "cuda", CUDAAccelerator())] == ["bf16-mixed"] * 4
    assert [best_precision(each) for each in ("cpu", "mps", CPUAccelerator())] == ["32-true"] * 3


def test_a_share_of_the_val_batches_that_is_none_of_them_is_one_line_and_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"limit_val_batches"):
        train(small_settings(tmp_path, trainer={"limit_val_batches": 1e-6}))
    assert not list(tmp_path.glob("runs/*"))


def test_a_fast_run_saves_nothing(tmp_path: Path) -> None:
    run = train(small_settings(tmp_path, trainer={"fast_dev_run": 2}))
    assert not run.last.exists()
