"""When a run is said to memorise, and that it can end there."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_settings, small_text, train_and_die

from minigpt.config import Config
from minigpt.runs.loading import read_checkpoint
from minigpt.training.memorising import Memorising
from minigpt.training.run import train


def overfits(tmp_path: Path, **settings: Any) -> Config:
    """A run that soon knows a few lines by heart."""
    (tmp_path / "text.txt").write_text(small_text(30))
    return small_settings(
        tmp_path,
        data={"val_fraction": 0.3},
        model={"n_embd": 64},
        optimizer={"learning_rate": 0.01, "schedule": "constant", "warmup_steps": 3},
        trainer={"max_steps": 200, "val_check_interval": 20, "log_every_n_steps": 5},
        sampling={"prompts": []},
        attention={"enabled": False},
        **settings,
    )


@pytest.mark.parametrize(
    ("val", "train", "at"),
    [
        ([4, 3, 3.5, 3.6], [4, 3, 2.5, 2], 3),
        ([4, 3, 3.5, 3.1, 3.1], [4, 3, 2.5, 2, 1], 3),  # still above the best, though less
        ([4, 3, 3.5, 3.01, 3.5, 3.5], [4, 3, 2.5, 2, 1, 1], 5),  # a good validation between
        ([4, 3, 3.5, 2.9, 3.5], [4, 3, 2.5, 2, 1], None),  # a new best between
        ([4, 3, 3.02, 3.03], [4, 3, 2, 1], None),  # not 1 %
        ([1, 0.5, 0.515, 0.515], [1, 0.5, 0.4, 0.3], None),  # 3 %, but not 0.02 nats
        ([4, 3, 3.5, 3.6], [4, 3, 3.1, 3.2], None),  # both rise: the run diverges
        ([4, 3, 3.5, 3.6], [4, 3, 2.5, 3.2], None),
        ([3, 4, 5], [math.nan] * 3, None),  # no train/loss was logged
    ],
)
def test_a_run_memorises_if_val_loss_rises_twice_while_train_loss_falls(
    val: list[float], train: list[float], at: int | None
) -> None:
    memorising = Memorising(Config())
    said = [memorising.notes(10 * i, *losses) for i, losses in enumerate(zip(val, train, strict=True))]
    assert (said.index(True) if True in said else None) == at


def test_a_resumed_decision_goes_on_where_it_was() -> None:
    before, after = Memorising(Config()), Memorising(Config())
    assert [before.notes(10, 3.0, 3.0), before.notes(20, 3.5, 2.0)] == [False, False]
    after.load_state_dict(before.state_dict())
    assert after.notes(30, 3.5, 1.0)
    assert (after.best, after.best_step) == (3.0, 10)


def test_a_run_says_once_that_it_memorises_and_ends_there_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = overfits(tmp_path, stop_when_memorising=True)
    folder = train(config, Path("auto"))
    output = capsys.readouterr().out
    assert output.count("memorising: val/loss has risen from ") == 1
    assert "the best weights are kept; stop_when_memorising ends the run here. Use fewer steps" in output
    content = read_checkpoint(folder.last)
    step = content["global_step"]
    assert step < 200
    assert f"at step {step}\n" in output  # the last loss, beside the best one
    assert f"--resume {folder.path} --stop_when_memorising false" in output
    # The same command again has nothing to do.
    assert train(config, Path("auto")).path == folder.path
    said = capsys.readouterr().out
    assert said.startswith(f"{folder.path} is done: stop_when_memorising ended it at step {step}; to train on: ")
    # And the printed command goes on, without a second line.
    on = dataclasses.replace(config, stop_when_memorising=False)
    train(dataclasses.replace(on, trainer=dataclasses.replace(on.trainer, max_steps=step + 20)), folder.path)
    assert "memorising: " not in capsys.readouterr().out
    assert read_checkpoint(folder.last)["global_step"] == step + 20


def test_a_resumed_run_says_the_same_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line() -> str:
        return next(each for each in capsys.readouterr().out.splitlines() if each.startswith("memorising: "))

    whole = overfits(tmp_path, stop_when_memorising=True, name="whole")
    step = read_checkpoint(train(whole).last)["global_step"]
    expected = line()
    cut = dataclasses.replace(whole, name="cut")
    train_and_die(cut, step - 2)  # after the first of the two validations
    train(cut, Path(cut.runs_dir) / "cut")
    assert line() == expected
