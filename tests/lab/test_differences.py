"""What two runs are compared by: whatever is changed in one of them is named, but for clocks and names."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import small_settings

from minigpt.files import write_csv
from minigpt.lab.differences import differences
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import read_checkpoint, save_checkpoint
from minigpt.training.callbacks import COLUMNS
from minigpt.training.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(small_settings(tmp_path_factory.mktemp("trained"), keep_every_n_steps=6, attention={}))


def rewritten(run: RunFolder, change: Callable[[dict], object]) -> None:
    content = read_checkpoint(run.last, mmap=False)
    change(content)
    run.last.unlink()  # it may be best.ckpt, too
    save_checkpoint(run.last, content)


def with_rows(run: RunFolder, change: Callable[[list[dict[str, str]]], object]) -> None:
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    write_csv(run.metrics, COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def flip_a_bit(tensor: torch.Tensor) -> None:
    tensor.view(-1).view(torch.uint8)[0] ^= 1


def another_map(run: RunFolder) -> None:
    with np.load(run.snapshot(6)) as arrays:
        content = dict(arrays)
    name = max(content, key=lambda name: content[name].nbytes)
    content[name].reshape(-1)[0] += 1
    np.savez(run.snapshot(6), **content)


CHANGES: dict[str, tuple[Callable[[RunFolder], object], str]] = {
    "a weight": (
        lambda run: rewritten(run, lambda c: flip_a_bit(c["state_dict"]["model.lm_head.weight"])),
        "checkpoints/last.ckpt: state_dict.model.lm_head.weight differs by up to ",
    ),
    "the optimizer's state": (
        lambda run: rewritten(run, lambda c: flip_a_bit(next(iter(c["optimizer_states"][0]["state"][0].values())))),
        "checkpoints/last.ckpt: optimizer_states.0.state.0.",
    ),
    "a setting": (
        lambda run: rewritten(run, lambda c: c["minigpt"]["config"].update(seed=3)),
        "checkpoints/last.ckpt: minigpt.config.seed differs: 1337 against 3",
    ),
    "a count": (
        lambda run: rewritten(run, lambda c: c["minigpt"].update(tokens_seen=7)),
        "checkpoints/last.ckpt: minigpt.tokens_seen differs: 768 against 7",
    ),
    "a loss": (
        lambda run: with_rows(run, lambda rows: rows[3].update({"train/loss": "9"})),
        "metrics.csv: step 4: train/loss ",
    ),
    "a row twice": (
        lambda run: with_rows(run, lambda rows: rows.insert(3, rows[3])),
        "metrics.csv: 12 rows against 13",
    ),
    "a gap": (lambda run: with_rows(run, lambda rows: rows.pop(3)), "metrics.csv: 12 rows against 11"),
    "kept weights": (
        lambda run: shutil.copy(run.kept(12), run.kept(6)),
        "checkpoints/step_000006.safetensors: blocks.0.",
    ),
    "weights that are gone": (lambda run: run.kept(6).unlink(), "checkpoints/step_000006.safetensors: only in "),
    "something left over": (lambda run: (run.path / ".x.tmp").touch(), ".x.tmp: only in "),
    "a sample": (lambda run: run.samples(6).write_text("other"), "samples/step_000006.txt: bytes differ"),
    "a map": (another_map, "attention/step_000006.npz: "),
    "the page": (lambda run: run.attention_page.write_text("other"), "attention.html: pages differ"),
    "the recipe": (
        lambda run: run.config.write_text(run.config.read_text().replace("seed: 1337", "seed: 7")),
        "config.yaml: seed differs: 1337 against 7",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_is_changed_is_named(what: str, trained: RunFolder, tmp_path: Path) -> None:
    change, words = CHANGES[what]
    other = RunFolder(Path(shutil.copytree(trained.path, tmp_path / trained.path.name)))
    assert differences(trained, other) == []
    change(other)
    found = differences(trained, other)
    assert found
    assert found[0].startswith(words), found


def test_clocks_and_names_and_dashboards_are_no_difference(trained: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(Path(shutil.copytree(trained.path, tmp_path / "another")))

    def change(content: dict) -> None:
        content["minigpt"]["config"] |= {"name": "another", "runs_dir": "elsewhere"}
        content["callbacks"]["Metrics"]["seconds"] = 77.0

    rewritten(other, change)
    with_rows(other, lambda rows: [row.update({"seconds": "7", "perf/tokens_per_second": "7"}) for row in rows])
    page = other.attention_page.read_text()
    other.attention_page.write_text(page.replace(f"{trained.path.name}: attention", "another: attention"))
    (other.path / "wandb").mkdir()
    (other.path / "wandb" / "run.log").touch()
    assert differences(trained, other) == []
