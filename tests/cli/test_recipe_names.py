"""Recipes are found by name or path, from anywhere, and travel with the package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT

from minigpt.cli import recipes
from minigpt.cli.parsing import parse_training
from minigpt.errors import UserError


@pytest.mark.parametrize("given", ["demo", "cosine"])
def test_a_name_is_found_from_anywhere(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_training([given])[0].name == given
    assert parse_training(["--config", given, "--seed", "3"])[0].name == given
    assert set(recipes.recipes()) == {path.stem for path in (ROOT / "configs").rglob("*.yaml")}


def test_a_file_comes_before_a_recipe_of_ones_own_and_this_before_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text("name: own")
    assert parse_training(["tiny"])[0].name == "own"
    (tmp_path / "tiny").mkdir()
    assert parse_training(["tiny"])[0].name == "own"  # a folder is no recipe
    (tmp_path / "tiny").rmdir()
    (tmp_path / "tiny").write_text("name: file")
    assert parse_training(["tiny"])[0].name == "file"
    assert parse_training(["demo"])[0].name == "demo"


def test_later_recipes_and_options_win_over_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 7\nmodel: {n_layer: 3}")
    config, _ = parse_training(["demo", str(tmp_path / "mine.yaml"), "--model.n_layer", "5"])
    assert (config.name, config.seed, config.model.n_layer, config.model.n_embd) == ("demo", 7, 5, 192)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("dmeo", "did you mean demo?"),
        ("demo.yaml", "did you mean demo?"),
        ("configs/demo.yml", "did you mean demo?"),
        ("zzz", "there are demo, gpt2_124m, "),
    ],
)
def test_a_recipe_that_is_none_is_refused_with_a_similar_name_or_all(
    given: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        recipes.find_recipe(given)
    assert str(refused.value).startswith(f"{given}: no such file or directory")
    assert words in str(refused.value)


@pytest.mark.slow  # builds the package
def test_the_installed_package_has_the_recipes(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    install = ["install", "-q", "--no-deps", "--no-build-isolation", "--target", "installed", "."]
    subprocess.run([sys.executable, "-m", "pip", *install], cwd=tmp_path, check=True)
    shutil.rmtree(tmp_path / "src")
    shutil.rmtree(tmp_path / "configs")
    script = "import sys; sys.path.insert(0, 'installed'); from minigpt.cli import parsing, recipes; "
    script += "print(recipes.__file__, parsing.parse_training(['cosine', 'demo'])[0].name)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/installed/minigpt/cli/recipes.py demo\n"
