"""The moving average of weights: what it is, who sees it, and that a resumed run has the same one."""

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from small_runs import small_settings, train_and_die
from test_resume import assert_same_run
from torch import Tensor

from minigpt.config import Config
from minigpt.data.batches import ValBatches
from minigpt.data.open import open_data
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, load_model, read_checkpoint, save_checkpoint
from minigpt.training import run
from minigpt.training.loss import next_token_loss
from minigpt.training.run import train


class Watch(L.Callback):
    """Keeps the weights after each step, the first ones included."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append(pl_module.model.token_embedding.weight.detach().clone())


def averaged(folder: Path, **sections: dict[str, Any]) -> Config:
    return small_settings(folder, optimizer={"warmup_steps": 3, "average_decay": 0.8}, **sections)


def test_the_average_is_validated_shown_and_saved_while_training_goes_on_with_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, make = Watch(), run.make_callbacks
    monkeypatch.setattr(run, "make_callbacks", lambda *given: [watch, *make(*given)])
    config = averaged(tmp_path)
    folder = train(config)
    average = watch.weights[0]
    for weights in watch.weights[1:]:
        average = 0.8 * average + 0.2 * weights
    content = read_checkpoint(folder.last)
    name = "model.token_embedding.weight"
    torch.testing.assert_close(content["state_dict"][name], average)
    assert torch.equal(content["current_model_state"][name], watch.weights[-1])

    assert torch.equal(load_model(folder.weights).model.token_embedding.weight, content["state_dict"][name])

    # The loss that the run says is that of the weights it leaves behind.
    data, loaded = open_data(config.data, quiet=True), load_model(folder.path)
    batches = ValBatches(
        data.val, context_length=16, batch_size=64, end_of_text=data.manifest.end_of_text, mode="packed"
    )
    with torch.inference_mode():
        nats = sum(next_token_loss(loaded.model(x), y, "sum") for x, y in (batches[i] for i in range(len(batches))))
    mine = float(nats) / batches.n_targets
    saved = content["callbacks"]["Checkpoints"]["best_val_loss"]
    assert mine == pytest.approx(saved, rel=1e-5)

    plain = train(dataclasses.replace(small_settings(tmp_path), name="plain"))
    assert torch.equal(read_checkpoint(plain.last)["state_dict"][name], watch.weights[-1])


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_killed_run_goes_on_with_its_average_bit_for_bit(precision: str, tmp_path: Path) -> None:
    config = dataclasses.replace(averaged(tmp_path, trainer={"precision": precision}), checkpoint_every_n_steps=4)
    straight = train(config)
    for name, death in (("before", 5), ("after", 8)):  # the last checkpoint is of a step alone, or of a validation
        again = dataclasses.replace(config, name=name)
        train_and_die(again, death)
        resumed = train(again, RunFolder(Path(config.runs_dir) / name).path)
        assert_same_run(straight, resumed)


def test_a_validation_of_the_average_rounds_nothing_in_double_precision(tmp_path: Path) -> None:
    double = {"trainer": {"precision": "64-true"}}
    content = read_checkpoint(train(averaged(tmp_path, **double)).last)
    plain = read_checkpoint(train(small_settings(tmp_path, **double)).last)
    for name, value in plain["state_dict"].items():
        assert torch.equal(content["current_model_state"][name], value), name
        assert content["state_dict"][name].dtype == value.dtype


def test_a_checkpoint_from_before_the_module_kept_the_average_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Callbacks kept the state of the average, and the module the losses that are not logged yet."""
    config = averaged(tmp_path, trainer={"log_every_n_steps": 5})
    config = dataclasses.replace(config, checkpoint_every_n_steps=4)
    straight = train(config)
    again = dataclasses.replace(config, name="again")
    train_and_die(again, 5)
    folder = RunFolder(Path(config.runs_dir) / "again")
    content = read_checkpoint(folder.last, mmap=False)
    content["callbacks"]["Averaging"] = {"latest_update_step": 4}
    losses = content["callbacks"]["Metrics"].pop("recent_losses")
    assert len(losses) == 4
    content[CHECKPOINT_KEY]["recent_losses"] = losses
    save_checkpoint(folder.last, content)
    assert_same_run(straight, train(again, folder.path))


def test_an_average_that_comes_or_goes_on_resume_is_refused(tmp_path: Path) -> None:
    folder = train(averaged(tmp_path))
    more = small_settings(tmp_path, trainer=dataclasses.asdict(averaged(tmp_path).trainer) | {"max_steps": 14})
    with pytest.raises(UserError, match=r"optimizer\.average_decay=null \(was 0\.8\)"):
        train(more, folder.path)
