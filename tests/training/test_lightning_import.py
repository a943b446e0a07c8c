"""The modules that Lightning's import skips are loaded on first access."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from scripts import ROOT

from minigpt.training import lightning_import
from minigpt.training.lightning_import import defer, is_deferred

PROGRAM = """
import sys
import minigpt.training.run
import torch
from minigpt.training.lightning_import import is_deferred
optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
optimizer.step()
optimizer.zero_grad()
print("not loaded:", *(name for name in ("torch._dynamo", "torchmetrics") if is_deferred(name)),
      *(name for name in ("matplotlib", "sympy", "torchmetrics.functional") if name not in sys.modules))

import torchmetrics
from lightning.fabric.wrappers import _unwrap_compiled
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
mean = torchmetrics.MeanMetric()
mean.update(3.0)
print("metric:", float(mean.compute()), issubclass(_ResultMetric, torchmetrics.Metric))
layer = torch.nn.Linear(1, 1)
print("as it was:", _unwrap_compiled(layer)[0] is layer, is_deferred("torch._dynamo"))
print("compiled:", _unwrap_compiled(torch.compile(layer))[0] is layer, is_deferred("torch._dynamo"))
from torch._dynamo.testing import CompileCounter
from torch._dynamo import OptimizedModule, explain
counter = CompileCounter()
print(torch.compile(lambda x: x + 1, backend=counter)(torch.ones(1)).item(), counter.frame_count)
optimizer.step()
optimizer.zero_grad()
"""
PLOT = """
mean.plot()
print("matplotlib:", "matplotlib" in sys.modules)
"""


@pytest.mark.parametrize("plot", ["", pytest.param(PLOT, marks=pytest.mark.slow)], ids=["", "plot"])
def test_a_run_loads_neither_dynamo_nor_metrics_nor_matplotlib_and_whoever_asks_for_them_finds_them_whole(
    plot: str,
) -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM + plot], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "not loaded: torch._dynamo torchmetrics matplotlib sympy torchmetrics.functional",
        "metric: 3.0 True",
        "as it was: True True",
        "compiled: True False",
        "2.0 1",
        *(["matplotlib: True"] if plot else []),
    ]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that can be imported, and of which nothing is kept."""
    folder = tmp_path / "odd_metrics"
    (folder / "utilities").mkdir(parents=True)
    (folder / "utilities" / "__init__.py").touch()
    (folder / "utilities" / "plot.py").touch()
    (folder / "__init__.py").write_text("from odd_metrics import part\nlarge = part.small * 2\ngiven = 'by the file'\n")
    (folder / "part.py").write_text("import odd_metrics\nsmall = 21\nwas_there = hasattr(odd_metrics, 'large')\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield folder.name
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_deferred_module_has_what_it_was_given_and_runs_for_anything_else(package: str) -> None:
    module = defer(PathFinder.find_spec(package), given="at first")
    assert (module.given, is_deferred(package)) == ("at first", True)
    assert (module.large, module.given, is_deferred(package)) == (42, "by the file", False)
    assert module.part.was_there is False  # a circular import sees what there is so far
    assert not hasattr(module, "none")
    assert sys.modules[package] is module


def test_metrics_that_are_not_as_expected_are_imported_as_usual(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_import, "METRICS", package)
    monkeypatch.setattr(lightning_import, "PLOT", f"{package}.utilities.plot")
    assert lightning_import._defer_metrics() == []
    assert not [name for name in sys.modules if name.startswith(package)]
