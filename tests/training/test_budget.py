"""What a budget chooses, that given settings win, and that the run's config alone reproduces the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minigpt.cli.parsing import parse_training
from minigpt.config import Config
from minigpt.data.open import open_data
from minigpt.errors import UserError
from minigpt.training import budget
from minigpt.training.budget import Budget, Planner
from minigpt.training.run import train
from minigpt.training.step_times import StepTimes

TEXT = "".join(f"The {i}th traveller said that the road to {i * 7 % 113} was long.\n" for i in range(2000))


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def on_one(device: str = "cpu", world_size: int = 1) -> Any:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(world_size=world_size, is_global_zero=True, strategy=strategy)


@pytest.fixture
def a_step_takes(monkeypatch: pytest.MonkeyPatch) -> Any:
    def seconds(value: float) -> None:
        monkeypatch.setattr(budget, "measure", lambda *_: StepTimes(value, 0.0, 0, 1.0))
        monkeypatch.setattr(budget, "speeds", lambda _: {"float32": 1e14})

    return seconds


def planned(*arguments: str) -> tuple[Config, Planner]:
    planner = Planner(parse_training(arguments)[0], on_one())
    data = open_data(planner.of_text().data)
    return planner.of_training(data), planner


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", (30, None)), ("5m", (300, None)), ("1.5 h", (5400, None)), ("1000 steps", (None, 1000))],
)
def test_a_budget_is_a_time_or_a_number_of_steps(text: str, expected: tuple[Any, Any]) -> None:
    assert Budget.parse(Config(budget=text).budget or "") == expected


@pytest.mark.parametrize("text", ["5 minutes", "", "0s", "-1m", "0 steps", "m", "1000", "1.5 steps"])
def test_any_other_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="budget="):
        Config(budget=text)


def test_a_text_of_ones_own_gets_five_minutes_unless_a_length_or_recipe_is_given() -> None:
    assert parse_training(["--data.source", "x.txt"])[0].budget == "5m"
    for given in (
        ["--trainer.max_steps", "9"],
        ["--trainer.max_time", "00:00:01:00"],
        ["--config", "configs/tiny.yaml"],
    ):
        assert parse_training(["--data.source", "x.txt", *given])[0].budget is None
    assert parse_training([])[0].budget is None
    assert parse_training(["--data.source", "x.txt", "--budget", "2h"])[0].budget == "2h"


def test_what_is_given_wins_even_if_it_is_the_default(story: Path, a_step_takes: Any) -> None:
    a_step_takes(0.1)
    given = ["--model.n_layer=4", "--data.tokenizer=bpe:2048", "--optimizer.weight_decay=0", "--trainer.max_steps=600"]
    config, _ = planned("--data.source=story.txt", "--budget=10m", *given)
    assert (config.model.n_layer, config.data.tokenizer, config.optimizer.weight_decay) == (4, "bpe:2048", 0)
    assert config.trainer.max_steps == 600
    assert config.model.dropout == 0.1
    assert config.planned is not None
    assert not {name.split("=")[0].removeprefix("--") for name in given} & set(config.planned)
    assert planned("--data.source=story.txt", "--budget=10m")[0].data.tokenizer == "bpe:512"
    few, _ = planned("--data.source=story.txt", "--budget=10m", "--trainer.max_steps=60")
    assert few.model.dropout == 0, "few steps make few passes, whatever the time"


def test_a_given_width_keeps_its_number_of_heads(story: Path, a_step_takes: Any) -> None:
    a_step_takes(0.0001)
    config, _ = planned("--data.source=story.txt", "--budget=2h", "--model.n_embd=40")
    assert (config.model.n_embd, config.model.n_head) == (40, 4)


@pytest.mark.parametrize("length", ["2h", "100000 steps"])
def test_a_given_width_has_the_context_and_batch_that_suit_it(length: str, story: Path, a_step_takes: Any) -> None:
    a_step_takes(0.0001)
    planner = Planner(
        parse_training([f"--data.source={story}", f"--budget={length}", "--model.n_embd=96"])[0], on_one()
    )
    planner._fit(2048, 100_000_000)
    assert (planner.config.model.context_length, planner.config.data.batch_size) == (128, 8)


def test_a_small_text_has_a_small_model_however_long_the_run(story: Path, a_step_takes: Any) -> None:
    a_step_takes(0.0001)
    widths = []
    for n_train in (40_000, 200_000, 1_000_000):
        planner = Planner(parse_training([f"--data.source={story}", "--budget=2h"])[0], on_one())
        planner._fit(512, n_train)
        widths.append(planner.config.model.n_embd)
    assert widths == [96, 160, 256]


def test_a_short_budget_takes_a_model_that_it_can_give_enough_tokens(story: Path, monkeypatch: Any) -> None:
    def timed(config: Config, *_: Any) -> StepTimes:
        return StepTimes(1e-3 * config.model.n_layer * config.model.n_embd / 8, 0.0, 0, 1.0)

    monkeypatch.setattr(budget, "measure", timed)
    monkeypatch.setattr(budget, "speeds", lambda _: {"float32": 1e14})
    widths = [planned("--data.source=story.txt", f"--budget={time}")[0].model.n_embd for time in ("10s", "30s", "2m")]
    assert widths == sorted(widths)
    assert len(set(widths)) > 1


@pytest.mark.parametrize("length", ["5m", "2000 steps"])
def test_a_model_too_large_for_the_devices_memory_is_not_taken(length: str, story: Path, monkeypatch: Any) -> None:
    def timed(config: Config, *_: Any) -> StepTimes:
        if config.model.n_embd > 192:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return StepTimes(1e-6, 0.0, 0, 1.0)

    monkeypatch.setattr(budget, "measure", timed)
    monkeypatch.setattr(budget, "speeds", lambda _: {"float32": 1e14})
    planner = Planner(parse_training([f"--data.source={story}", f"--budget={length}"])[0], on_one())
    planner._fit(2048, 10_000_000)
    assert planner.config.model.n_embd == 192


def test_where_a_small_model_would_read_a_text_often_a_larger_one_reads_it_less(story: Path, monkeypatch: Any) -> None:
    def timed(config: Config, *_: Any) -> StepTimes:
        return StepTimes(1e-6 * config.model.n_layer * config.model.n_embd**2, 0.0, 0, 1.0)

    monkeypatch.setattr(budget, "measure", timed)
    monkeypatch.setattr(budget, "speeds", lambda _: {"float32": 1e14})
    widths = []
    for n_train in (100_000, 10_000_000):
        planner = Planner(parse_training([f"--data.source={story}", "--budget=1m"])[0], on_one())
        planner._fit(2048, n_train)
        widths.append(planner.config.model.n_embd)
    assert widths == [128, 96]


def test_more_passes_take_a_smaller_vocabulary_and_more_regularisation(story: Path, a_step_takes: Any) -> None:
    a_step_takes(0.5)
    short, _ = planned("--data.source=story.txt", "--budget=10s")
    long, _ = planned("--data.source=story.txt", "--budget=20m")
    assert (short.data.tokenizer, long.data.tokenizer) == ("bpe:2048", "bpe:512")
    assert (short.model.dropout, long.model.dropout) == (0.0, 0.2)
    assert long.optimizer.weight_decay > short.optimizer.weight_decay


def test_a_run_on_a_small_text_ends_before_its_budget(story: Path, a_step_takes: Any) -> None:
    a_step_takes(0.01)
    config, planner = planned("--data.source=story.txt", "--budget=2h")
    data = open_data(config.data)
    per_step = config.data.batch_size * config.model.context_length
    passes = config.trainer.max_steps * per_step / len(data.train.tokens)
    assert passes == pytest.approx(budget.MOST_PASSES, rel=0.02)
    assert "before its budget" in planner.report()
    assert config.model.n_embd < 192  # a larger model would only memorise faster


def test_a_budget_of_steps_sets_no_time(story: Path, a_step_takes: Any) -> None:
    a_step_takes(0.01)
    config, planner = planned("--data.source=story.txt", "--budget", "50 steps")
    assert (config.trainer.max_steps, config.trainer.max_time) == (50, None)
    assert len(planner.report().splitlines()) == 3


def test_weights_from_another_run_keep_their_model_and_tokenizer(story: Path) -> None:
    config = Config(
        budget="5m", initial_weights="runs/other", planned=["model.n_layer", "data.tokenizer", "model.dropout"]
    )
    assert Planner(config, on_one()).open == {"model.dropout"}


def test_a_budget_for_several_devices_is_refused() -> None:
    with pytest.raises(UserError, match="plans for one device, and this run has 2"):
        Planner.of(Config(budget="5m"), on_one(world_size=2))


def test_the_default_budget_is_dropped_on_several_devices(capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = parse_training(["--data.source", "x.txt"])
    found, planner = Planner.of(config, on_one(world_size=2))
    assert (found.budget, found.planned, planner) == (None, None, None)
    assert capsys.readouterr().out == "budget  none: it plans for one device, and this run has 2\n"
    with pytest.raises(UserError, match="plans for one device"):
        Planner.of(parse_training(["--data.source", "x.txt", "--budget", "5m"])[0], on_one(world_size=2))


def test_the_runs_config_is_plain_settings_that_give_the_same_run(story: Path) -> None:
    arguments = ["--data.source=story.txt", "--budget=3 steps", "--trainer.logger=false", "--attention.enabled=false"]
    sizes = ["--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.context_length=32"]
    folder = train(*parse_training([*arguments, *sizes]))
    again, _ = parse_training([f"--config={folder.config}", "--name=again"])
    assert again.planned == []
    assert again.trainer.max_steps == 3
    assert train(again).weights.read_bytes()[-1000:] == folder.weights.read_bytes()[-1000:]


def test_resume_auto_takes_what_the_budget_chose_before(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data.source=story.txt", "--budget=3 steps", "--trainer.logger=false", "--attention.enabled=false"]
    sizes = ["--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.context_length=32"]
    folder = train(*parse_training([*arguments, *sizes]))
    capsys.readouterr()
    same = train(*parse_training([*arguments, *sizes, "--resume=auto"]))
    assert same.path == folder.path
    assert "is done" in capsys.readouterr().out
