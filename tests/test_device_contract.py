"""Training, generation, explanation and inspection on a device that has no float64, as Apple's GPUs."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretended_mps import pretended_mps
from reference import attend_slowly
from small_runs import small_settings, with_trainer
from study_files import study_file

from minigpt.config import GenerationConfig, InspectConfig
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.inspection.hooks import hooks, run_with_cache
from minigpt.model.variants.graphs import Causal
from minigpt.model.variants.similarities import Cosine
from minigpt.pages.explanation import explain
from minigpt.pages.model_report import write_inspection
from minigpt.training.run import check_before_text, train

DEVICE = "mps:0"


@pytest.fixture
def on_mps() -> Iterator[None]:
    with pretended_mps():
        yield


def val_losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]


def test_a_run_is_trained_written_with_explained_and_inspected_without_float64_on_its_device(tmp_path: Path) -> None:
    small = small_settings(
        tmp_path,
        model={"n_layer": 1},
        trainer={"max_steps": 2, "val_check_interval": 1},
        sampling={"max_new_tokens": 2},
        name="cpu",
    )
    on_cpu = train(small)
    with pretended_mps():
        run = train(with_trainer(small, accelerator="mps"))
        train(with_trainer(small, accelerator="mps", max_steps=3), run.path)
        writer = Writer.load(run.path, DEVICE)
        assert next(writer.model.parameters()).device.type == "mps"
        writer.score("1 plus 2 is 3;")
        explain(writer, "1 plus", GenerationConfig(max_new_tokens=2))
        tokens = torch.arange(6, device=DEVICE)[None]
        logits, cache = run_with_cache(writer.model, tokens)
        stored = cache.to("cpu")
        assert {each.device.type for each in cache.values()} == {"mps"}
        with hooks(
            writer.model, {"*.pattern": lambda _, name: stored[name], "*.resid_mid": lambda _, name: stored[name]}
        ):
            torch.testing.assert_close(writer.model(tokens).cpu(), logits.cpu())
        table = write_inspection(InspectConfig(run=str(run.path), device=DEVICE), "1 plus 2 is 3; 1 plus 2 is 3;")
    assert "loss without it" in table
    assert val_losses(run.path)[:2] == pytest.approx(val_losses(on_cpu.path), rel=1e-6)


@pytest.mark.usefixtures("on_mps")
def test_the_oracle_of_attention_and_kernel_regression_compute_on_the_cpu() -> None:
    x = torch.linspace(0, 1, 6).to(DEVICE)
    study = study_file("kernel-regression")
    assert study.regress(x, x, x, study.fit_width(x, x)).device.type == "cpu"
    query = torch.ones(1, 1, 2, 4, device=DEVICE)
    similarity = Cosine(1).to(DEVICE)
    assert attend_slowly(query, query, query, similarity=similarity, graph=Causal()).dtype == torch.float64


@pytest.mark.usefixtures("on_mps")
def test_a_precision_that_the_device_lacks_is_refused(tmp_path: Path) -> None:
    config = with_trainer(small_settings(tmp_path), accelerator="mps", precision="64-true")
    with pytest.raises(UserError, match=r"^trainer\.precision=64-true: Apple GPUs have no float64"):
        check_before_text(config)


@pytest.mark.usefixtures("on_mps")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([1.0, 2.0], dtype=torch.float64, device=DEVICE),
        lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
        lambda: torch.ones(2, device=DEVICE).double(),
        lambda: torch.ones(2, device=DEVICE).mean(dtype=torch.float64),
        lambda: torch.from_numpy(np.ones(2)).to(DEVICE),
        lambda: torch.ones(2, device=DEVICE) + torch.ones(2),
    ],
    ids=["tensor", "zeros", "double", "mean", "numpy", "two devices"],
)
def test_the_pretended_device_refuses_what_it_is_there_to_refuse(make: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, RuntimeError), match="float64|same device"):
        make()
