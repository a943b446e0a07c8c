"""README: its recipe, links, tree and length. test_commands.py types its commands."""

import re
import subprocess
from pathlib import Path

from scripts import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_environment_is_activated_before_the_first_command_of_ours() -> None:
    first = min(README.index(line) for line in ("python train.py", "python sample.py", "minigpt "))
    typed = README[: README.index("python -m venv")]
    assert README.index("make demo") < typed.index(". .venv/bin/activate") < first


def test_the_callback_block_is_a_recipe(tmp_path: Path) -> None:
    from minigpt.cli.parsing import parse_training

    (block,) = [text for language, text in BLOCKS if language == "yaml"]
    (tmp_path / "recipe.yaml").write_text(block)
    config, _ = parse_training(["--config", str(tmp_path / "recipe.yaml")])
    assert config.trainer.callbacks


def test_files_and_pictures_that_are_linked_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_files_named_in_the_tree_are_there() -> None:
    (tree,) = [text for language, text in BLOCKS if not language]
    for name in re.findall(r"[\w]+\.(?:py|html)", tree):
        assert list(ROOT.glob(f"{name}")) or list((ROOT / "src").rglob(name)), name


def test_the_readme_stays_short() -> None:
    assert README.count("\n") < 250


def test_make_alone_prints_its_targets() -> None:
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    for target in ("demo", "test", "lint", "types"):
        assert re.search(rf"^  make {target} +\S", result.stdout, re.MULTILINE)
