"""The training module alone: its step needs none of minigpt's callbacks."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from injection import Injection
from small_runs import small_settings
from test_anomalies import assert_equal, plain_loop

from minigpt.data.open import open_data
from minigpt.training.loaders import make_loaders
from minigpt.training.module import TrainingModule
from minigpt.training.optimizer import learning_rate
from minigpt.training.run import filled_in

PLAIN: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("trainer_settings", [{"barebones": True}, PLAIN], ids=["barebones", "plain"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on loaders and on what barebones leaves out
def test_under_a_plain_trainer_it_clips_skips_averages_and_follows_the_schedule(
    trainer_settings: dict[str, Any], accumulate: int, tmp_path: Path
) -> None:
    config = small_settings(
        tmp_path,
        model={"dropout": 0.1},
        trainer={"gradient_clip_val": 0.05, "accumulate_grad_batches": accumulate},
        optimizer={"average_decay": 0.8},
    )
    data = open_data(config.data, quiet=True)
    config = filled_in(config, data)
    module = TrainingModule(config, data)
    trainer = L.Trainer(
        max_steps=12,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        callbacks=[Injection({4 * accumulate: (math.nan, "loss"), 8 * accumulate: (math.inf, "gradient")})],
        **trainer_settings,
    )
    trainer.fit(module, *make_loaders(config, data, trainer))
    expected = plain_loop(config, {5, 9})
    assert_equal(module.model.state_dict(), expected["weights"])
    assert module.average is not None
    assert_equal(module.average.averaged.state_dict(), expected["average"])
    assert module.grad_norm > 0.05
    assert module.learning_rate == learning_rate(config.optimizer, 11, 11 / 12)
    assert all(len(value) <= accumulate for value in vars(module).values() if isinstance(value, list))


def test_a_skipped_step_asks_first_and_goes_on_if_nobody_objects(tmp_path: Path) -> None:
    config = small_settings(tmp_path)
    data = open_data(config.data, quiet=True)
    config = filled_in(config, data)
    asked = list[tuple[int, float, bool]]()

    def on_bad_step(module: TrainingModule) -> None:
        gradient = module.model.blocks[1].mlp.proj.weight.grad
        assert gradient is not None  # a report needs it
        asked.append((module.global_step, module.grad_norm, bool(gradient.isfinite().all())))

    module = TrainingModule(config, data, on_bad_step)
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", callbacks=[Injection({2: (math.inf, "gradient")})], limit_val_batches=0, **PLAIN
    )
    trainer.fit(module, *make_loaders(config, data, trainer))
    assert asked == [(2, math.inf, False)]
    assert trainer.global_step == 4
    assert not module.skipped
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
