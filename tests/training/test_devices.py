"""Two processes on the CPU train the same run as one, with copies of the weights (ddp) or shares of them (fsdp2)."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scripts import bare_environment, run_script
from small_runs import small_settings
from test_resume import assert_same_run, assert_same_weights

from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model

STRATEGIES = {1: "auto", 2: "ddp"}
FSDP2 = {"optimizer": {"name": "adamw", "beta2": 0.99}, "trainer": {"gradient_clip_val": None}}
"""Shares of a gradient are added up to its norm in another order: bit for bit only where nothing is clipped."""


def losses(folder: Path) -> list[tuple[float, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(float(row["train/loss"] or "nan"), float(row["val/loss"] or "nan")) for row in csv.DictReader(file)]


def train_on(
    tmp_path: Path,
    devices: int,
    strategy: str | None = None,
    *,
    max_steps: int = 12,
    resume: Path | None = None,
    optimizer: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **sections: Any,
) -> Path:
    """The same global batch of 4 windows: in two micro-batches of one process, or in one of each of two."""
    about_devices = {
        "devices": devices,
        "strategy": strategy or STRATEGIES[devices],
        "accumulate_grad_batches": 2 // devices,
        "val_check_interval": 12 // devices,
        "max_steps": max_steps,
    }
    config = small_settings(
        tmp_path,
        model={"dropout": 0.1, "n_embd": 32} | sections.pop("model", {}),
        data={"batch_size": 2},
        trainer=about_devices | (trainer or {}),
        # so that it does not depend on max_steps
        optimizer={"warmup_steps": 3, "schedule": "constant"} | (optimizer or {}),
        attention={"max_tokens": 12, "every_n_steps": 4},
        keep_every_n_steps=4,
        name=f"on{devices}for{max_steps}",
        **sections,
    )
    recipe = tmp_path / "recipe.yaml"
    # A resumed run is the same run, under its name.
    settings = config.to_dict() | ({} if resume is None else {"name": resume.name})
    recipe.write_text(yaml.safe_dump(settings))
    arguments = ("--config", recipe) if resume is None else ("--resume", resume, "--config", recipe)
    result = run_script("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    return resume or tmp_path / "runs" / config.name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that is stopped nowhere."""
    return train_on(tmp_path_factory.mktemp("straight"), 1)


@pytest.fixture(scope="module")
def straight_adamw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with what is trained with shares of the weights."""
    return train_on(tmp_path_factory.mktemp("straight"), 1, **FSDP2)


def assert_same(one: Path, two: Path) -> None:
    """Losses up to the order in which processes add up theirs; weights bit for bit, as each step has two summands."""
    assert len(losses(one)) == len(losses(two)) == 12
    for here, there in zip(losses(one), losses(two), strict=True):
        assert here == pytest.approx(there, rel=1e-6, nan_ok=True)
    assert_same_weights(RunFolder(one), RunFolder(two))


def test_two_processes_see_the_batches_of_one_and_reach_its_weights_in_one_folder(
    straight: Path, tmp_path: Path
) -> None:
    assert_same(straight, train_on(tmp_path, 2))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["on2for12"]


@pytest.mark.slow  # a quarter of a minute each, and the compiler's
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("devices", [1, 2])
def test_losses_are_those_of_one_process_in_each_precision_compiled_or_not(
    devices: int, strategy: str, precision: str, compiles: bool, tmp_path: Path
) -> None:
    settings: dict[str, Any] = FSDP2 | {
        "trainer": {"gradient_clip_val": None, "precision": precision},
        "compile": compiles,
        # Each compiled program draws its own dropout, and FSDP2 divides a model into more of them.
        "model": {"n_layer": 1, "dropout": 0.0 if compiles else 0.1},
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one = train_on(tmp_path / "one", 1, max_steps=4, **settings)
    other = train_on(tmp_path / "other", devices, strategy, max_steps=4, **settings)
    tolerance = 1e-6 if precision == "32-true" else 1e-3
    for here, there in zip(losses(one), losses(other), strict=True):
        assert here == pytest.approx(there, rel=tolerance, nan_ok=True)


@pytest.mark.slow  # twenty seconds for an edge case: the test above shares out a val split, too
def test_devices_share_out_a_val_split_that_has_fewer_batches_than_they_are(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefghij klmnop\n" * 12)
    val_losses = [losses(train_on(tmp_path, devices, max_steps=2))[-1][1] for devices in (1, 2)]
    assert val_losses[0] == pytest.approx(val_losses[1], rel=1e-6)


@pytest.mark.slow  # twenty seconds each; below, copies of the weights are shares of them
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_that_goes_on_with_other_devices_is_the_same_run(
    first: int, then: int, straight: Path, tmp_path: Path
) -> None:
    folder = train_on(tmp_path, first, max_steps=6)
    assert_same(straight, train_on(tmp_path, then, resume=folder))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("fsdp2", 2), ("auto", 1)),
        pytest.param(("auto", 1), ("fsdp2", 2), marks=pytest.mark.slow),
        pytest.param(("ddp", 2), ("fsdp2", 2), marks=pytest.mark.slow),
        pytest.param(("fsdp2", 2), ("ddp", 2), marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{value[0]} {value[1]}",
)
def test_shares_of_the_weights_make_the_same_run(
    first: tuple[str, int], then: tuple[str, int], straight_adamw: Path, tmp_path: Path
) -> None:
    folder = train_on(tmp_path, first[1], first[0], max_steps=6, **FSDP2)
    train_on(tmp_path, then[1], then[0], resume=folder, **FSDP2)
    assert_same(straight_adamw, folder)
    # What rank 0 writes alone, of weights that it has a share of: those kept, samples, looks.
    kept, expected = (load_model(RunFolder(each).kept(4)).model.state_dict() for each in (folder, straight_adamw))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in kept.items())
    for step in (6, 12):
        assert RunFolder(folder).samples(step).read_text() == RunFolder(straight_adamw).samples(step).read_text()
    looks = {path.name for path in RunFolder(folder).snapshots}
    assert looks == {path.name for path in RunFolder(straight_adamw).snapshots} | {"step_000006.npz"}  # the first's end


@pytest.mark.slow  # twenty seconds
def test_activations_computed_again_from_shares_of_the_weights_make_the_same_run(
    straight_adamw: Path, tmp_path: Path
) -> None:
    assert_same(straight_adamw, train_on(tmp_path, 2, "fsdp2", activation_checkpointing=True, **FSDP2))


@pytest.mark.slow  # half a minute
def test_steps_of_four_micro_batches_are_the_same_up_to_the_order_of_sums(tmp_path: Path) -> None:
    runs = []
    for devices in (1, 2):
        trainer = {"accumulate_grad_batches": 4 // devices, "val_check_interval": 24 // devices}
        runs.append(train_on(tmp_path, devices, trainer=trainer))
    for here, there in zip(*map(losses, runs), strict=True):
        assert here == pytest.approx(there, rel=1e-6, nan_ok=True)


@pytest.mark.slow  # half a minute
def test_a_clipped_run_on_shares_differs_by_rounding_alone_and_repeats_itself(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": FSDP2["optimizer"], "trainer": {"gradient_clip_val": 0.5}}
    one, two = (train_on(tmp_path, n, strategy, **settings) for n, strategy in ((1, "auto"), (2, "fsdp2")))
    train_on(tmp_path, 2, "fsdp2", **settings)
    for here, there in zip(losses(one), losses(two), strict=True):
        assert here == pytest.approx(there, rel=1e-6, nan_ok=True)
    assert_same_run(RunFolder(two), RunFolder(tmp_path / "runs" / "on2for12-2"))


def test_muon_is_refused_on_shares_of_matrices(tmp_path: Path) -> None:
    config = small_settings(tmp_path).to_dict()
    config["trainer"] |= {"strategy": "fsdp2", "devices": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    done = run_script("train.py", "--config", tmp_path / "recipe.yaml")
    assert done.returncode == 2
    assert "optimizer.name=muon: needs whole matrices on each device" in done.stderr


def test_ranks_that_end_by_max_time_have_taken_the_same_steps_at_the_same_rates(tmp_path: Path) -> None:
    keep = {"class_path": "ranks.Keep", "init_args": {"folder": str(tmp_path)}}
    by_time = {"max_steps": 100_000, "max_time": "00:00:00:01", "val_check_interval": 100_000, "log_every_n_steps": 100}
    config = small_settings(
        tmp_path,
        model={"n_layer": 1},
        trainer={"devices": 2, "strategy": "ddp", "callbacks": [keep]} | by_time,
        sampling={"prompts": []},
        attention={"enabled": False},
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    env = bare_environment() | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    }
    result = run_script("train.py", "--config", recipe, env=env)
    assert result.returncode == 0, result.stderr
    (rates, weights), (other_rates, other_weights) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert rates == other_rates
    assert all(torch.equal(tensor, other_weights[name]) for name, tensor in weights.items())
