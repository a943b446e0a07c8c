"""Every recipe parses and says what it is."""

from pathlib import Path

import pytest
from scripts import ROOT

from minigpt.cli.parsing import parse_training
from minigpt.config import Config

RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))


def test_there_are_recipes() -> None:
    names = {path.stem for path in RECIPES}
    assert {"demo", "tiny", "overfit", "shakespeare_char", "gpt2_124m"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_names_its_run_after_itself(path: Path) -> None:
    config, _ = parse_training(["--config", str(path)])
    assert config.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_begins_with_what_it_is_and_its_machine_time_and_loss(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for heading in ("# What:", "# Machine:", "# Time:", "# Loss:"):
        assert heading in comment, f"{path.name} does not say {heading}"


def test_the_gpt2_recipe_has_the_shape_of_gpt2_small() -> None:
    import dataclasses

    import torch

    from minigpt.config import GPTConfig
    from minigpt.model.gpt import GPT

    config, _ = parse_training(["--config", str(ROOT / "configs" / "gpt2_124m.yaml")])
    with_tokens = dataclasses.replace(config.model, vocab_size=50257)
    assert with_tokens == GPTConfig.gpt2_family()
    with torch.device("meta"):
        assert GPT(with_tokens).n_parameters == 124_439_808


def test_the_defaults_are_the_demo() -> None:
    demo, _ = parse_training(["--config", str(ROOT / "configs" / "demo.yaml")])
    assert demo.model == Config().model
    assert demo.data == Config().data
    assert demo.optimizer == Config().optimizer
