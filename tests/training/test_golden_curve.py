"""The first 20 losses of two families, kept in a file: a refactoring must not move them.

In float64, so that processors that add in another order agree to far more digits than are compared. To renew the file
after a change that is meant to move the curve: python tests/training/test_golden_curve.py
"""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from small_runs import GPT2, small_settings

from minigpt.training.run import train

GOLDEN = Path(__file__).parent / "golden_curve.json"
ADAMW = {"name": "adamw", "learning_rate": 4e-3, "warmup_steps": 3, "weight_decay": 0.1}
TIED_GPT2 = GPT2 | {"tie_embeddings": True}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "modern": ({"n_kv_head": 1}, ADAMW),
    "gpt2": (TIED_GPT2, ADAMW),
    "muon": ({}, {"name": "muon", "momentum_warmup_steps": 10}),
}
"""Settings of the model and of the optimizer."""


def losses(folder: Path, family: str) -> dict[str, list[float]]:
    model, optimizer = FAMILIES[family]
    config = small_settings(
        folder,
        model=model,
        optimizer=optimizer,
        trainer={"max_steps": 20, "val_check_interval": 10, "precision": "64-true"},
        attention={"enabled": False},
        sampling={"prompts": []},
    )
    with train(config).metrics.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in ("train/loss", "val/loss", "grad_norm")}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_twenty_losses_are_what_they_were(family: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[family]
    now = losses(tmp_path, family)
    assert len(now["train/loss"]) == 20
    for name, values in golden.items():
        assert now[name] == pytest.approx(values, rel=1e-5), name


if __name__ == "__main__":
    curves = {}
    for each in FAMILIES:
        with tempfile.TemporaryDirectory() as temporary:
            curves[each] = losses(Path(temporary), each)
    GOLDEN.write_text(json.dumps(curves, indent=1))
