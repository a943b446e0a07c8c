"""Checkpoints and weights -> a model ready to use: how what a run leaves behind is opened again without Lightning.

Nothing here unpickles code: checkpoints are opened with weights_only=True, whatever the environment says. And nothing
is opened that is not, byte for byte, what was written: each file carries a SHA-256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from minigpt.config import Config
from minigpt.data.tokenizers.base import Tokenizer, tokenizer_from_dict
from minigpt.errors import UserError
from minigpt.files import note, reason, refuse_url, write_atomically
from minigpt.model.gpt import GPT
from minigpt.runs.folder import RunFolder

Content = TypeVar("Content")
Weights = tuple[dict[str, Tensor], Config, Tokenizer, int | None]

CHECKPOINT_KEY = "minigpt"
"""Where our own part lies in a Lightning checkpoint: {config, tokenizer, text_fingerprint, ...}."""

CHECKSUM = "sha256"
"""In a safetensors file's header the checksum itself, of the file with zeros in its place. In a checkpoint's own part
the word alone, as the checksum stands at the file's end: so that no damage makes a file one without a checksum, as they
were written once."""
_MARK = b"minigpt sha256 "
_DAMAGED = "damaged: it is not what was written (its checksum differs)"
_SHARDED = (
    "a folder of shards (torch.distributed.checkpoint), and opening one runs what is hidden in it: minigpt neither "
    "writes nor opens any; where it is your own, make one file of it with torch.distributed.checkpoint.format_utils"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, in eval mode, with what belongs to it."""

    model: GPT
    tokenizer: Tokenizer
    config: Config
    path: Path
    step: int | None = None
    """Optimizer steps that the weights have seen; None for a file that does not say."""


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Open a run folder (its best weights), a `.ckpt` or a `.safetensors` file of ours.

    Raises:
        UserError: nothing is there, or it is not ours, damaged or incomplete.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # an unknown name, or a build without that device
        raise UserError(f"device={device}: not to be had here ({str(error).splitlines()[0]})") from None
    file, (state, config, tokenizer, step) = first_intact(weights_files(path), _read_weights)
    try:
        model = GPT(config.model)
        model.load_state_dict(state)
    except (RuntimeError, MemoryError, OverflowError) as error:
        why = (str(error) or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f"{file}: its weights do not fit its config ({why})") from None
    try:
        model = model.to(device)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"device={device}: cannot hold the model ({str(error).splitlines()[0]})") from None
    return LoadedModel(model.eval(), tokenizer, config, file, step)


def weights_files(path: str | Path) -> list[Path]:
    """The files that hold the weights that a user means by a path; the first counts, others are for when it is damaged.

    Raises:
        UserError: there is none.
    """
    refuse_url(path, "a checkpoint")
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        known = sorted(str(p.parent) for p in Path("runs").glob("*/config.yaml"))
        raise UserError(f"{path}: no such run or checkpoint" + (f"; there are {', '.join(known)}" if known else ""))
    if (path / ".metadata").exists():
        raise UserError(f"{path}: {_SHARDED}")
    run = RunFolder(path)
    files = [file for file in (run.weights, run.best, run.last, *run.all_earlier.values()) if file.exists()]
    if not files:
        raise UserError(f"{path}: holds no model.safetensors and no checkpoints/*.ckpt yet; is it a run folder?")
    return files


def newest_checkpoint(run: RunFolder, *, quiet: bool = False) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to resume from, and what is in it: last.ckpt, or the newest before it that is not damaged.

    Args:
        run: its folder.
        quiet: say nothing where it is not last.ckpt, as another process does.

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
    """The first of some files that can be read, and what is in it; says so where it is not the first of all.

    Raises:
        UserError: there is none.
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
    """Write what a run needs to go on, in torch's format; its checksum is the comment at the end of the zip file.

    Raises:
        UserError: it cannot be written; what was there before is.
    """
    content = content | {CHECKPOINT_KEY: content[CHECKPOINT_KEY] | {"checksum": CHECKSUM}}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(content, hashing)  # type: ignore[arg-type]  # no more is asked of a file
            file.seek(-2, os.SEEK_END)  # over the length of the comment, which is 0
            file.write(_comment(hashing.digest.hexdigest()))

    write_atomically(path, write, _n_bytes(content) + _BESIDES)


_BESIDES = 1 << 20
"""Bytes that are left for a file's other content than tensors."""


class _Hashing:
    """A file that is written from its beginning to its end, with the checksum of that."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest, self._file = hashlib.sha256(), file

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _comment(checksum: str) -> bytes:
    """The end of a zip file: the length of its comment, and the comment."""
    comment = _MARK + checksum.encode()
    return len(comment).to_bytes(2, "little") + comment


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested dictionaries and lists."""
    if isinstance(value, dict | list | tuple):
        return [
            tensor for each in (value.values() if isinstance(value, dict) else value) for tensor in tensors_in(each)
        ]
    return [value] if isinstance(value, Tensor) else []


def _n_bytes(value: Any) -> int:
    """Of all tensors; shared ones are written once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors_in(value)}.values())


def save_weights(path: str | Path, model: GPT, config: Config, tokenizer: Tokenizer, step: int | None = None) -> None:
    """Write a safetensors file that needs no other file: config, tokenizer, step and checksum travel in its header.

    Raises:
        UserError: it cannot be written; what was there before is.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {
        "format": "pt",
        "config": json.dumps(config.to_dict()),
        "tokenizer": json.dumps(tokenizer.to_dict()),
        CHECKSUM: "0" * 64,
        **({} if step is None else {"step": str(step)}),
    }

    def write(temporary: Path) -> None:
        save_file(state, temporary, metadata=header)
        with temporary.open("rb+") as file:
            place, checksum = _checksum_of_weights(file)
            assert place is not None
            file.seek(8 + place.start(1))
            file.write(checksum)

    write_atomically(path, write, _n_bytes(state) + _BESIDES)


def _checksum_of_weights(file: IO[bytes]) -> tuple[re.Match[bytes] | None, bytes]:
    """Where the checksum stands in a safetensors file's header (which begins at byte 8), and what it should be."""
    begin = file.read(8)
    header = file.read(min(int.from_bytes(begin, "little"), 100_000_000))  # safetensors' own limit
    place = re.search(rb'"sha256":"([0-9a-f]{64})"', header)  # in other entries the quotes have backslashes
    if place is not None:
        header = header[: place.start(1)] + b"0" * 64 + header[place.end(1) :]
    return place, _digest(file, hashlib.sha256(begin + header), None).hexdigest().encode()


def _digest(file: IO[bytes], digest: Any, n_bytes: int | None) -> Any:
    """A digest, led on by the next bytes of a file, all by default."""
    while chunk := file.read(1 << 20 if n_bytes is None else min(1 << 20, n_bytes)):
        digest.update(chunk)
        n_bytes = None if n_bytes is None else n_bytes - len(chunk)
    return digest


def read_checkpoint(path: str | Path, *, mmap: bool = True) -> dict[str, Any]:
    """A Lightning checkpoint's content, opened without running anything that is in it.

    Args:
        path: the file.
        mmap: leave tensors in the file until they are used: whoever wants the weights alone does not unpack the
            optimizer's state, which is twice as long. But until the last tensor goes, the file takes its room.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain types.
    """
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
    except Exception:  # whatever a strange file leads to
        raise UserError(f"{path}: damaged or incomplete; or not a checkpoint at all") from None
    ours = content.get(CHECKPOINT_KEY) if isinstance(content, dict) else None
    if is_whole is False or (is_whole is None and isinstance(ours, dict) and "checksum" in ours):
        raise UserError(f"{path}: {_DAMAGED}")
    if not isinstance(ours, dict):
        raise UserError(f"{path}: a checkpoint of another program, without minigpt's config and tokenizer")
    return content


def _is_whole(path: Path) -> bool | None:
    """Whether a checkpoint is what was written; None where it does not say."""
    length = len(_comment("0" * 64))
    with path.open("rb") as file:
        digest = _digest(file, hashlib.sha256(), max(0, path.stat().st_size - length))
        digest.update(bytes(2))  # what torch had written there
        end = file.read()
    return end == _comment(digest.hexdigest()) or (None if _MARK not in end else False)


def _read_weights(path: Path) -> Weights:
    """What a model is made of; everything is looked at here, so that another file can stand in for a damaged one."""
    read = _read_safetensors if path.suffix == ".safetensors" else _read_checkpoint
    try:
        state, config, tokenizer, step = read(path)
        return state, Config.from_dict(config), tokenizer_from_dict(tokenizer), None if step is None else int(step)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a model of minigpt's ({type(error).__name__}: {error})") from None


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any], Any]:
    content = read_checkpoint(path)
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    ours = content[CHECKPOINT_KEY]
    return state, ours["config"], ours["tokenizer"], content.get("global_step")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any], Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            place, checksum = _checksum_of_weights(file)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or incomplete ({error})") from None
    if not {"config", "tokenizer"} <= set(header):
        raise UserError(f"{path}: weights of another program, without minigpt's config and tokenizer in the header")
    # Before there were checksums these three entries were all; one more can only be a checksum whose name is damaged.
    has_checksum = place is not None or bool(set(header) - {"format", "config", "tokenizer"})
    if has_checksum and (place is None or place[1] != checksum):
        raise UserError(f"{path}: {_DAMAGED}")
    return state, json.loads(header["config"]), json.loads(header["tokenizer"]), header.get("step")
