"""Importing this module imports Lightning, without what most runs never use: torch._dynamo, all metrics, matplotlib.

They are more than half of what Lightning's import takes. Each becomes a module with the few names that Lightning and
torch.optim take from it; to ask for another name runs the module's own file first, so torch.compile or a user's metric
find what they always do. A torchmetrics that is not as expected here is imported as usual, slower. training/run.py
imports this first. Each touch of what the libraries do not promise: tests/training/test_lightning_import.py.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from minigpt.environment import without_collecting

DYNAMO, METRICS, PLOT = "torch._dynamo", "torchmetrics", "torchmetrics.utilities.plot"
_LOCK = threading.RLock()


class Deferred(ModuleType):
    """A module whose file runs when a name is asked for that it was not given."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and self.__spec__ is not None and self.__spec__.submodule_search_locations is None:
            raise AttributeError(name)  # not a package: `from module import name` asks
        loaded(self.__name__)
        return ModuleType.__getattribute__(self, name)  # not getattr, which would ask here again


def defer(spec: ModuleSpec | None, **given: Any) -> ModuleType:
    """Put a module with the given names into sys.modules; its file runs later.

    Raises:
        ImportError: there is no such module.
    """
    if spec is None or spec.loader is None:
        raise ImportError("no such module")
    made = importlib.util.module_from_spec(spec)
    made.__dict__.update(given, _given=list(given))
    made.__class__ = Deferred
    sys.modules[spec.name] = made
    return made


def loaded(name: str) -> Any:
    """The module, after its file has run in place of the names that it was given."""
    module = sys.modules[name]
    with _LOCK:  # reentrant: a circular import sees the names that there are, as always
        if not is_deferred(name):
            return module
        names, spec = vars(module).pop("_given"), module.__spec__
        assert spec is not None
        assert spec.loader is not None
        for each in names:
            delattr(module, each)
        if spec.submodule_search_locations is not None:
            vars(module)["__path__"] = spec.submodule_search_locations
        spec.loader.exec_module(module)
    return module


def is_deferred(name: str) -> bool:
    """Whether the module's file has not run yet."""
    return "_given" in vars(sys.modules[name])


def import_lightning() -> None:
    """Import Lightning; unless it has been, as by the user's program."""
    if "lightning" in sys.modules:
        return
    with without_collecting():
        packages = [] if METRICS in sys.modules else _defer_metrics()
        import torch

        if DYNAMO not in sys.modules and "_dynamo" not in vars(torch):
            spec = importlib.util.find_spec(DYNAMO)
            packages.append(defer(spec, OptimizedModule=OptimizedModule, disable=disable, graph_break=graph_break))
        importlib.import_module("lightning")
    for package in packages:
        if is_deferred(package.__name__):
            del package.__path__  # from now on, importing one of its modules runs the package first


def _defer_metrics() -> list[ModuleType]:
    """Import the class of a metric, which Lightning derives one from, without the package's eighty others."""
    try:
        package = defer(importlib.util.find_spec(METRICS), _logger=logging.getLogger(METRICS))
        folder = Path(package.__path__[0], "utilities")
        plot = PathFinder.find_spec(PLOT, [str(folder)])
        # matplotlib's classes are annotations there
        defer(plot, _AX_TYPE=object, _PLOT_OUT_TYPE=object, plot_single_or_multi_val=plot_single_or_multi_val)
        importlib.import_module(f"{METRICS}.utilities")  # first, since it and metric import each other
        given = {"__version__": importlib.import_module(f"{METRICS}.__about__").__version__}
        given["Metric"] = importlib.import_module(f"{METRICS}.metric").Metric
        given["MetricCollection"] = importlib.import_module(f"{METRICS}.collections").MetricCollection
        if is_deferred(METRICS):
            vars(package).update(given)
            vars(package)["_given"].extend(given)
    except (ImportError, AttributeError):
        for name in [each for each in sys.modules if each.partition(".")[0] == METRICS]:
            del sys.modules[name]
        return []
    return [package]


def plot_single_or_multi_val(*arguments: Any, **settings: Any) -> Any:
    """torchmetrics' function, which loads matplotlib."""
    return loaded(PLOT).plot_single_or_multi_val(*arguments, **settings)


class _IsOptimized(type):
    def __instancecheck__(cls, instance: object) -> bool:
        """No module is compiled before torch._dynamo runs."""
        return not is_deferred(DYNAMO) and isinstance(instance, loaded(DYNAMO).OptimizedModule)


class OptimizedModule(metaclass=_IsOptimized):
    """For Lightning, which asks whether a module is compiled."""


def graph_break(*_: Any, **__: Any) -> None:
    """Of no effect where nothing is traced; torch's optimizers ask the module each time."""


def disable(function: Any = None, *arguments: Any, **settings: Any) -> Any:
    """Keep torch.compile out of a function, from when torch._dynamo runs; torch decorates its optimizers with it."""
    if not isinstance(function, FunctionType):
        return loaded(DYNAMO).disable(function, *arguments, **settings)
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_deferred(DYNAMO):
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(loaded(DYNAMO).disable(function, *arguments, **settings))
        return disabled[0](*args, **kwargs)

    return call


import_lightning()
