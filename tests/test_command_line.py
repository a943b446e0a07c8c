"""Command lines that are printed work as they stand, wherever they are typed."""

import contextlib
import os
import shlex
import sys
from pathlib import Path

import pytest
from scripts import ROOT

from minigpt.cli import parsing
from minigpt.cli.commands import COMMANDS
from minigpt.cli.main import dispatch
from minigpt.command_line import command, tool
from minigpt.config import SampleConfig
from minigpt.errors import UserError


@pytest.fixture
def activated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell with this environment."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("activated")
def test_a_script_is_named_only_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert command("train", "--resume", Path("runs/demo")) == "python train.py --resume runs/demo"
    assert command("sample", Path("runs/demo")) == "python sample.py runs/demo"
    monkeypatch.chdir(tmp_path)
    assert command("train", "--resume", Path("runs/demo")) == "python -m minigpt train --resume runs/demo"
    (tmp_path / "train.py").write_text("print('of another project')")
    assert command("train") == "python -m minigpt train"
    (tmp_path / "sample.py").symlink_to(ROOT / "sample.py")
    assert command("sample") == "python sample.py"


@pytest.mark.usefixtures("activated")
def test_who_typed_minigpt_is_told_minigpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(Path(sys.executable).with_name("minigpt")), "train", "tiny"])
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        assert command("train", "--resume", Path("runs/demo")) == "minigpt train --resume runs/demo"


def test_the_python_is_named_by_its_path_where_another_one_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "bin" / "python"))
    assert command("doctor") == "'my env/bin/python' -m minigpt doctor"
    monkeypatch.setattr(sys, "executable", "/opt/bin/python3")
    assert command("doctor") == "/opt/bin/python3 -m minigpt doctor"


def test_a_librarys_program_is_that_of_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "env" / "bin"
    own.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert tool("wandb", "sync", Path("my runs")) == "wandb sync 'my runs'"  # not installed here: whichever is found
    (own / "wandb").touch(mode=0o755)
    assert tool("wandb", "sync") == "env/bin/wandb sync"
    monkeypatch.setenv("PATH", str(own))
    assert tool("wandb", "sync") == "wandb sync"


@pytest.mark.usefixtures("activated")
@pytest.mark.parametrize("name", ["my runs/demo", "it's", "$HOME", "-x/demo", "auto", "ü;rm"])
def test_any_name_of_a_run_is_understood_as_it_was_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.yaml").write_text("seed: 5\n")
    config, resume = parsing.parse_training(shlex.split(command("train", "--resume", Path(name)))[4:])
    assert config.seed == 5
    assert resume is not None
    assert resume.absolute() == tmp_path / name
    run = parsing.parse_options(shlex.split(command("sample", Path(name)))[4:], SampleConfig).run
    assert Path(run).absolute() == tmp_path / name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: minigpt COMMAND"),
        (["--help"], "sample        Write text"),
        *(([name, "--help"], f"usage: minigpt {name}") for name in COMMANDS),
    ],
    ids=" ".join,
)
def test_each_command_has_its_help(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        dispatch(arguments)
    assert words in capsys.readouterr().out


def test_a_command_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="minigpt trian: write train or sample or .*: did you mean train"):
        dispatch(["trian"])
