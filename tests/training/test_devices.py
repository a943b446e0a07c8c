"""Two processes on the CPU train the same run as one."""

import csv
from pathlib import Path

import pytest
import yaml
from scripts import run_script
from small_runs import small_settings


def losses(tmp_path: Path, devices: int) -> list[tuple[float, float]]:
    """The same global batch of 4 windows, on one process or divided between two."""
    trainer = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    config = small_settings(tmp_path, data={"batch_size": 4 // devices}, trainer=trainer, name=f"on{devices}")
    recipe = tmp_path / f"on{devices}.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    result = run_script("train.py", "--config", recipe)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "runs" / config.name / "metrics.csv").open() as file:
        return [(float(row["train/loss"] or "nan"), float(row["val/loss"] or "nan")) for row in csv.DictReader(file)]


def test_two_processes_see_the_batches_of_one_and_reach_its_losses_in_one_folder(tmp_path: Path) -> None:
    one, two = losses(tmp_path, 1), losses(tmp_path, 2)
    assert len(one) == len(two) == 14
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-4, nan_ok=True)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["on1", "on2"]
