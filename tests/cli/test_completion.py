"""The shell's completion knows every command, option and choice."""

import subprocess
from pathlib import Path

import pytest

from minigpt.cli.main import completion, dispatch
from minigpt.errors import UserError

TRY = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_minigpt; echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "minigpt.sh"
    path.write_text(completion("shtab-bash"))
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["pr"], "prepare prove-resume"),
        (["train", "--model.n_la"], "--model.n_layer"),
        (["train", "--model.norm", ""], "rmsnorm layernorm"),
        (["sample", "runs/demo", "--temp"], "--temperature"),
        (["prove-resume", "--ki"], "--kills --kill_seed"),
    ],
    ids=" ".join,
)
def test_bash_completes(words: list[str], completed: str, script: Path) -> None:
    command = ["bash", "-c", TRY, "bash", str(script), "minigpt", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(completed.split())


@pytest.mark.parametrize("kind", ["shtab-nosuchshell", "bash"])
def test_a_shell_that_is_not_known_is_one_line(kind: str) -> None:
    with pytest.raises(UserError, match=f"--print_completion {kind}: .* shtab-bash, shtab-zsh"):
        dispatch(["--print_completion", kind])
