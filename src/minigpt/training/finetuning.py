"""Defaults of a run that starts from trained weights: what `--from` and `--lora` choose where nothing was given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from minigpt.config import Config, GPTConfig
from minigpt.errors import UserError
from minigpt.interop.hub import is_foreign
from minigpt.runs.folder import RunFolder

FULL_RATE, LORA_RATE = 5e-5, 5e-4
"""Of AdamW, for weights that were trained on much more than this text. The first is usual for GPT-2's size; LoRA's best
rate is ten times as high at any size (Schulman et al. 2025, https://thinkingmachines.ai/blog/lora)."""
OWN_LORA_RATE = 2e-2
"""Of adapters on a small model of one's own, the best of three (docs/recipes.md)."""
WARMUP_STEPS = 10
"""AdamW's first updates have full size whatever the gradient's; at most a tenth of the run."""
PASSES = 4
"""Over the text, at most, in a budget: a large pretrained model memorises within a few. A convention, not measured."""
CONTEXT = 1024
"""Longest context by default: other programs' models read up to a million tokens, of which a step holds a batch."""


def with_defaults(config: Config, source: GPTConfig) -> Config:
    """The config with the optimizer and regularisation of fine-tuning, where the user gave none.

    Weights of another program have seen much more text than this: small steps keep what they know. Weights of a run of
    one's own keep minigpt's own defaults, but for adapters, which Muon is not for: orthogonal updates of a low-rank
    factor have no counterpart in the full matrix.

    Args: the config; the model settings of the weights.

    Raises:
        UserError: adapters of a rank above the model's width, or with a given optimizer that is not for them.
    """
    is_open = set(config.open_settings)
    if config.lora is not None and config.optimizer.name == "muon" and "optimizer.name" not in is_open:
        raise UserError(f"lora={config.lora}: adapters train with AdamW, not optimizer.name=muon: leave it out")
    if config.lora is not None and config.lora > source.n_embd:
        raise UserError(
            f"lora={config.lora}: the model is {source.n_embd} wide, and adapters of a higher rank have more weights "
            "than the model: give 8, say"
        )
    pretrained = is_pretrained(config)
    if not pretrained and config.lora is None:
        return config
    chosen = dict[str, Any]()
    if "optimizer.name" in is_open or config.optimizer.name == "adamw":
        chosen["optimizer.name"] = "adamw"
        lora = LORA_RATE if pretrained else OWN_LORA_RATE
        chosen["optimizer.learning_rate"] = FULL_RATE if config.lora is None else lora
    if pretrained:
        chosen |= {"optimizer.weight_decay": 0.0, "model.dropout": 0.0}
        if source.position != "learned":  # those are as many as the context is long
            chosen["model.context_length"] = min(source.context_length, CONTEXT)
        if config.budget is None:  # which knows the number of steps
            chosen["optimizer.warmup_steps"] = warmup_steps(config.trainer.max_steps)
    return _with(config, {key: value for key, value in chosen.items() if key in is_open})


def is_pretrained(config: Config) -> bool:
    """Whether the weights to start from are another program's, or a run's that started from such weights."""
    path, seen = config.initial_weights, set[str]()
    while path is not None and path not in seen:
        seen.add(path)
        if is_foreign(path):
            return True
        run = _run_of(Path(path))
        if not run.config.is_file():
            return False
        if not run.metrics.exists() and not run.last.parent.exists():  # made by `minigpt import`
            return True
        path = _initial_weights(run)
    return False


def warmup_steps(steps: int) -> int:
    """Of a run of so many steps."""
    return min(WARMUP_STEPS, steps // 10)


def described(config: Config) -> str:
    """The run's line about its start, "" for one that starts from random weights."""
    if config.initial_weights is None:
        return ""
    optimizer = config.optimizer
    why = ", trained on much more than this text" if is_pretrained(config) else ""
    warmup = f", {optimizer.warmup_steps} warmup steps" if optimizer.warmup_steps else ""
    return (
        f"from    {config.initial_weights}{why}: {optimizer.name} at {optimizer.learning_rate:g}{warmup}, "
        f"dropout {config.model.dropout:g}, weight decay {optimizer.weight_decay:g}\n"
    )


def _with(config: Config, chosen: dict[str, Any]) -> Config:
    """The config with those settings changed, and no longer open to a budget."""
    still_open = sorted(set(config.open_settings) - set(chosen))
    sections = dict[str, dict[str, Any]]()
    for key, value in chosen.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    parts = {section: dataclasses.replace(getattr(config, section), **each) for section, each in sections.items()}
    return dataclasses.replace(config, **parts, planned=still_open)


def _run_of(path: Path) -> RunFolder:
    """The run that a path names, or one of whose files: model.safetensors, or those in checkpoints/."""
    if path.is_dir():
        return RunFolder(path)
    return RunFolder(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def _initial_weights(run: RunFolder) -> str | None:
    try:
        saved = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    path = saved.get("initial_weights") if isinstance(saved, dict) else None
    return path if isinstance(path, str) else None
