"""Read a run folder for its report: settings, curves, samples, attention page. The model is not loaded.

The run may still be training, may have been stopped, or may lack files; `wandb_run.py` reads W&B runs.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from minigpt.config import AttentionConfig
from minigpt.errors import UserError
from minigpt.files import typed
from minigpt.inspection.labels import label_history
from minigpt.inspection.snapshot import Snapshot, history_of, read_numbers
from minigpt.pages.attention import render_page, renew_page
from minigpt.runs.folder import RunFolder

Curves = dict[str, dict[int, float]]
"""Name of a metric -> step -> value."""

_NO_CURVES = {"step", "tokens", "seconds"}


class Sample(NamedTuple):
    """Generated text, which begins with its prompt."""

    step: int
    prompt: str
    text: str


class Picture(NamedTuple):
    """A PNG or JPEG file."""

    name: str
    step: int | None
    content: bytes


@dataclass(frozen=True)
class RunRecord:
    """Contents of a report, from a run folder or from W&B. All texts are as untrusted as the training data."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """The run's config, as nested dictionaries."""
    facts: dict[str, str] = field(default_factory=dict)
    """Facts outside config and curves, such as the training time."""
    curves: Curves = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    page: str | None = None
    """The newest attention page, rendered by the installed version."""
    pictures: list[Picture] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    """Sentences of the run's diagnosis."""
    missing: list[str] = field(default_factory=list)
    """A sentence for each part that is not shown, with the reason."""


def read_run_folder(path: str | Path) -> RunRecord:
    """Read what `train.py` has written so far.

    Raises:
        UserError: the path is no run folder.
        OSError: a file cannot be read.
    """
    run, path = RunFolder(path), Path(path)
    if not run.config.exists() and not run.metrics.exists():
        inside = sorted(str(folder) for folder in path.glob("*run-*-*"))
        raise UserError(
            f"{path}: neither a run folder (config.yaml, metrics.csv) nor a W&B run (run-*.wandb)"
            + (f"; there are {', '.join(inside[-3:])}" if inside else "; name one such as runs/demo")
        )
    name, missing = path.resolve().name, list[str]()
    settings = _settings(run.config, missing)
    rows = metric_rows(run.metrics, missing)
    page = _page(run, f"{name}: attention while training", _most_snapshots(settings), missing)
    pictures = []
    if page is None and run.attention_grid.is_file():
        pictures = [Picture(run.attention_grid.name, None, run.attention_grid.read_bytes())]
    return RunRecord(
        name=name,
        settings=settings,
        facts=_facts(rows) | (_elsewhere(path) if run.weights.is_file() else {}),
        curves=curves_of([*((int(row["step"]), row) for row in rows), *_numbers(run)]),
        samples=read_samples(path),
        page=page,
        pictures=pictures,
        happened=read_diagnosis(run, missing),
        missing=missing,
    )


def curves_of(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Curves:
    """Curves from rows of numbers; the later value wins where a step repeats."""
    curves: Curves = {}
    for step, row in rows:
        for name, value in row.items():
            # Skip values that no chart can show: a loss of 1e300 is as good as infinite.
            if name not in _NO_CURVES and math.isfinite(value) and abs(value) < 1e300:
                curves.setdefault(name, {})[step] = float(value)
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def duration(seconds: float) -> str:
    """`157 s`, `12 min 5 s`, `3 h 7 min` or `5 days 2 h`."""
    whole = round(seconds)
    for unit, length, smaller, part in (("days", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= max(length, 180):
            return f"{whole // length:,} {unit} {whole % length // part} {smaller}"
    return f"{whole} s"


def _settings(file: Path, missing: list[str]) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8", errors="replace"))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date such as 2026-99-99
        settings = None
    if not isinstance(settings, dict):
        missing.append(f"{file.name} holds no settings that can be read.")
        return {}
    return settings


def read_diagnosis(run: RunFolder, missing: list[str]) -> list[str]:
    """The sentences of diagnosis.json; [] if the run has not ended yet.

    Args: missing gets a sentence if the file cannot be read.
    """
    if not run.diagnosis.is_file():
        return []
    try:
        summary = json.loads(run.diagnosis.read_text(encoding="utf-8", errors="replace"))["summary"]
    except (ValueError, KeyError, TypeError, RecursionError):
        summary = None
    if not isinstance(summary, list) or not all(isinstance(sentence, str) for sentence in summary):
        missing.append(f"{run.diagnosis.name} holds no summary that can be read.")
        return []
    return summary


def metric_rows(file: Path, missing: list[str]) -> list[dict[str, float]]:
    """Numbers of each row of metrics.csv that has a step. A last line without a line break is incomplete and skipped.

    Args:
        file: may be missing.
        missing: gets a sentence for what cannot be read.
    """
    if not file.exists():
        return []
    text = file.read_bytes().decode("utf-8", errors="replace")
    whole, _, _ = text.rpartition("\n")
    rows: list[dict[str, float]] = []
    try:
        for line in csv.DictReader(whole.splitlines()):
            numbers = {name: value for name, text in line.items() if name and (value := _number(text)) is not None}
            if numbers.get("step", math.nan).is_integer():
                rows.append(numbers)
    except csv.Error as error:
        missing.append(f"{file.name} can be read up to step {rows[-1]['step'] if rows else 0:g} only ({error}).")
    if not rows and "\n" in whole:
        missing.append(f"{file.name} has no line with a step in it.")
    return rows


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _elsewhere(path: Path) -> dict[str, str]:
    command = f"minigpt export {typed(path)}"
    return {"in other programs": f"{command} (transformers, vLLM, TransformerLens), with --to gguf (llama.cpp, Ollama)"}


def _facts(rows: list[dict[str, float]]) -> dict[str, str]:
    seconds = [row["seconds"] for row in rows if math.isfinite(row.get("seconds", math.nan))]
    tokens = [row["tokens"] for row in rows if math.isfinite(row.get("tokens", math.nan))]
    seen = f", {tokens[-1]:,.0f} tokens" if tokens else ""
    return {"time": f"{duration(seconds[-1])} of training{seen}"} if seconds else {}


def copied_in_words(longest_tokens: float, share: float | None) -> str:
    """How much of a validation's samples is copied; share is that of their 20-grams, if they have any."""
    unit = "token" if longest_tokens == 1 else "tokens in a row"
    of_grams = "" if share is None else f", {share:.1%} of all runs of 20 tokens"
    return f"copied from the train text: at most {longest_tokens:.0f} {unit}{of_grams}"


def read_samples(run: Path) -> list[Sample]:
    """All samples that a run has written while it trained, in ascending order of steps."""
    return [sample for file in sorted(run.glob("samples/step_*.txt")) for sample in _samples(file)]


def _samples(file: Path) -> list[Sample]:
    """Parse a file of the callback `Samples` of training/samples.py; the lines before its first sample are left out."""
    content = file.read_bytes().decode("utf-8", errors="replace")
    _, *parts = re.split(r"^──── step (\d+), prompt (.*)\n", content, flags=re.MULTILINE)
    return [
        Sample(int(step), _unquoted(prompt), text.removesuffix("\n").removesuffix("\n"))
        for step, prompt, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _most_snapshots(settings: dict[str, Any]) -> int:
    attention = settings.get("attention")
    most = attention.get("max_snapshots") if isinstance(attention, dict) else None
    return most if isinstance(most, int) and most >= 2 else AttentionConfig().max_snapshots


def _numbers(run: RunFolder) -> Iterator[tuple[int, dict[str, float]]]:
    """Numbers of each attention snapshot; damaged files are skipped."""
    for file in run.snapshots:
        with contextlib.suppress(OSError, ValueError):
            step, numbers = read_numbers(file)
            yield step, {f"attn/{name}": number for name, number in numbers.items()}


def _page(run: RunFolder, title: str, most: int, missing: list[str]) -> str | None:
    """The run's attention page; one of another version is rendered again from the snapshots."""
    file = run.attention_page
    if file.exists():
        page = renew_page(file.read_text(encoding="utf-8", errors="replace"))
        if page is not None:
            return page
    files = run.snapshots
    if files:
        try:
            history = history_of(Snapshot.load(files[-1]), files[:-1], most, missing)
            labels = label_history([snapshot.scores for snapshot in history])
            return render_page(history, title=title, labels=labels)
        except (FileNotFoundError, ValueError) as error:
            missing.append(f"The attention page is missing: {error}.")
    elif file.exists():
        missing.append(f"{file.name} was made by another version of minigpt: open that file by itself.")
    return None
