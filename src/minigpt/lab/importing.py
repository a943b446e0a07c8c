"""`minigpt import`: another program's model -> a run folder, which every command takes."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import yaml

from minigpt.config import Config, ImportConfig
from minigpt.data.tokenizers.base import save_tokenizer
from minigpt.errors import UserError
from minigpt.files import typed, write_text
from minigpt.interop.hub import is_foreign, model_name
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model, save_weights


def import_model(config: ImportConfig) -> str:
    """Make the run folder, and return what to print.

    Raises:
        UserError: no such model, one that is not supported, or the folder exists already or cannot be written.
    """
    if not is_foreign(config.model):
        raise UserError(
            f"{config.model}: not a model of another program: name a folder with a config.json, or a model on the hub "
            "as hf:gpt2"
        )
    out = Path("runs") / model_name(config.model) if config.out is None else Path(config.out)
    try:
        Config(name=out.name, runs_dir=str(out.parent))
    except UserError as error:
        raise UserError(f"{error}; name another run folder with --out") from None
    if os.path.lexists(out):
        raise UserError(f"{out}: already exists; remove it, or name another folder with --out")
    loaded = load_model(config.model, context_length=config.context_length)
    run = RunFolder.create(out.parent, out.name)
    try:
        data = dataclasses.replace(loaded.config.data, tokenizer=str(run.tokenizer))
        settings = dataclasses.replace(loaded.config, data=data, name=out.name, runs_dir=str(out.parent))
        save_weights(run.weights, loaded.model, settings, loaded.tokenizer, loaded.step)
        save_tokenizer(loaded.tokenizer, run.tokenizer)
        write_text(run.config, yaml.safe_dump(settings.to_dict(), sort_keys=False, allow_unicode=True))
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    model = loaded.config.model
    return "\n".join(
        [
            f"{run.path}: {loaded.model.n_parameters:,} parameters, {model.n_layer} layers of {model.n_head} heads, "
            f"a context of {model.context_length:,} tokens",
            f"  minigpt sample {typed(run.path)}",
            f"  minigpt inspect {typed(run.path)} --text 'The cat sat on the mat, the cat sat on'",
            f"  minigpt train --from {typed(run.path)} --data.source story.txt",
        ]
    )
