"""A name such as hf:gpt2@main, or the folder of another program's model -> local folders with its files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from minigpt.config.commands import HUB_NAME
from minigpt.errors import UserError
from minigpt.files import is_file, is_folder, reason

PREFIX = "hf:"
CONFIG = "config.json"
SMALL_FILES = ("*.json", "merges.txt", "tokenizer.model")
WEIGHTS = (("*.safetensors",), ("pytorch_model*.bin",))
"""Weights files by preference: pickles only where there is nothing else."""
COPIES = ("*/*", "consolidated*")
"""Files that hold the weights once more, for other programs (onnx/, original/, Mistral's own format)."""


def is_foreign(path: str | Path) -> bool:
    """Whether a path names another program's model: hf:NAME, or a folder with Hugging Face's config.json."""
    folder = Path(path)
    has_config = is_file(folder / CONFIG) and not is_file(folder / "config.yaml")
    return str(path).startswith(PREFIX) or has_config


def model_name(path: str | Path) -> str:
    """Name of a model for files made of it: gpt2 of hf:gpt2@main, small of runs/small and of small.safetensors."""
    if str(path).startswith(PREFIX):
        name, _, revision = str(path).removeprefix(PREFIX).rpartition("/")[2].partition("@")
        return f"{name}-{revision}" if revision else name
    return Path(os.path.realpath(path)).name.removesuffix(".safetensors")


def folder_of(path: str | Path) -> Path:
    """The folder for files made of a model, beside its weights; the current one for a model of the hub."""
    path = Path() if str(path).startswith(PREFIX) else Path(path)
    return path if path.is_dir() else path.parent


def series_of(path: str | Path) -> list[tuple[str, int | None]]:
    """The models that a path names, each with the step in its name: one, or several checkpoints of one training.

    hf:NAME@step1000,step2000 and a folder of folders with names such as checkpoint-1000 are several, by step.

    Raises:
        UserError: of several revisions one has no step in its name.
    """
    name, at, revisions = str(path).partition("@")
    if name.startswith(PREFIX):
        if at and not all(revisions.split(",")):
            raise UserError(f"{path}: a revision is missing; write {name}@main, or {name} alone")
        paths = [f"{name}@{revision}" for revision in revisions.split(",")] if at else [name]
    elif is_foreign(path) or not is_folder(path):
        paths = [str(path)]
    else:
        paths = [str(each.parent) for each in Path(path).glob(f"*/{CONFIG}") if _step(each.parent.name) is not None]
    steps = {each: _step(each.rpartition("@" if name.startswith(PREFIX) else "/")[2]) for each in paths or [str(path)]}
    if len(steps) > 1 and (without := next((each for each, step in steps.items() if step is None), None)):
        raise UserError(f"{path}: {without} has no step in its name, as step1000 has, so it has no place in a series")
    return sorted(steps.items(), key=lambda each: each[1] or 0)


def _step(name: str) -> int | None:
    found = re.search(r"(?:step|checkpoint)[-_]?(\d{1,12})", name)
    return None if found is None else int(found[1])


def local_folder(path: str | Path) -> Path:
    """The folder with a model's files: downloaded once where the path is hf:NAME[@REVISION].

    Raises:
        UserError: the hub has no such model, or cannot be reached and the model was never downloaded.
    """
    name, _, revision = str(path).removeprefix(PREFIX).partition("@")
    if not str(path).startswith(PREFIX):
        return Path(path)
    if not re.fullmatch(HUB_NAME, name):
        raise UserError(f"{path}: not a name on the hub, as hf:gpt2 or hf:Qwen/Qwen3-0.6B")
    return _downloaded(str(path), name, revision or None)


def _downloaded(path: str, name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(patterns: Sequence[str]) -> Path:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(COPIES)
        )
        return Path(folder)

    try:
        folder = fetch([*SMALL_FILES, *WEIGHTS[0]])
        return folder if any(folder.glob(WEIGHTS[0][0])) else fetch([*SMALL_FILES, *WEIGHTS[1]])
    except GatedRepoError:
        raise UserError(f"{path}: accept its licence on the hub, and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{path}: the hub has no such model, or you have no access (`hf auth login`)") from None
    except RevisionNotFoundError:
        raise UserError(f"{path}: the model has no revision {revision}") from None
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError) as error:  # OSError: no connection
        raise UserError(_unreachable(path, name, revision, error)) from None


def _unreachable(path: str, name: str, revision: str | None, error: Exception) -> str:
    of_revision = f" --revision {shlex.quote(revision)}" if revision else ""
    return (
        f"{path}: the hub cannot be reached, and the model was not downloaded before "
        f"({shorten(reason(error), 100, placeholder=' …')}): on a machine with a network run "
        f"`hf download {name}{of_revision} --local-dir {shlex.quote(model_name(path))}`, and name that folder"
    )
