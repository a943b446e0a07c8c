"""Checkpoints and weights -> a model ready to use: how what a run leaves behind is opened again without Lightning.

Nothing here unpickles code: checkpoints are opened with weights_only=True, whatever the environment says.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import Config, UserError
from minigpt.data.tokenizer import Tokenizer, tokenizer_from_dict
from minigpt.files import reason, write_atomically
from minigpt.model.gpt import GPT
from minigpt.run_folder import RunFolder

CHECKPOINT_KEY = "minigpt"
"""Where our own part lies in a Lightning checkpoint: {config, tokenizer, text_fingerprint}."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, in eval mode, with what belongs to it."""

    model: GPT
    tokenizer: Tokenizer
    config: Config
    path: Path


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Open a run folder (its best weights), a `.ckpt` or a `.safetensors` file of ours.

    Raises:
        UserError: nothing is there, or it is not ours, damaged or incomplete.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a build without that device
        raise UserError(f"device={device}: not to be had here ({str(error).splitlines()[0]})") from None
    file = find_weights(path)
    read = _read_safetensors if file.suffix == ".safetensors" else _read_checkpoint
    state, config_dict, tokenizer_dict = read(file)
    config = Config.from_dict(config_dict)
    model = GPT(config.model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{file}: its weights do not fit its config ({str(error).splitlines()[-1].strip()})") from None
    try:
        model = model.to(device)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"device={device}: cannot hold the model ({str(error).splitlines()[0]})") from None
    return LoadedModel(model.eval(), tokenizer_from_dict(tokenizer_dict), config, file)


def find_weights(path: str | Path) -> Path:
    """The file that holds the weights that a user means by a path.

    Raises:
        UserError: there is none.
    """
    if "://" in str(path):
        raise UserError(f"{path}: a checkpoint is opened from disk only; download it first")
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        known = sorted(str(p.parent) for p in Path("runs").glob("*/config.yaml"))
        raise UserError(f"{path}: no such run or checkpoint" + (f"; there are {', '.join(known)}" if known else ""))
    run = RunFolder(path)
    for file in (run.weights, run.best, run.last):
        if file.is_file():
            return file
    raise UserError(f"{path}: holds no model.safetensors and no checkpoints/*.ckpt yet; is it a run folder?")


def save_weights(path: Path, model: GPT, config: Config, tokenizer: Tokenizer) -> None:
    """Write a safetensors file that needs no other file: config and tokenizer travel in its header."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {
        "format": "pt",
        "config": json.dumps(config.to_dict()),
        "tokenizer": json.dumps(tokenizer.to_dict()),
    }
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata=header))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint's content, opened without running anything that is in it.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain types.
    """
    try:
        # mmap: whoever wants the weights alone does not read the optimizer's state, which is twice as long.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors and plain values, so it is not opened") from None
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except (RuntimeError, EOFError, ValueError, KeyError):
        raise UserError(f"{path}: damaged or incomplete; or not a checkpoint at all") from None
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise UserError(f"{path}: a checkpoint of another program, without minigpt's config and tokenizer")
    return content


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    content = read_checkpoint(path)
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    ours = content[CHECKPOINT_KEY]
    return state, ours["config"], ours["tokenizer"]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or incomplete ({error})") from None
    if not {"config", "tokenizer"} <= set(header):
        raise UserError(f"{path}: weights of another program, without minigpt's config and tokenizer in the header")
    return state, json.loads(header["config"]), json.loads(header["tokenizer"])
