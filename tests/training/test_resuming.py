"""Whether a run has something left to do, and the command with which it goes on from wherever it ended."""

import dataclasses
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_settings, with_trainer
from test_stopping import signal_in

from minigpt.cli import parsing
from minigpt.config import Config
from minigpt.data.prepare import prepare
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, read_checkpoint
from minigpt.training.module import TrainingModule
from minigpt.training.resuming import Reached, begun_before, check_text
from minigpt.training.run import train

AUTO = Path("auto")
EARLY_STOPPING = "lightning.pytorch.callbacks.EarlyStopping"


def stops_early(patience: int) -> dict[str, Any]:
    """A callback that no validation satisfies."""
    return {"class_path": EARLY_STOPPING, "init_args": {"monitor": "val/loss", "patience": patience, "min_delta": 9.0}}


NOTICES = {"class_path": "lightning.pytorch.callbacks.Callback", "init_args": {}}


def settings_in(tmp_path: Path, **trainer: Any) -> Config:
    """A run in a folder with a space, which validates every two steps."""
    settings = {"val_check_interval": 2} | trainer
    return small_settings(
        tmp_path,
        trainer=settings,
        runs_dir=str(tmp_path / "my runs"),
        attention={"enabled": False},
        sampling={"prompts": []},
    )


def typed(line: str) -> tuple[Config, Path | None]:
    """What `train` is asked for by a command line that was printed."""
    words = shlex.split(line)
    return parsing.parse_training(
        words[words.index("train") + 1 if "train" in words else words.index("train.py") + 1 :]
    )


def printed(output: str, before: str) -> str:
    """The command line that stands behind some words."""
    return next(line.partition(before)[2] for line in output.splitlines() if before in line).strip()


@pytest.mark.parametrize(
    ("trainer", "arguments"),
    [
        ({"max_steps": 4}, ["--trainer.max_steps", "8"]),
        ({"max_steps": 100_000, "max_time": "00:00:00:01"}, ["--trainer.max_time"]),
        ({"callbacks": [stops_early(1)]}, ["--trainer.callbacks", "null"]),
        ({"callbacks": None, "max_steps": 3}, []),  # stopped by a signal
    ],
    ids=["steps", "time", "early stopping", "signal"],
)
def test_the_printed_command_goes_on_and_without_its_change_the_run_is_refused(
    trainer: dict[str, Any],
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings_in(tmp_path, **trainer)
    folder = RunFolder(Path(config.runs_dir) / config.name)
    if arguments:
        train(config)
    else:
        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            signal_in(patched, TrainingModule, "training_step", signal.SIGTERM, 1)
            train(config)
    line = printed(capsys.readouterr().out, "resume  " if arguments else "to resume: ")
    assert shlex.join(["--resume", str(folder.path), *arguments]) in line
    step = read_checkpoint(folder.last)["global_step"]
    if arguments:
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        with pytest.raises(UserError) as refused:
            train(*parsing.parse_training(["--resume", str(folder.path)]))
        assert line.rpartition(" ")[0] in str(refused.value)  # a little more of the time was used up when it was saved
        assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    train(*typed(line))
    assert read_checkpoint(folder.last)["global_step"] > step
    assert "nan" not in capsys.readouterr().out


def test_more_patience_lets_a_run_go_on_that_early_stopping_ended(tmp_path: Path) -> None:
    config = settings_in(tmp_path, callbacks=[stops_early(1)])
    folder = train(config)
    assert read_checkpoint(folder.last)["global_step"] == 4
    train(with_trainer(config, callbacks=[stops_early(3)]), folder.path)
    assert read_checkpoint(folder.last)["global_step"] == 8


@pytest.mark.parametrize(
    ("trainer", "reached", "arguments"),
    [
        ({}, Reached(5, 0, False), []),
        ({}, Reached(12, 0, True), ["--trainer.max_steps", 24]),
        ({"max_steps": 5}, Reached(12, 0, True), ["--trainer.max_steps", 24]),
        # Twice the steps would take twice the time.
        (
            {"max_time": "00:01:00:00"},
            Reached(12, 3000, True),
            ["--trainer.max_steps", 24, "--trainer.max_time", "00:02:00:00"],
        ),
        ({"max_time": "00:01:00:00"}, Reached(12, 60, True), ["--trainer.max_steps", 24]),
        ({"max_time": "00:20:00:00"}, Reached(5, 72000.5, True), ["--trainer.max_time", "01:16:00:00"]),
        ({"max_time": "00:20:00:00", "min_steps": 9}, Reached(5, 72000.5, False), []),
        (
            {"callbacks": [NOTICES, stops_early(2)]},
            Reached(5, 0, True),
            ["--trainer.callbacks", '[{"class_path": "lightning.pytorch.callbacks.Callback", "init_args": {}}]'],
        ),
        ({"callbacks": [NOTICES]}, Reached(5, 0, True), []),  # it knows why
    ],
)
def test_what_a_run_needs_to_go_on(
    trainer: dict[str, Any], reached: Reached, arguments: list[object], tmp_path: Path
) -> None:
    why, needed = reached.way_on(settings_in(tmp_path, **trainer))
    assert needed == arguments
    assert bool(why) == bool(arguments)


def test_a_run_ended_by_its_steps_is_not_taken_for_one_that_its_callbacks_ended(tmp_path: Path) -> None:
    before = settings_in(tmp_path, callbacks=[stops_early(2)])
    assert Reached(12, 0, True).way_on(with_trainer(before, max_steps=24), before) == ("", [])


def test_resume_auto_says_that_a_run_is_done_and_leaves_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings_in(tmp_path, callbacks=[stops_early(1)])
    folder = train(config, AUTO)
    for _ in range(2):
        capsys.readouterr()
        before = {path: path.stat().st_mtime_ns for path in Path(config.runs_dir).rglob("*")}
        assert train(config, AUTO).path == folder.path
        assert capsys.readouterr().out.startswith(f"{folder.path} is done: EarlyStopping ended it at step 4; to train")
        assert before == {path: path.stat().st_mtime_ns for path in Path(config.runs_dir).rglob("*")}
    # Other settings are another run, and one with more to do goes on.
    assert begun_before(dataclasses.replace(config, seed=5)) == (None, "")
    other_text = dataclasses.replace(config.data, source=str(tmp_path / "other.txt"))
    assert begun_before(dataclasses.replace(config, data=other_text)) == (None, "")
    assert begun_before(with_trainer(config, callbacks=None)) == (folder.path, "")


def test_a_text_is_the_same_wherever_it_lies_and_however_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    home.mkdir()
    monkeypatch.chdir(home)
    small_settings(home)
    data = {"source": "text.txt", "dir": "data"}
    config = small_settings(home, data=data, trainer={"max_steps": 2}, runs_dir="runs", attention={"enabled": False})
    folder = train(config).path.absolute()
    monkeypatch.chdir(elsewhere)
    train(*parsing.parse_training(["--resume", str(folder), "--trainer.max_steps", "3"]))
    assert f"now data.source={home / 'text.txt'} (was text.txt)" in capsys.readouterr().out
    assert not list(elsewhere.iterdir())
    (home / "text.txt").rename(elsewhere / "moved.txt")
    more = ["--resume", str(folder), "--trainer.max_steps", "4"]
    with pytest.raises(UserError, match=r"text\.txt: no such file"):
        train(*parsing.parse_training(more))
    train(*parsing.parse_training([*more, "--data.source", "moved.txt"]))
    assert read_checkpoint(RunFolder(folder).last)["global_step"] == 4
    (elsewhere / "moved.txt").write_text("another text\n" * 400)
    with pytest.raises(UserError, match="the text has changed"):
        train(*parsing.parse_training(["--resume", str(folder), "--trainer.max_steps", "5"]))


def test_the_same_text_with_another_tokenizer_or_split_is_another_run(tmp_path: Path) -> None:
    config = small_settings(tmp_path)
    data, other = (
        prepare(config.data),
        prepare(dataclasses.replace(config.data, val_fraction=0.3, dir=str(tmp_path / "o"))),
    )
    saved: dict[str, Any] = {
        "text_fingerprint": data.manifest.text_fingerprint,
        "text_settings": data.manifest.settings,
        "tokenizer": data.tokenizer.to_dict(),
    }
    folder = RunFolder(tmp_path / "run")
    check_text({CHECKPOINT_KEY: saved}, folder, data)
    with pytest.raises(UserError, match=r"was prepared with other settings: data\.val_fraction=0\.3 \(was 0\.05\)"):
        check_text({CHECKPOINT_KEY: saved}, folder, other)
    saved["tokenizer"] = {"kind": "chars", "alphabet": "abc"}
    with pytest.raises(UserError, match="the tokenizer has changed"):
        check_text({CHECKPOINT_KEY: saved}, folder, data)
