"""Two processes on the CPU train the same run as one."""

import csv
from pathlib import Path

import pytest
import yaml
from scripts import run_script
from small_runs import small_settings


def losses(folder: Path) -> list[tuple[float, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(float(row["train/loss"] or "nan"), float(row["val/loss"] or "nan")) for row in csv.DictReader(file)]


def train_on(tmp_path: Path, devices: int, *, max_steps: int = 12, resume: Path | None = None) -> Path:
    """The same global batch of 4 windows: in two micro-batches of one process, or in one of each of two."""
    trainer = {
        "devices": devices,
        "strategy": "ddp" if devices > 1 else "auto",
        "accumulate_grad_batches": 2 // devices,
        "val_check_interval": 12 // devices,
        "max_steps": max_steps,
    }
    optimizer = {"warmup_steps": 3, "schedule": "constant"}  # so that it does not depend on max_steps
    config = small_settings(
        tmp_path,
        model={"dropout": 0.1},
        data={"batch_size": 2},
        trainer=trainer,
        optimizer=optimizer,
        name=f"on{devices}for{max_steps}",
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    arguments = ("--config", recipe) if resume is None else ("--resume", resume, "--config", recipe)
    result = run_script("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    return resume or tmp_path / "runs" / config.name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """Losses of one process that is stopped nowhere."""
    return losses(train_on(tmp_path_factory.mktemp("straight"), 1))


def test_two_processes_see_the_batches_of_one_and_reach_its_losses_in_one_folder(
    straight: list[tuple[float, float]], tmp_path: Path
) -> None:
    together = losses(train_on(tmp_path, 2))
    assert len(straight) == len(together) == 14
    for one, two in zip(straight, together, strict=True):
        assert two == pytest.approx(one, rel=1e-4, nan_ok=True)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["on2for12"]


@pytest.mark.slow  # twenty seconds for an edge case: the test above shares out a val split, too
def test_devices_share_out_a_val_split_that_has_fewer_batches_than_they_are(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefghij klmnop\n" * 12)
    val_losses = [losses(train_on(tmp_path, devices, max_steps=2))[-1][1] for devices in (1, 2)]
    assert val_losses[0] == pytest.approx(val_losses[1], rel=1e-4)


@pytest.mark.parametrize(("first", "then"), [pytest.param(1, 2, marks=pytest.mark.slow), (2, 1)])
def test_a_run_that_goes_on_with_other_devices_sees_what_it_would_have_seen(
    first: int, then: int, straight: list[tuple[float, float]], tmp_path: Path
) -> None:
    folder = train_on(tmp_path, first, max_steps=6)
    switched = losses(train_on(tmp_path, then, resume=folder))
    assert len(straight) == len(switched) == 14
    for one, other in zip(straight, switched, strict=True):
        assert other == pytest.approx(one, rel=1e-4, nan_ok=True)
