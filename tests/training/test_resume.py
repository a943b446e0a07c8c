"""A run that is killed and resumed is, bit for bit, the run that was never stopped."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from grids import SLOW
from scripts import ROOT, ready_python
from small_runs import small_settings, small_text, train_and_die, with_trainer

from minigpt.config import Config
from minigpt.data import stream
from minigpt.errors import UserError
from minigpt.lab.differences import differences
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model, read_checkpoint
from minigpt.training.run import train


def assert_same_run(straight: RunFolder, resumed: RunFolder) -> None:
    assert differences(straight, resumed) == []


def metrics(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(  # each two of them in each way, and each value in the quick suite
    ("accumulate", "validate_on_checkpoint_step", "num_workers"),
    [
        (1, True, 0),
        (2, False, 1),
        *(pytest.param(*case, marks=SLOW) for case in ((1, False, 1), (2, True, 1), (2, False, 0))),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    accumulate: int,
    validate_on_checkpoint_step: bool,
    num_workers: int,
    tmp_path: Path,
) -> None:
    config = small_settings(
        tmp_path,
        model={"dropout": 0.1},
        data={"num_workers": num_workers},
        trainer={
            "accumulate_grad_batches": accumulate,
            "val_check_interval": accumulate * (5 if validate_on_checkpoint_step else 4),
            "log_every_n_steps": 4,  # so that a logged loss spans the checkpoint
        },
        attention={},
        checkpoint_every_n_steps=5,
    )
    straight = train(config)
    train_and_die(config, 7 * accumulate)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    assert read_checkpoint(resumed.last)["global_step"] == 5
    train(config, resumed.path)
    assert_same_run(straight, resumed)


def test_a_killed_run_with_adamw_goes_on_bit_for_bit(tmp_path: Path) -> None:
    optimizer = {"name": "adamw", "schedule": "wsd", "beta2": 0.99}
    config = small_settings(tmp_path, optimizer=optimizer, checkpoint_every_n_steps=5)
    straight = train(config)
    train_and_die(config, 7)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    train(config, resumed.path)
    assert_same_run(straight, resumed)


@pytest.mark.parametrize("mode", ["examples", "mixture", pytest.param("streaming", marks=SLOW)])
def test_a_killed_run_goes_on_bit_for_bit_however_its_batches_are_made(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, line in enumerate(small_text().splitlines()):
        (folder / f"{i:03}.txt").write_text(line * (1 + i % 3))
    settings = {
        "examples": {"source": str(folder), "mode": "examples"},
        "mixture": {"source": [str(folder), str(tmp_path / "text.txt")], "weights": [1.0, 3.0]},
        "streaming": {"source": str(folder), "streaming": True},
    }
    config = small_settings(tmp_path, data=settings[mode], checkpoint_every_n_steps=5)
    monkeypatch.setattr(stream, "BATCHES_PER_POOL", 2)  # so that the checkpoint is some pools on
    straight = train(config)
    train_and_die(config, 7)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    train(config, resumed.path)
    assert_same_run(straight, resumed)


def test_a_streaming_run_killed_again_and_again_within_a_pool_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later checkpoints tell where the stream stood at the beginning of a pool that an earlier process began."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, line in enumerate(small_text().splitlines()):
        (folder / f"{i:03}.txt").write_text(line * (1 + i % 3))
    config = small_settings(
        tmp_path, data={"source": str(folder), "streaming": True}, trainer={"max_steps": 14}, checkpoint_every_n_steps=1
    )
    monkeypatch.setattr(stream, "BATCHES_PER_POOL", 4)
    monkeypatch.setattr(stream, "TOGETHER", 200)  # so that the stream stands in its middle
    straight = train(config)
    train_and_die(config, 9)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    for death in (10, 11):
        train_and_die(config, death, resume=resumed.path)
    train(config, resumed.path)
    assert_same_run(straight, resumed)


def test_a_run_killed_twice_in_later_epochs_goes_on(tmp_path: Path) -> None:
    """The text has few windows, so that 60 batches are many epochs of it."""
    (tmp_path / "text.txt").write_text("a small text that is read again and again\n" * 12)
    config = small_settings(tmp_path, trainer={"max_steps": 60, "val_check_interval": 60}, checkpoint_every_n_steps=10)
    straight = train(config)
    train_and_die(config, 33)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    train_and_die(config, 47, resume=resumed.path)
    train(config, resumed.path)
    assert_same_run(straight, resumed)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_kept_every_so_many_steps_before_and_after_a_kill_and_are_those_of_the_step(
    accumulate: int, tmp_path: Path
) -> None:
    trainer = {"val_check_interval": 4 * accumulate, "accumulate_grad_batches": accumulate}
    config = small_settings(tmp_path, trainer=trainer, keep_every_n_steps=2)
    straight = train(config)
    train_and_die(config, 7 * accumulate)  # step 6 is kept, but the last checkpoint is of step 4
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    assert list(resumed.all_kept) == [2, 4, 6]
    train(config, resumed.path)
    assert list(straight.all_kept) == list(resumed.all_kept) == [2, 4, 6, 8, 10, 12]
    assert {file.name for file in straight.last.parent.iterdir()} == {
        *("last.ckpt", "best.ckpt", "step_000008.ckpt"),
        *(file.name for file in straight.all_kept.values()),
    }
    for step, file in straight.all_kept.items():
        one, two = (load_model(each).model.state_dict() for each in (file, resumed.kept(step)))
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    last = read_checkpoint(straight.last)["state_dict"]
    kept = load_model(straight.kept(12)).model.state_dict()
    assert all(torch.equal(tensor, last[f"model.{name}"]) for name, tensor in kept.items())
    first = load_model(straight.kept(2)).model.state_dict()
    assert not torch.equal(first["lm_head.weight"], kept["lm_head.weight"])


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder, process = start_long_run(tmp_path, ready_python())
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 143, output
    assert f"train.py --resume {folder.path}" in output
    assert "Traceback" not in output
    assert read_checkpoint(folder.last)["global_step"] >= 3


def test_a_run_goes_on_when_nobody_reads_its_output_and_ctrl_c_saves_it(tmp_path: Path) -> None:
    """As behind `| head`, and behind `| tee log`, which Ctrl-C ends as well."""
    folder, process = start_long_run(tmp_path, ready_python())
    assert process.stdout is not None
    process.stdout.close()
    rows, deadline = folder.metrics.read_text().count("\n"), time.monotonic() + 240
    while folder.metrics.read_text().count("\n") < rows + 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    step = read_checkpoint(folder.last)["global_step"]
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 130
    assert read_checkpoint(folder.last)["global_step"] > step


def test_a_process_killed_by_sigkill_goes_on_bit_for_bit(tmp_path: Path) -> None:
    folder, process = start_long_run(tmp_path, ready_python())
    os.kill(int((folder.path / ".lock").read_text().split()[0]), signal.SIGKILL)  # the one that trains
    assert process.wait() == -signal.SIGKILL
    steps = read_checkpoint(folder.last)["global_step"] + 10
    config = with_trainer(Config.from_dict(yaml.safe_load(folder.config.read_text())), max_steps=steps)
    # The schedule depends on max_steps, so the straight run is one of the same length that is stopped nowhere.
    train(config, folder.path)
    straight = train(config)
    # What the killed process trained under its own max_steps differs in the learning rate: constant is chosen below.
    assert_same_weights(straight, folder)


def assert_same_weights(straight: RunFolder, resumed: RunFolder) -> None:
    one, two = read_checkpoint(straight.last)["state_dict"], read_checkpoint(resumed.last)["state_dict"]
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def start_long_run(tmp_path: Path, python: str) -> tuple[RunFolder, subprocess.Popen[str]]:
    """A real process that would train for minutes; returns when some checkpoints have been written."""
    config = small_settings(
        tmp_path,
        model={"dropout": 0.1},
        optimizer={"schedule": "constant"},
        trainer={"max_steps": 100_000, "val_check_interval": 100_000},
        checkpoint_every_n_steps=3,
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    process = subprocess.Popen(
        [python, "train.py", "--config", str(recipe)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = RunFolder(Path(config.runs_dir) / config.name)
    deadline = time.monotonic() + 240
    while not folder.last.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return folder, process


def test_a_finished_run_is_lengthened_by_more_steps(tmp_path: Path) -> None:
    config = small_settings(tmp_path)
    folder = train(config)
    with pytest.raises(UserError, match="all 12 steps are done"):
        train(config, folder.path)
    train(with_trainer(config, max_steps=15), folder.path)
    assert read_checkpoint(folder.last)["global_step"] == 15
    assert [row["step"] for row in metrics(folder) if row["train/loss"]] == [str(i) for i in range(1, 16)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": {"n_layer": 3}}, "model.n_layer=3 (was 2)"),
        ({"data": {"batch_size": 5}}, "data.batch_size=5 (was 4)"),
        ({"optimizer": {"name": "adamw"}}, "optimizer.name=adamw (was muon)"),
        ({"seed": 7}, "seed=7 (was 1337)"),
        ({"name": "other"}, "name=other (was small)"),  # it would stay in its folder
    ],
)
def test_what_would_make_it_another_run_is_refused_by_name(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = train(small_settings(tmp_path, trainer={"max_steps": 2}))
    with pytest.raises(UserError) as refused:
        train(small_settings(tmp_path, **changed), folder.path)
    assert words in str(refused.value)


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    folder = train(small_settings(tmp_path, trainer={"max_steps": 2}))
    (tmp_path / "text.txt").write_text("another text\n" * 200)
    with pytest.raises(UserError, match="the text has changed"):
        train(small_settings(tmp_path), folder.path)


def test_what_is_changed_on_resume_is_said_and_takes_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(small_settings(tmp_path, optimizer={"schedule": "constant"}))
    optimizer = {"schedule": "constant", "learning_rate": 0.5}
    changed = small_settings(tmp_path, optimizer=optimizer, trainer={"max_steps": 13}, sampling={"prompts": ["2"]})
    capsys.readouterr()
    train(changed, folder.path)
    assert float(metrics(folder)[-1]["learning_rate"]) == 0.5
    assert "prompt '2'" in folder.samples(13).read_text()
    lines = capsys.readouterr().out.splitlines()
    began = lines.index(f"resuming {folder.path} from step 12")
    assert [line.strip() for line in lines[began + 1 : began + 4]] == [
        "now optimizer.learning_rate=0.5 (was 0.008)",
        "now trainer.max_steps=13 (was 12)",
        "now sampling.prompts=['2'] (was ['1 plus'])",
    ]
    assert lines[began + 4].startswith("text")
