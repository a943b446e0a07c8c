"""The weights of another run -> a new run's config and first weights (`--from`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from torch import Tensor

from minigpt.config import Config, GPTConfig
from minigpt.data.shards import PreparedData
from minigpt.data.tokenizers.base import load_tokenizer, save_tokenizer
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import LoadedModel, load_model
from minigpt.training.finetuning import with_defaults

OWN = {"dropout"}
"""Model settings that the new run sets itself: not taken over."""
FREE = {"context_length", "document_mask", "end_of_text", "window", "rotary_base", "rotary_scaling"}
"""Model settings that change no weights: taken over unless another value is given."""


def taken_over(config: Config) -> tuple[Config, dict[str, Tensor] | None]:
    """The config with the model settings and the tokenizer of `initial_weights`, and its weights; None without it.

    Raises:
        UserError: no such file, another program's, or a given setting that its weights or tokenizer do not allow.
    """
    if config.initial_weights is None:
        return config, None
    loaded = load_model(config.initial_weights)
    config = with_defaults(config, loaded.config.model)
    model = _model_settings(config, loaded.config.model)
    data = dataclasses.replace(config.data, tokenizer=_tokenizer(config, loaded))
    planned = None if config.budget is None else config.planned
    return dataclasses.replace(config, model=model, data=data, planned=planned), loaded.model.state_dict()


def check_tokenizer(config: Config, data: PreparedData) -> None:
    """Refuse prepared text that brings another tokenizer.

    Raises:
        UserError: naming the folder.
    """
    if config.initial_weights is None:
        return
    if data.tokenizer.to_dict() != load_tokenizer(config.data.tokenizer).to_dict():
        raise UserError(
            f"data.source={config.data.source}: prepared with another tokenizer than that of {config.initial_weights}: "
            "give the text itself"
        )


def _model_settings(config: Config, source: GPTConfig) -> GPTConfig:
    values, refused = dict[str, object](), list[str]()
    for field in dataclasses.fields(GPTConfig):
        name = field.name
        mine, theirs = getattr(config.model, name), getattr(source, name)
        is_given = f"model.{name}" not in config.open_settings
        is_free = name in FREE and not (name == "context_length" and source.position == "learned")
        if is_given and mine != theirs and not is_free and name not in OWN:
            refused.append(f"model.{name}={mine} (it has {theirs})")
        values[name] = mine if name in OWN or (is_given and is_free) else theirs
    if refused:
        names = ", ".join(refused)
        raise UserError(f"--from {config.initial_weights}: {names}: its weights fix this; leave the setting out")
    return GPTConfig(**values)  # type: ignore[arg-type]


def _tokenizer(config: Config, loaded: LoadedModel) -> str:
    """Path of the tokenizer's file: the run's own; for a single file, a copy in data.dir."""
    path, given = str(config.initial_weights), config.data.tokenizer
    content = loaded.tokenizer.to_dict()
    fits = "data.tokenizer" in config.open_settings or given == loaded.config.data.tokenizer
    if not fits and not (given.endswith(".json") and load_tokenizer(given).to_dict() == content):
        raise UserError(f"--from {path}: data.tokenizer={given}: its weights need their own tokenizer; leave it out")
    own = RunFolder(path).tokenizer
    if own.is_file() and load_tokenizer(own).to_dict() == content:
        return str(own)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    copy = Path(config.data.dir) / f"tokenizer-{digest[:12]}.json"
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        save_tokenizer(loaded.tokenizer, copy)
    return str(copy)
