"""Saves and loads checkpoints and weights, without Lightning; torch is imported where tensors are needed.

Checkpoints are loaded with weights_only=True, whatever the environment says, so no pickled code runs. Each file holds a
SHA-256 of itself, and damaged files are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from minigpt.config import Config, DataConfig, GPTConfig
from minigpt.config.commands import HUB_NAME
from minigpt.data.tokenizers.base import Tokenizer, tokenizer_from_dict
from minigpt.errors import UserError
from minigpt.files import is_file, note, reason, refuse_url, write_atomically
from minigpt.interop.hub import is_foreign, local_folder, series_of
from minigpt.model.tables import weight_shapes
from minigpt.runs.folder import RunFolder
from minigpt.runs.header import CHECKSUM, DAMAGED, digested, read_header, write_checksum
from minigpt.runs.stored import StoredModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from minigpt.model.gpt import GPT

Content = TypeVar("Content")

CHECKPOINT_KEY = "minigpt"
"""minigpt's own entry in a Lightning checkpoint: {config, tokenizer, text_fingerprint, ...}."""

UNKNOWN_TEXT = "an unknown text"
"""`data.source` of a model of another program: its files do not say what it was trained on."""

_MARK = b"minigpt sha256 "
_SHARDED = (
    "a sharded checkpoint (torch.distributed.checkpoint); opening one can run code in it, so minigpt does not: if you "
    "trust it, convert it to one file with torch.distributed.checkpoint.format_utils"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, with its tokenizer and config."""

    weights: GPT | StoredModel
    """The model of torch, or what `model` makes it of when it is asked for."""
    tokenizer: Tokenizer
    config: Config
    path: Path
    step: int | None = None
    """Optimizer step of the weights; None if the file does not say."""

    @property
    def model(self) -> GPT:
        return self.weights.model if isinstance(self.weights, StoredModel) else self.weights


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    context_length: int | None = None,
    opened: bool = True,
) -> LoadedModel:
    """Load a model from a run folder (its best weights), from minigpt's `.ckpt` or `.safetensors` file, or another's.

    Args:
        path: of one of these; or the folder of a model in Hugging Face's format, or its name on the hub as hf:gpt2.
        device: where the model goes.
        context_length: less than that of another program's model.
        opened: whether torch's model will be needed. If not, the weights of a safetensors file stay arrays on the CPU.

    Raises:
        UserError: the path does not exist, is a file of another program that is not supported, or is damaged or
            incomplete.
    """
    refuse_url(path, "a checkpoint")
    if not opened and str(device) == "cpu" and not is_foreign(path):
        return _load_own(path, opened=False)
    import torch  # for more than a second

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # an unknown name, or a build without that device
        raise UserError(f"device={device}: not available here ({str(error).splitlines()[0]})") from None
    loaded = _load_foreign(path, context_length) if is_foreign(path) else _load_own(path, opened=True)
    try:
        model = loaded.model.to(device)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"device={device}: cannot hold the model ({str(error).splitlines()[0]})") from None
    return replace(loaded, weights=model.eval())


def _load_own(path: str | Path, *, opened: bool) -> LoadedModel:
    files = weights_files(path)
    file, (state, config, tokenizer, step) = first_intact(files, partial(_read_weights, opened=opened))
    if isinstance(state, StoredState):
        if state.fits(config.model):
            return LoadedModel(StoredModel(config.model, state), tokenizer, config, file, step)
        return _load_own(file, opened=True)
    from minigpt.model.gpt import GPT

    try:
        model = GPT(config.model)
        model.load_state_dict(state)
    except (RuntimeError, MemoryError, OverflowError) as error:
        why = (str(error) or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f"{file}: its weights do not fit its config ({why})") from None
    return LoadedModel(model, tokenizer, config, file, step)


def _load_foreign(path: str | Path, context_length: int | None) -> LoadedModel:
    """A model of another program, with a config of its model settings and tokenizer, else the defaults."""
    from minigpt.interop.folder import read_folder  # a tenth of a second that one's own models need not wait
    from minigpt.interop.tokenizer_folder import read_tokenizer

    (name, step), *others = series_of(path)
    if others:
        raise UserError(f"{path}: names several checkpoints; name one, or use `minigpt inspect`, which shows a series")
    folder = local_folder(name)
    model = read_folder(folder, context_length)
    tokenizer = read_tokenizer(folder, model.config.vocab_size)
    data = DataConfig(source=UNKNOWN_TEXT, tokenizer=str(folder / "tokenizer.json"))
    return LoadedModel(model, tokenizer, Config(model=model.config, data=data), folder, step)


def weights_files(path: str | Path) -> list[Path]:
    """Weights files for a path, best first; the others are fallbacks in case it is damaged.

    Raises:
        UserError: there is none.
    """
    refuse_url(path, "a checkpoint")
    path = Path(path)
    if is_file(path):
        return [path]
    try:
        path.stat()
    except (FileNotFoundError, ValueError):  # ValueError: a zero byte
        raise UserError(f"{path}: no such run or checkpoint{_there_are(path)}") from None
    except OSError as error:  # too long, or no permission
        raise UserError(f"{path}: {reason(error)}") from None
    if (path / ".metadata").exists():
        raise UserError(f"{path}: {_SHARDED}")
    run = RunFolder(path)
    files = [file for file in (run.weights, run.best, run.last, *run.all_earlier.values()) if file.exists()]
    if not files:
        raise UserError(f"{path}: {_no_weights(path)}")
    return files


def _there_are(path: Path) -> str:
    """Runs to choose from; and, for a name that is no path, how one on the hub is written."""
    known = sorted(str(p.parent) for p in Path("runs").glob("*/config.yaml"))
    said = f"; there are {', '.join(known)}" if known else ""
    is_name = re.fullmatch(HUB_NAME, str(path)) and not path.suffix and path.parent.parts[:1] != ("runs",)
    return said + (f"; a model on the hub is written hf:{path}" if is_name else "")


def _no_weights(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "adapters of peft without their model: merge them with merge_and_unload(), and save that model"
    if len(steps := series_of(path)) > 1:
        return f"holds {len(steps)} checkpoints; name one, such as {steps[-1][0]}, or use `minigpt inspect`"
    return "holds no model.safetensors and no checkpoints/*.ckpt yet; is it a run folder?"


def newest_checkpoint(run: RunFolder, *, quiet: bool = False) -> tuple[Path, dict[str, Any]]:
    """Path and content of the checkpoint to resume from: last.ckpt, or the newest earlier one that is intact.

    Args:
        run: the run folder.
        quiet: print no note when falling back; for ranks other than 0.

    Raises:
        UserError: there is none.
    """
    files = [run.last, *run.all_earlier.values(), *([run.best] if run.best.exists() else [])]
    if len(files) == 1 and not run.last.exists():
        raise UserError(f"--resume {run.path}: no {run.last} yet, so there is nothing to continue; start anew")
    return first_intact(files, read_checkpoint, quiet=quiet)


def first_intact(
    files: Iterable[Path], read: Callable[[Path], Content], *, quiet: bool = False
) -> tuple[Path, Content]:
    """Path and content of the first readable file, with a note if it is not the first of all.

    Raises:
        UserError: none can be read; the message has the reason of each.
    """
    failures = list[UserError]()
    for file in files:
        try:
            content = read(file)
        except UserError as error:
            failures.append(error)
            continue
        if failures and not quiet:
            note(f"note: {failures[0]}; {file} is used instead")
        return file, content
    raise UserError("; ".join(map(str, failures)))


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint in torch's zip format, atomically, with its checksum as the zip file's comment.

    Raises:
        UserError: it cannot be written; an existing file is unchanged.
    """
    import torch

    content = content | {CHECKPOINT_KEY: content[CHECKPOINT_KEY] | {"checksum": CHECKSUM}}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(content, hashing)  # type: ignore[arg-type]  # no more is asked of a file
            file.seek(-2, os.SEEK_END)  # over the length of the comment, which is 0
            file.write(_comment(hashing.digest.hexdigest()))

    write_atomically(path, write, _n_bytes(content) + _BESIDES)


_BESIDES = 1 << 20
"""Estimate of a file's bytes besides tensors, for the check of free disk space."""


class _Hashing:
    """A write-only file that hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest, self._file = hashlib.sha256(), file

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _comment(checksum: str) -> bytes:
    """The last fields of a zip file: length of the comment, and the comment."""
    comment = _MARK + checksum.encode()
    return len(comment).to_bytes(2, "little") + comment


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested dictionaries and lists."""
    from torch import Tensor

    if isinstance(value, dict | list | tuple):
        return [
            tensor for each in (value.values() if isinstance(value, dict) else value) for tensor in tensors_in(each)
        ]
    return [value] if isinstance(value, Tensor) else []


def _n_bytes(value: Any) -> int:
    """Bytes of all tensors; tensors that share memory are written once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors_in(value)}.values())


def save_weights(
    path: str | Path,
    model: GPT,
    config: Config,
    tokenizer: Tokenizer,
    step: int | None = None,
    *,
    card: str | None = None,
) -> None:
    """Write a self-contained safetensors file, atomically: config, tokenizer, step and checksum are in its header.

    Args:
        path: the file.
        model: its weights are written.
        config: of the run.
        tokenizer: of the run.
        step: optimizer step of the weights.
        card: see runs/card.py; for files that are shared.

    Raises:
        UserError: it cannot be written; an existing file is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {
        "format": "pt",
        "config": json.dumps(config.to_dict()),
        "tokenizer": json.dumps(tokenizer.to_dict()),
        CHECKSUM: "0" * 64,
        **({} if step is None else {"step": str(step)}),
        **({} if card is None else {"card": card}),
    }

    def write(temporary: Path) -> None:
        try:
            save_file(state, temporary, metadata=header)
        except SafetensorError as error:  # its only word for a full disk: "... (os error 28)"
            number = re.search(r"os error (\d+)", str(error))
            raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from None
        write_checksum(temporary)

    write_atomically(path, write, _n_bytes(state) + _BESIDES)


def read_checkpoint(path: str | Path, *, mmap: bool = True) -> dict[str, Any]:
    """Content of a Lightning checkpoint, loaded without running code in it.

    Args:
        path: the file.
        mmap: map tensors into memory, so that loading the weights does not read the optimizer's state, which is twice
            as large. The file's disk space is not freed while a tensor is in use.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain types.
    """
    import torch

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: {_SHARDED}")
    try:
        is_whole = _is_whole(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap) if is_whole is not False else {}
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors and plain values, so it is not opened") from None
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except Exception:  # torch.load raises many types for files that are not checkpoints
        raise UserError(f"{path}: damaged or incomplete; or not a checkpoint at all") from None
    ours = content.get(CHECKPOINT_KEY) if isinstance(content, dict) else None
    if is_whole is False or (is_whole is None and isinstance(ours, dict) and "checksum" in ours):
        raise UserError(f"{path}: {DAMAGED}")
    if not isinstance(ours, dict):
        raise UserError(f"{path}: a checkpoint of another program, without minigpt's config and tokenizer")
    return content


def _is_whole(path: Path) -> bool | None:
    """Whether a checkpoint matches its checksum; None if it has none."""
    length = len(_comment("0" * 64))
    with path.open("rb") as file:
        digest = digested(file, hashlib.sha256(), max(0, path.stat().st_size - length))
        digest.update(bytes(2))  # the comment length 0 that torch wrote, before `save_checkpoint` replaced it
        end = file.read()
    return end == _comment(digest.hexdigest()) or (None if _MARK not in end else False)


class StoredState(dict[str, np.ndarray]):
    """The float32 weights of a safetensors file as arrays."""

    def fits(self, config: GPTConfig) -> bool:
        """Whether these are the weights of a model of this config."""
        if config.n_layer > len(self):
            return False
        return {name: array.shape for name, array in self.items()} == weight_shapes(config)


Weights = tuple["dict[str, Tensor] | StoredState", Config, Tokenizer, int | None]


def _read_weights(path: Path, *, opened: bool) -> Weights:
    """Read and validate weights, config and tokenizer, so that `first_intact` can fall back to another file.

    Args: opened False leaves float32 weights of a safetensors file as arrays.
    """
    read = partial(_read_safetensors, opened=opened) if path.suffix == ".safetensors" else _read_checkpoint
    try:
        state, config, tokenizer, step = read(path)
        return state, Config.from_dict(config), tokenizer_from_dict(tokenizer), None if step is None else int(step)
    except UserError as error:
        said = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise UserError(f"{said}{_of_another_program(path)}") from None
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a model of minigpt's ({type(error).__name__}: {error})") from None


def _of_another_program(path: Path) -> str:
    """What to do about a file that is part of another program's model."""
    if path.suffix == ".gguf":
        return "; GGUF files are written, not read: name the model's folder or, as hf:NAME, its name on the hub"
    is_part = path.suffix not in {".ckpt", ".safetensors"} and is_foreign(path.parent)
    return f"; name the folder of its model, {path.parent}" if is_part else ""


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any], Any]:
    from minigpt.runs.adapters import merged_state

    content = read_checkpoint(path)
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    ours = content[CHECKPOINT_KEY]
    return merged_state(state), ours["config"], ours["tokenizer"], content.get("global_step")


def _read_safetensors(
    path: Path, *, opened: bool
) -> tuple[dict[str, Tensor] | StoredState, dict[str, Any], dict[str, Any], Any]:
    from safetensors import SafetensorError, safe_open

    header = read_header(path)
    try:
        state: dict[str, Tensor] | StoredState | None = None if opened else _read_arrays(path)
        if state is None:
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or incomplete ({error})") from None
    return state, json.loads(header["config"]), json.loads(header["tokenizer"]), header.get("step")


def _read_arrays(path: Path) -> StoredState | None:
    """The weights of a safetensors file; None if they are not all float32."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        if any(file.get_slice(name).get_dtype() != "F32" for name in names):
            return None
        return StoredState({name: file.get_tensor(name) for name in names})
