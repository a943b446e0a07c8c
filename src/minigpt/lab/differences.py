"""Compares two run folders bit for bit, except for clocks and names."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, read_checkpoint

CLOCKS = {"seconds", "perf/tokens_per_second", "perf/mfu"}
"""Columns of metrics.csv that differ between any two runs."""
DASHBOARDS = {"wandb", "tensorboard", "lightning_logs", "loggers.json"}
"""Files of dashboards, with their own clocks and names. All logged values are in the run's own files too."""
NAMES = {"name", "runs_dir"}
"""Settings of a run's location."""


def differences(one: RunFolder, other: RunFolder) -> list[str]:
    """All differences between two runs: metrics first, then weights and optimizer state, then all other files.

    If the bytes of a file differ, a file of a known type is parsed and compared without clocks and the run's name.

    Returns:
        A line for each difference, starting with the file's name; empty if there is none.

    Raises:
        UserError: a checkpoint is damaged.
    """
    ours, theirs = _files(one), _files(other)
    lines = [f"{name}: only in {one.path}" for name in sorted(ours - theirs)]
    lines += [f"{name}: only in {other.path}" for name in sorted(theirs - ours)]
    telling = [path.relative_to(one.path).as_posix() for path in (one.metrics, one.last)]
    for name in sorted(ours & theirs, key=lambda name: ([name != first for first in telling], name)):
        first, second = one.path / name, other.path / name
        if first.read_bytes() != second.read_bytes():
            lines += [f"{name}: {what}" for what in _compared(first, second)]
    return lines


def _compared(first: Path, second: Path) -> Iterator[str]:
    """The differences of two files whose bytes differ."""
    if first.suffix == ".csv":
        yield from _table(first, second)
    elif read := _CONTENTS.get(first.suffix):
        yield from _unequal(read(first), read(second))
    elif first.suffix != ".html":
        yield "bytes differ"
    elif _page(first) != _page(second):
        yield "pages differ"


def _page(path: Path) -> str:
    """A page without its titles, which contain the run's name."""
    return re.sub(r"(<title>|<h1>)[^<]*", r"\1", path.read_text(encoding="utf-8"))


def _files(run: RunFolder) -> set[str]:
    """Relative paths of a run's files, left-over temporary files included, without dashboards and the lock."""
    names = {path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file()}
    return {name.as_posix() for name in names if name.parts[0] not in DASHBOARDS and name.name != ".lock"}


def _table(first: Path, second: Path) -> Iterator[str]:
    """The number of rows if it differs, and the first row that differs: later ones usually follow from it."""
    rows = [_rows(path) for path in (first, second)]
    pairs = enumerate(itertools.zip_longest(*rows, fillvalue={}), 1)
    unequal = [(number, a, b) for number, (a, b) in pairs if a != b]
    if len(rows[0]) != len(rows[1]):
        yield f"{len(rows[0])} rows against {len(rows[1])}"
    if unequal:
        number, a, b = unequal[0]
        where = f"step {(a or b)['step']}" if "step" in a | b else f"row {number}"
        what = [f"{name} {a.get(name)} against {b.get(name)}" for name in a | b if a.get(name) != b.get(name)]
        more = f"; {len(unequal) - 1} more rows" if unequal[1:] else ""
        yield f"{where}: {', '.join(what)}{more}"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: text for name, text in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def _without_clocks(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without times and the run's location."""
    ours = content[CHECKPOINT_KEY]
    clocks = {"seconds", "time_elapsed"}  # of `Metrics`, and of Lightning's Timer
    callbacks = {
        name: {key: value for key, value in state.items() if key not in clocks} if isinstance(state, dict) else state
        for name, state in content.get("callbacks", {}).items()
    }
    ours = ours | {"config": _settings(ours["config"])}
    return content | {CHECKPOINT_KEY: ours, "callbacks": callbacks}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in NAMES}


def _named_weights(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    return {"config": _settings(json.loads(header["config"])), "tokenizer": header["tokenizer"], **tensors}


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


_CONTENTS: dict[str, Callable[[Path], Any]] = {
    ".ckpt": lambda path: _without_clocks(read_checkpoint(path)),
    ".safetensors": _named_weights,
    ".npz": _arrays,
    ".yaml": lambda path: _settings(yaml.safe_load(path.read_text(encoding="utf-8"))),
}
"""Reads a file by its suffix, without clocks and the run's name."""


def _unequal(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two nested values differ, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            place = f"{where}.{key}" if where else str(key)
            if key not in one or key not in other:
                yield f"{place} is in only one of them"
            else:
                yield from _unequal(one[key], other[key], place)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _unequal(a, b, f"{where}.{index}")
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        yield from _unequal_tensors(one, other, where)
    elif isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            yield f"{where} differs"
    elif not (one == other or _both_nan(one, other)):
        shown = f": {one} against {other}"
        yield f"{where} differs{shown if len(shown) < 100 else ''}"


def _unequal_tensors(one: Tensor, other: Tensor, where: str) -> Iterator[str]:
    if one.dtype != other.dtype or one.shape != other.shape:
        yield f"{where} differs in shape or dtype"
    elif not torch.equal(_bits(one), _bits(other)):
        yield f"{where} differs by up to {float((one.double() - other.double()).abs().max()):.2g}"


def _bits(tensor: Tensor) -> Tensor:
    """As bytes, so that NaN equals the same NaN, and -0 differs from 0."""
    return tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _both_nan(one: Any, other: Any) -> bool:
    return isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
