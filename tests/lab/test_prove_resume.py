"""The proof of resume: real processes, killed and continued, come out exact; and what is not exact is named."""

import dataclasses
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from scripts import ready_python
from small_runs import small_settings

from minigpt.cli.main import dispatch
from minigpt.config import Config, ProofConfig
from minigpt.errors import UserError
from minigpt.lab import prove_resume
from minigpt.lab.progress_file import PHASES, ProgressFile
from minigpt.lab.progress_recorder import ProgressRecorder
from minigpt.lab.prove_resume import Death, Proof, Timeline, prove, shortened, verdict
from minigpt.training import compile_choice
from minigpt.training.compile_choice import Choice


def config_of(tmp_path: Path, fault: str | None = None) -> Config:
    trainer: dict[str, Any] = {"max_steps": 16, "val_check_interval": 12, "accumulate_grad_batches": 2}
    if fault is not None:
        trainer["callbacks"] = [{"class_path": f"faults.{fault}"}]
    return small_settings(
        tmp_path, model={"dropout": 0.1}, trainer=trainer, checkpoint_every_n_steps=3, keep_every_n_steps=4
    )


def command(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, kills: int = 2) -> list[str]:
    """The arguments, with processes that begin at once and find the faults."""
    monkeypatch.setattr(sys, "executable", ready_python())
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1] / "training"), os.environ.get("PYTHONPATH", "")])
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    return ["prove-resume", f"--config={recipe}", "--steps=16", f"--kills={kills}"]


def test_killed_processes_are_resumed_exactly_and_no_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    dispatch(command(tmp_path, config_of(tmp_path), monkeypatch, kills=3))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "changed for this proof: trainer.val_check_interval=10 (was 12); trainer.limit_val_batches=20 (was None); "
        "checkpoint_every_n_minutes=None (was 10.0)"
    )
    assert lines[1].startswith("not killed: 16 steps; ")
    assert [line.split(":")[0] for line in lines[2:-1]] == ["kill 1/3", "kill 2/3", "kill 3/3"]
    assert lines[-1] == "resume is exact: 16 steps, 3 kills, 0 differences"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "MovesOnResume",
            ["resume is NOT exact: 16 steps, ", "metrics.csv: step ", "train/loss ", "state_dict.model."],
        ),
        pytest.param("FailsOnResume", ["the run cannot be resumed: ", "no, thank you"], marks=pytest.mark.slow),
        pytest.param("DropsByTheClock", ["resume is not proven", "is not deterministic"], marks=pytest.mark.slow),
    ],
)
def test_what_is_not_exact_is_named_and_kept(
    fault: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    moments = iter([("save", 4)])  # where something is to be resumed from
    monkeypatch.setattr(Timeline, "draw", lambda *_: prove_resume.Moment(ProgressFile(*next(moments)), 0.0))
    with pytest.raises(SystemExit) as ended:
        dispatch(command(tmp_path, config_of(tmp_path, fault), monkeypatch, kills=1))
    assert ended.value.code == 1
    output = capsys.readouterr().out
    assert all(word in output for word in words), output
    (kept,) = (tmp_path / "runs").iterdir()
    assert f"the runs are kept in {kept}" in output
    assert (kept / "straight" / "small" / "metrics.csv").is_file()


def test_a_config_that_cannot_train_is_answered_in_its_own_words_and_no_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=100))
    with pytest.raises(UserError, match=r"^model\.vocab_size=100: the tokenizer has 257 tokens"):
        dispatch(command(tmp_path, config, monkeypatch))
    assert not (tmp_path / "runs").exists()


def test_a_config_is_shortened_so_that_kills_fall_between_checkpoints_and_validations() -> None:
    given = {
        "trainer": {"max_steps": 5000, "max_time": "00:01:00:00", "val_check_interval": 1.0, "log_every_n_steps": 50},
        "attention": {"every_n_steps": 1000},
        "checkpoint_every_n_steps": 500,
        "keep_every_n_steps": 1000,
        "compile": False,
    }
    config, changes = shortened(Config.from_dict(_sections(given)), 60)
    t = config.trainer
    assert (t.max_steps, t.max_time, t.val_check_interval, t.log_every_n_steps) == (60, None, 20, 6)
    assert (config.checkpoint_every_n_steps, config.keep_every_n_steps, config.attention.every_n_steps) == (7, 15, 15)
    assert config.checkpoint_every_n_minutes is None
    assert len(changes) == 9
    assert "trainer.max_time=None (was 00:01:00:00)" in changes
    assert "attention.every_n_steps=15 (was 1000)" in changes


def test_what_fits_is_left_as_it_is() -> None:
    given = {
        "trainer": {"max_steps": 60, "val_check_interval": 15, "log_every_n_steps": 2, "limit_val_batches": 3},
        "checkpoint_every_n_steps": 9,
        "checkpoint_every_n_minutes": None,
        "compile": True,
    }
    config = Config.from_dict(_sections(given))
    assert shortened(config, 60) == (config, [])


def test_a_run_that_would_compile_is_proven_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_choice, "choose", lambda *_, **__: Choice(True, "it pays"))
    config, changes = shortened(Config(), 60)
    assert config.compile is True
    assert "compile=True (was None)" in changes


def _sections(given: dict[str, Any]) -> dict[str, Any]:
    return Config().to_dict() | {
        name: Config().to_dict()[name] | value if isinstance(value, dict) else value for name, value in given.items()
    }


def test_moments_are_drawn_from_the_whole_run_and_each_kill_to_come_has_its_share() -> None:
    places = [(0.0, "start", 0), (5.0, "step", 0), (6.0, "step", 1), (7.0, "validation", 2), (8.0, "save", 2)]
    times = Timeline(
        [(at, ProgressFile(phase, step)) for at, phase, step in [*places, (8.5, "step", 2), (9.0, "end", 4)]], 11.0
    )
    chance = random.Random(0)
    drawn = [times.draw(chance, 0, 1) for _ in range(500)]
    assert {moment.place.phase for moment in drawn} == set(PHASES)
    assert all(0 <= moment.delay_seconds <= 5 for moment in drawn)
    first_of_many = {times.draw(chance, 1, 10).place for _ in range(200)}
    assert first_of_many == {ProgressFile(), ProgressFile("step", 1)}, (
        "the fifth of 5 seconds from step 1 on, or the start"
    )


def test_the_start_lasts_until_the_first_step_is_done_in_a_resumed_process_too(tmp_path: Path) -> None:
    recorder, seen = ProgressRecorder(str(tmp_path / "place")), []
    for step in (5, 5, 6):  # two micro-batches of the first step
        trainer: Any = SimpleNamespace(is_global_zero=True, global_step=step)
        if not seen:
            recorder.on_train_start(trainer)
        recorder.on_train_batch_start(trainer)
        seen.append(ProgressFile.read(tmp_path / "place"))
    recorder.teardown(trainer)
    assert seen == [ProgressFile(), ProgressFile(), ProgressFile("step", 6)]


@pytest.mark.parametrize(("compiled", "runs"), [(True, ["compiled", "straight"]), (False, ["straight"])])
def test_a_compiled_run_is_timed_with_a_warm_cache(
    compiled: bool, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = list[str]()

    def straight(work: Any, name: str) -> Timeline:
        trained.append(name)
        (work.folder / name).mkdir()
        return Timeline()

    monkeypatch.setattr(prove_resume._Work, "straight", straight)
    prove(dataclasses.replace(config_of(tmp_path), compile=compiled), tmp_path, kills=0, seed=1)
    assert trained == runs
    assert (tmp_path / "straight").exists()
    assert not (tmp_path / "compiled").exists()


def test_a_place_comes_before_another_as_in_a_run() -> None:
    way = [("start", 0), ("step", 0), ("validation", 1), ("save", 1), ("step", 1), ("save", 2), ("step", 2), ("end", 2)]
    orders = [ProgressFile(*each).order for each in way]
    assert orders == sorted(orders)


def test_the_verdict_names_twenty_differences_and_counts_the_others() -> None:
    deaths = [Death("step", 3, 1.0, 2)]
    text = verdict(Proof(deaths, 1, [f"file {i}" for i in range(23)]), ProofConfig(), Path("kept"))
    assert text.startswith("resume is NOT exact: 60 steps, 1 kills, 23 differences\nfile 0\n")
    assert "file 19\nand 3 more\nthe runs are kept in kept" in text


@pytest.mark.slow  # a minute: what users run, with all imports
def test_the_command_runs_as_users_run_it(tmp_path: Path) -> None:
    proof = prove(config_of(tmp_path), tmp_path, kills=2, seed=3)
    assert len(proof.deaths) == 2
    assert proof.differences == []
