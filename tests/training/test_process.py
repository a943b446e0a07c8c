"""Switches of the whole process are on in a run, leave the user's choice alone, and are put back."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from small_runs import small_settings

from minigpt.training.module import TrainingModule
from minigpt.training.process import FREEZE_AFTER_BATCHES, FreezeGarbage, allow_tf32, uses_tf32
from minigpt.training.run import train

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def ampere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that has TF32; torch's switch is there without one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]


def allowed(precision: str = "32-true", device: torch.device = CUDA) -> bool:
    with allow_tf32(device, precision):
        return torch.get_float32_matmul_precision() == "high" and uses_tf32(CUDA)


def test_tf32_is_allowed_where_there_are_float32_products_and_forbidden_again_after_it() -> None:
    for _ in range(2):  # another run of the same process
        assert allowed()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not uses_tf32(CUDA)
    assert allowed("bf16-mixed")
    assert not allowed("bf16-true")
    assert not allowed("64-true")
    assert not allowed(device=torch.device("cpu"))


def test_tf32_is_left_as_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in ("highest", "medium"):
        torch.set_float32_matmul_precision(chosen)
        with allow_tf32(CUDA, "32-true"):
            assert torch.get_float32_matmul_precision() == chosen
        assert torch.get_float32_matmul_precision() == chosen
    torch.backends.cuda.matmul.fp32_precision = "none"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not allowed()


def test_an_older_gpu_has_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert not allowed()


def test_a_run_freezes_objects_after_its_first_steps_and_lets_the_collector_see_them_again(tmp_path: Path) -> None:
    counts: list[int] = []
    original = TrainingModule.on_train_batch_start

    def count(*arguments: Any) -> None:
        counts.append(gc.get_freeze_count())
        original(*arguments)

    trainer = {"max_steps": FREEZE_AFTER_BATCHES + 1, "val_check_interval": 1000, "enable_checkpointing": False}
    with mock.patch.object(TrainingModule, "on_train_batch_start", count):
        train(small_settings(tmp_path, model={"n_layer": 1}, trainer=trainer, sampling={"prompts": []}))
    assert counts[:-1] == [0] * FREEZE_AFTER_BATCHES
    assert counts[-1] > 100_000
    assert gc.get_freeze_count() == 0


def test_what_the_user_has_frozen_stays_as_it_is() -> None:
    kept, callback = [object() for _ in range(3)], FreezeGarbage()
    gc.freeze()
    try:
        with mock.patch.object(gc, "collect", side_effect=AssertionError):
            for _ in range(FREEZE_AFTER_BATCHES + 1):
                callback.on_train_batch_end()
        callback.undo()
        assert gc.get_freeze_count() > len(kept)
    finally:
        gc.unfreeze()
