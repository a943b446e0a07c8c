"""`minigpt prepare` and `peek`, and what training says of a text: one line, exit code 2, nothing left behind."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT, run_script

from minigpt.cli.main import dispatch
from minigpt.cli.parsing import parse_training
from minigpt.errors import UserError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"a text of number {i}"}) + "\n" for i in range(40)))
    return path


def run_data(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return run_script("-m", "minigpt", *arguments, **options)


def test_prepare_says_what_there_is_and_where(rows: Path, tmp_path: Path, bare_environment: dict[str, str]) -> None:
    arguments = ("--data.source", rows, "--data.tokenizer", "bytes", "--data.dir", tmp_path / "data")
    result = run_data("prepare", *arguments, env=bare_environment)
    assert (result.returncode, result.stderr) == (0, "")
    train, val, folder = result.stdout.splitlines()
    assert train.startswith("train  ")
    assert val.startswith("val    ")
    assert (Path(folder.removeprefix("-> ")) / "manifest.json").is_file()


def test_standard_input_becomes_a_text(tmp_path: Path) -> None:
    arguments = ("--data.source", "-", "--data.tokenizer", "bytes", "--data.dir", tmp_path / "data")
    result = run_data("prepare", *arguments, input="a line of text\r\n" * 100)
    assert (result.returncode, result.stderr) == (0, "")
    (kept,) = (tmp_path / "data" / "stdin").iterdir()
    assert kept.read_bytes() == b"a line of text\r\n" * 100


def test_peek_with_a_recipe_shows_its_first_batch(rows: Path, tmp_path: Path) -> None:
    arguments = ("--config", "configs/tiny.yaml", "--data.source", rows, "--data.dir", tmp_path / "data")
    result = run_data("peek", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "the first batch has 8 rows of 64 tokens; 2 of them" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pepare"], "minigpt pepare: write train or sample or"),
        (["pepare"], "did you mean prepare?"),
        (["--data.source", "a.txt"], "minigpt --data.source: write train or sample or"),
        (["prepare", "--data.sorce", "a.txt"], "unknown option --data.sorce: did you mean --data.source?"),
        (["prepare", "a.txt"], "a.txt: not a recipe; a text is named by --data.source a.txt"),
        (["prepare", "--data.source", ""], "data.source is empty"),
        (["prepare", "--data.source", "[]"], "data.source is empty"),
        (
            ["prepare", "--data.source", "[a, b]", "--data.weights", "[1]"],
            "there are 2 sources; give one weight for each",
        ),
        (["prepare", "--data.source", "[a, b]", "--data.weights", "[1, 0]"], "a weight is a number above 0"),
        (["prepare", "--data.source", "[a, a]"], "a source is named twice"),
        (["prepare", "--data.encoding_errors", "ignore"], "expected error, replace or skip"),
        (["prepare", "--data.token_type", "uint8"], "expected auto, uint16 or uint32"),
        (["prepare", "--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        dispatch(arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_and_recipes_are_those_of_training() -> None:
    recipe = ["--config", "configs/tiny.yaml", "--data.mode", "examples", "--seed", "7"]
    config = parse_training(recipe)[0]
    assert (config.data.mode, config.seed, config.model.context_length) == ("examples", 7, 64)


@pytest.mark.parametrize("arguments", [["prepare", "--help"], ["peek", "-h"]], ids=" ".join)
def test_help_lists_the_settings(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        dispatch(arguments)
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"minigpt {arguments[0]}" in out
    assert "--data.source" in out


def locks(folder: Path) -> set[str]:
    """Names of the empty files that keep two processes apart."""
    return {path.name for path in (folder / "data").glob(".*.lock")}


def make_missing(folder: Path) -> str:
    return "no such file or folder"


def make_empty(folder: Path) -> str:
    (folder / "text").write_text("")
    return "no text in it, all files are empty"


def make_broken(folder: Path) -> str:
    (folder / "text").write_bytes(b"caf\xe9")
    return "text is not UTF-8 text (byte 3)"


def make_bomb(folder: Path) -> str:
    (folder / "text.gz").write_bytes(gzip.compress(bytes(1 << 24)) * 16)
    (folder / "text").symlink_to(folder / "text.gz")
    return "decompresses to more than 100 times its length"


def make_table(folder: Path) -> str:
    (folder / "text.csv").write_text("id,story\n1,one\n")
    return "has no column 'text'; give one of these as data.text_column: 'id', 'story'"


ERRORS = {
    "text": make_missing,
    "text ": make_empty,
    "text  ": make_broken,
    "text.gz": make_bomb,
    "text.csv": make_table,
}


def test_each_mistake_ends_in_one_line_and_leaves_the_users_files_alone(tmp_path: Path) -> None:
    for name, make in ERRORS.items():
        folder = tmp_path / make.__name__
        folder.mkdir()
        expected = make(folder)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        arguments = (
            "--data.source",
            folder / name.strip(),
            "--data.tokenizer",
            "bytes",
            "--data.dir",
            tmp_path / "data",
        )
        result = run_data("prepare", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: data.source")
        assert expected in line
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        left = {path.name for path in (tmp_path / "data").glob("*")}
        assert left <= {".scans.json", "huggingface"} | locks(tmp_path)


def test_training_on_a_text_shorter_than_one_window_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a short text\n")
    arguments = ("--config", "configs/tiny.yaml", "--data.source", text, "--data.dir", tmp_path / "data")
    result = run_script("train.py", *arguments, "--runs_dir", tmp_path / "runs")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "a window of model.context_length=64 needs 65: give more text or a shorter context" in line
    assert not list((tmp_path / "runs").glob("*/config.yaml"))
    assert text.read_text() == "a short text\n"


def test_ctrl_c_ends_without_a_traceback_and_a_second_try_goes_on(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("".join(f"line {i} of some text\n" for i in range(1_000_000)))
    arguments = ["--data.source", text, "--data.tokenizer", "bpe:300", "--data.dir", tmp_path / "data"]
    command = [sys.executable, "-m", "minigpt", "prepare", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("training a byte-level BPE")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in errors
    assert len(list((tmp_path / "data").glob(".preparing-*"))) == 1
