"""The comparison of recipes: equal text and budget or a refusal, finished runs kept, one table."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scripts import run_script
from small_runs import small_text

from minigpt.cli.main import dispatch
from minigpt.cli.variants import load_variants
from minigpt.config import CompareConfig
from minigpt.errors import UserError
from minigpt.inspection.intervals import student_t
from minigpt.lab import compare as compare_module
from minigpt.lab.compare import Result, by_name, dashboard_names, make_rows
from minigpt.lab.comparison_table import ComparisonRow, draw_curves, format_table, paired_difference
from minigpt.model.gpt import GPT
from minigpt.runs.folder import RunFolder
from minigpt.training.loss import model_loss
from minigpt.training.run import train


def recipe(folder: Path, name: str, **sections: dict[str, Any]) -> str:
    """A recipe of a second, in a file."""
    (folder / "text.txt").write_text(small_text())
    settings: dict[str, Any] = {
        "name": name,
        "model": {"context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 16},
        "data": {"source": str(folder / "text.txt"), "tokenizer": "bytes", "dir": str(folder / "data")},
        "trainer": {"max_steps": 3, "logger": False, "accelerator": "cpu"},
        "sampling": {"prompts": []},
        "attention": {"enabled": False},
        "compile": False,
    }
    for section, values in sections.items():
        settings[section] = settings[section] | values
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def compare(folder: Path, *recipes: str) -> tuple[list[dict[str, str]], str]:
    """The rows of runs.csv and the output of a comparison with one seed."""
    result = run_script("-m", "minigpt", "compare", *recipes, "--seeds", "5", "--out", folder / "out", cwd=folder)
    assert result.returncode == 0, result.stderr
    return read_runs(folder / "out"), result.stdout


def read_runs(out: Path) -> list[dict[str, str]]:
    with (out / "runs.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow  # two Pythons that import all
def test_a_signal_ends_the_trainings_too_and_what_they_have_is_saved(tmp_path: Path) -> None:
    endless = recipe(tmp_path, "endless", trainer={"max_steps": 1_000_000, "val_check_interval": 1_000_000})
    command = [sys.executable, "-m", "minigpt", "compare", endless, "--seeds", "5", "--out", tmp_path / "out"]
    folder = RunFolder(tmp_path / "out" / "endless-seed5")
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not folder.metrics.exists():
            assert process.poll() is None
            time.sleep(0.05)
        training = int((folder.path / ".lock").read_text().split()[0])
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors == "stopped; finished runs are kept; repeat the command to continue\n"
    assert folder.last.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)


class Here(Executor):
    """Trains in this process: a new one for each run imports everything anew."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_result(function(*arguments, **named))
        return future


def test_recipes_are_trained_once_and_again_only_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = recipe(tmp_path, "first"), recipe(tmp_path, "second", model={"similarity": "cosine"})
    (row,), output = compare(tmp_path, first)  # in a process of its own
    assert (row["recipe"], row["seed"]) == ("first", "5")
    assert "1 runs, 0 of them finished before" in output
    with (tmp_path / row["folder"] / "metrics.csv").open() as file:
        assert list(csv.DictReader(file))[-1]["val/loss"] == row["val_loss"]
    assert int(row["peak_memory_bytes"]) > 100e6
    config = by_name(load_variants(CompareConfig([first])))["first"]
    alone = train(dataclasses.replace(config, seed=5, runs_dir=str(tmp_path)))
    with alone.metrics.open() as file:
        loss = float(list(csv.DictReader(file))[-1]["val/loss"])
    assert float(row["val_loss"]) == pytest.approx(loss, rel=1e-5)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() in output
    assert (tmp_path / "out" / "table.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(compare_module, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(compare_module, "usable_cores", lambda: 1)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    command = ["compare", first, second, "--seeds", "5", "--out", str(tmp_path / "out")]
    tables = []
    for model in ({"similarity": "cosine"}, {"similarity": "uniform", "position": "none"}):
        recipe(tmp_path, "second", model=model)
        dispatch(command)
        assert "2 runs, 1 of them finished before" in capsys.readouterr().out
        tables.append({each["recipe"]: each for each in read_runs(tmp_path / "out")})
    assert tables[0]["first"] == tables[1]["first"] == row
    assert tables[0]["second"] != tables[1]["second"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"tokenizer": "chars"}}, "data.tokenizer is bytes in first and chars in second"),
        ({"trainer": {"max_steps": 4}}, "trainer.max_steps is 3 in first and 4 in second"),
        ({"model": {"context_length": 8}}, "model.context_length is 16 in first and 8 in second"),
        ({"trainer": {"max_time": "00:00:01:00"}}, "trainer.max_time=00:00:01:00 gives a faster run more steps"),
        ({"model": {"similarity": "uniform"}}, "model.position=rotary rotates queries and keys"),
    ],
)
def test_what_would_be_no_comparison_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    paths = [recipe(tmp_path, "first"), recipe(tmp_path, "second", **changes)]
    with pytest.raises(UserError, match=expected):
        by_name(load_variants(CompareConfig(paths)))


def test_a_number_of_steps_for_all_makes_budgets_equal(tmp_path: Path) -> None:
    paths = [recipe(tmp_path, "first"), recipe(tmp_path, "second", trainer={"max_time": "00:00:01:00"})]
    recipes = by_name(load_variants(CompareConfig(paths, max_steps=7)))
    assert {(c.trainer.max_steps, c.trainer.max_time) for c in recipes.values()} == {(7, None)}


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, "first")
    with pytest.raises(UserError, match="name=first is another recipe"):
        by_name(load_variants(CompareConfig([path, path])))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "recipes is missing"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["{recipe}", "--seeds", "1", "x"], "seeds=x: expected"),
        (["{recipe}", "--seeds", "1", "1"], "each seed once"),
        (["{recipe}", "--seeds", "-1"], "seeds"),
        (["{recipe}", "--jobs", "0"], "jobs=0: must be at least 1"),
        (["{recipe}", "--max_step", "3"], "did you mean --max_steps?"),
        (["{recipe}", "--out", "{recipe}"], "cannot be created"),
        (["{recipe}", "--out", "{folder}"], "not the results of a comparison"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    path = recipe(tmp_path, "first")
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError) as caught:
        dispatch(["compare", *(argument.format(recipe=path, folder=tmp_path) for argument in arguments)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_command_with_code_2_before_torch_is_loaded(tmp_path: Path) -> None:
    result = run_script("-X", "importtime", "-m", "minigpt", "compare", "nowhere.yaml", cold=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: recipe nowhere.yaml: no such file")
    assert "lightning" not in result.stderr
    assert " torch\n" not in result.stderr


def result(recipe: str, seed: int, loss: float) -> Result:
    return Result(recipe, seed, "", 1000, loss, loss / 2, 5_000_000, "folder")


def test_rows_are_sorted_by_the_mean_over_seeds_and_show_its_spread() -> None:
    results = [result("a", 1, 4.0), result("a", 2, 4.2), result("b", 1, 3.9), result("b", 2, 4.1)]
    rows = make_rows({"a": None, "b": None}, results, {"a": 10.0, "b": 2000.0}, {"a": "a", "b": "b"})  # type: ignore[dict-item]
    assert [row.recipe for row in rows] == ["b", "a"]
    lines = format_table(rows).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells == ["b", "1,000", "4.000 ± 0.100", "2.000 ± 0.050", "", "2,000", "5 MB"]
    assert len({len(line) for line in lines[:4]}) == 1


def test_speeds_are_measured_on_the_accelerator_that_the_recipe_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precise = {"trainer": {"precision": "64-true"}}
    variants = load_variants(CompareConfig([recipe(tmp_path, "first"), recipe(tmp_path, "second", **precise)]))
    dtypes: list[torch.dtype] = []

    def loss(model: GPT, *data: torch.Tensor) -> torch.Tensor:
        dtypes.append(model.head_weight.dtype)
        assert model.head_weight.device.type == "cpu"
        return model_loss(model, *data)

    monkeypatch.setattr("minigpt.training.loss.model_loss", loss)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the recipes name the CPU
    speeds = compare_module.measure_speeds({v.config.name: v.config for v in variants}, rounds=1)
    assert min(speeds.values()) > 0
    assert sorted(map(str, dtypes)) == 3 * ["torch.float32"] + 3 * ["torch.float64"]


def test_one_seed_has_no_spread_and_the_picture_is_drawn(tmp_path: Path) -> None:
    rows = [ComparisonRow("only", 10, [2.0], [1.0], 5.0, 1e6)]
    assert "±" not in format_table(rows)
    draw_curves(rows, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_differences_to_the_first_row_are_paired_by_seed_with_students_interval() -> None:
    mean, half = paired_difference([4.1, 4.3, 4.5], [4.0, 4.1, 4.2])  # 0.1, 0.2, 0.3: error 0.1 / sqrt(3)
    assert (mean, half) == (pytest.approx(0.2), pytest.approx(4.3027 * 0.1 / 3**0.5))
    for degrees, quantile in {11: 2.20099, 20: 2.08596, 120: 1.97993}.items():
        assert student_t(degrees) == pytest.approx(quantile, abs=2e-4)
    rows = [ComparisonRow("a", 1, [4.0, 4.1, 4.2], [2.0, 2.1, 2.2], 1.0, 1e6)]
    rows.append(dataclasses.replace(rows[0], recipe="b", val_loss=[4.1, 4.3, 4.5], bits_per_byte=[2.5, 2.6, 2.7]))
    assert "+0.200 ± 0.248" in format_table(rows)
    assert "+0.500 ± 0.000" in format_table(rows, in_bits=True)


def test_one_seed_has_a_difference_without_an_interval_and_the_table_says_so() -> None:
    rows = [ComparisonRow(name, 1, [loss], [1.0], 1.0, 1e6) for name, loss in (("a", 4.0), ("b", 4.2))]
    assert "+0.200 |" in format_table(rows)
    assert "One seed gives no interval" in format_table(rows)


def test_set_may_vary_the_tokenizer_but_not_the_text(tmp_path: Path) -> None:
    path = recipe(tmp_path, "first")
    assert len(by_name(load_variants(CompareConfig([path], set=["data.tokenizer=bytes,chars"])))) == 2
    with pytest.raises(UserError, match=r"--set data.source=a.txt,b.txt: varies what must be equal"):
        by_name(load_variants(CompareConfig([path], set=["data.source=a.txt,b.txt"])))


def test_wandb_groups_the_runs_of_a_comparison_unless_the_user_has_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    settings = {"optimizer.learning_rate": "0.001", "model.window": "[8,null]"}
    assert dashboard_names(tmp_path / "rates", "tiny-a", settings) == {
        "WANDB_RUN_GROUP": "rates",
        "WANDB_JOB_TYPE": "tiny-a",
        "WANDB_TAGS": "learning_rate=0.001,window=[8 null]",
    }
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_TAGS", "paper")
    names = dashboard_names(tmp_path / "rates", "tiny-a", {})
    assert (names["WANDB_RUN_GROUP"], names["WANDB_TAGS"]) == ("mine", "paper,tiny-a")
