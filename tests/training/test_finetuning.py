"""What a run chooses that starts from trained weights, by where they come from and what is given."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_budget import TEXT, on_one

from minigpt.cli.parsing import parse_training
from minigpt.config import Config, GPTConfig, OptimizerConfig
from minigpt.data.open import open_data
from minigpt.data.tokenizers.base import make_tokenizer
from minigpt.model.gpt import GPT
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import save_weights
from minigpt.training import budget
from minigpt.training.budget import Planner
from minigpt.training.finetuning import CONTEXT, FULL_RATE, LORA_RATE, PASSES, is_pretrained, with_defaults
from minigpt.training.initial import taken_over
from minigpt.training.run import train
from minigpt.training.step_times import StepTimes


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as `minigpt import` makes one, with a long context, and a text beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text(TEXT)
    model = GPT(GPTConfig(vocab_size=257, context_length=4096, n_layer=1, n_head=2, n_embd=16))
    tokenizer = make_tokenizer("bytes", [], [])
    run = RunFolder.create(tmp_path / "runs", "theirs")
    config = Config(model=model.config)
    run.config.write_text(yaml.safe_dump(config.to_dict()))
    save_weights(run.weights, model, config, tokenizer)
    return run.path.relative_to(tmp_path)


def started(*arguments: str) -> Config:
    return taken_over(parse_training(arguments)[0])[0]


def own_run(folder: Path, initial_weights: str | None = None) -> str:
    """A folder that looks as if a run had trained in it."""
    run = RunFolder.create(folder / "runs", "own")
    run.last.parent.mkdir()
    run.config.write_text(yaml.safe_dump({"initial_weights": initial_weights}))
    return str(run.path)


def test_another_programs_weights_are_trained_in_small_steps(imported: Path) -> None:
    config = started("--from", str(imported), "--data.source=story.txt", "--trainer.max_steps=60")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.warmup_steps) == ("adamw", FULL_RATE, 6)
    assert config.model.context_length == CONTEXT
    assert started("--from", str(imported), "--lora=4").optimizer.learning_rate == LORA_RATE


def test_what_is_given_stays(imported: Path) -> None:
    given = ["--optimizer.learning_rate=1e-3", "--model.dropout=0.1", "--model.context_length=2048"]
    config = started("--from", str(imported), *given)
    assert config.optimizer.name == "adamw"
    assert (config.optimizer.learning_rate, config.model.dropout, config.model.context_length) == (1e-3, 0.1, 2048)
    optimizer = started("--from", str(imported), "--optimizer.name=muon").optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("muon", OptimizerConfig().learning_rate)


def test_a_run_of_ones_own_goes_on_with_the_same_optimizer(tmp_path: Path) -> None:
    config = Config(initial_weights=own_run(tmp_path), budget="5m")
    assert with_defaults(config, GPTConfig()) == config


def test_learned_positions_keep_their_number() -> None:
    config = Config(initial_weights="hf:gpt2")
    source = GPTConfig(context_length=2048, position="learned")
    assert "model.context_length" in with_defaults(config, source).open_settings


def test_weights_are_pretrained_where_another_program_or_the_run_before_had_them_from_one(
    imported: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text("{}")
    own = own_run(tmp_path)
    found = {
        "hf:gpt2": True,
        str(imported): True,
        str(imported / "model.safetensors"): True,
        str(theirs): True,
        own: False,
        f"{own}/checkpoints/last.ckpt": False,
        own_run(tmp_path, own): False,
        own_run(tmp_path, (tuned := own_run(tmp_path, "hf:gpt2"))): True,
        f"{tuned}/checkpoints/last.ckpt": True,
        own_run(tmp_path, str(tmp_path / "runs" / "own-5")): False,  # of itself
    }
    assert {path: is_pretrained(Config(initial_weights=path)) for path in found} == found
    assert not is_pretrained(Config())


@pytest.mark.parametrize(("seconds", "rows"), [(0.001, 4), (60.0, 1)])
def test_a_budget_reads_the_text_a_few_times_without_dropout(
    seconds: float, rows: int, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(config: Config, *_: Any) -> StepTimes:
        return StepTimes(seconds * config.data.batch_size, 0.0, 0, 1.0)

    monkeypatch.setattr(budget, "measure", measured)
    monkeypatch.setattr(budget, "speeds", lambda _: {"float32": 1e6})  # so that the model seems too large
    planner = Planner(started("--from", str(imported), "--data.source=story.txt"), on_one())
    data = open_data(planner.of_text().data)
    config = planner.of_training(data)
    assert (config.data.batch_size, config.model.dropout, config.optimizer.weight_decay) == (rows, 0.0, 0.0)
    steps = config.trainer.max_steps
    if seconds < 1:
        assert steps * rows * CONTEXT / len(data.train.tokens) == pytest.approx(PASSES, rel=0.05)
        assert f"ends after {PASSES} passes" in planner.report()
        assert config.optimizer.warmup_steps == steps // 10
    else:
        assert config.optimizer.warmup_steps < 2
        assert steps >= 1


def test_the_run_says_where_it_starts(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = [
        "--model.context_length=32",
        "--trainer.logger=false",
        "--attention.enabled=false",
        "--trainer.enable_progress_bar=false",
    ]
    folder = train(*parse_training(["--from", str(imported), "--data.source=story.txt", "--budget=2 steps", *quiet]))
    said = capsys.readouterr().out
    line = f"from    {imported}, trained on much more than this text: adamw at 5e-05, dropout 0, weight decay 0\n"
    assert line in said
    assert "length: about 2 steps" in said
    assert is_pretrained(Config(initial_weights=str(folder.path)))
