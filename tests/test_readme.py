"""The README's commands run, as they stand there."""

import re
import subprocess
from pathlib import Path

from scripts import ROOT, cold_too, run_line, run_script

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Lines of the shell blocks that start our programs, without the demo and what trains for longer."""
    lines = [
        line.split("  #")[0].strip() for language, text in BLOCKS if language == "sh" for line in text.splitlines()
    ]
    return [
        line
        for line in lines
        if re.search(r"python .*(\.py|minigpt\.inspection|training\.doctor)", line) and "demo" not in line
    ]


@cold_too
def test_the_commands_run_in_the_order_they_stand_in_and_what_they_made_serves_the_python_block(
    cold: bool, tmp_path: Path
) -> None:
    for name in ("train.py", "sample.py", "configs", "README.md"):  # as a clone has them, and no run
        (tmp_path / name).symlink_to(ROOT / name)
    assert len(commands()) >= 7
    for command in commands():
        result = run_line(command, tmp_path, cold)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    (block,) = [text for language, text in BLOCKS if language == "python" and "minigpt.load" in text]
    result = run_script("-c", block, cwd=tmp_path, cold=cold)
    assert result.returncode == 0, result.stderr
    assert "2 torch.Size([1, 2, 14, 14])" in result.stdout


def test_the_environment_is_activated_before_the_first_command_of_ours() -> None:
    first = min(README.index(line) for line in ("python train.py", "python sample.py", "python -m minigpt"))
    typed = README[: README.index("python -m venv")]
    assert README.index("make demo") < typed.index(". .venv/bin/activate") < first


def test_the_callback_block_is_a_recipe(tmp_path: Path) -> None:
    from minigpt.cli import parse_training

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
