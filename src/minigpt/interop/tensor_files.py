"""Files of weights: tensors by name from safetensors or a torch pickle, one at a time; and safetensors, written so."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.files import is_file, listed, reason, write_atomically

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""Names in safetensors of the types that are read; the first three are written."""

LARGEST_JSON_BYTES = 100_000_000
"""Most bytes of a config or an index: safetensors' own limit for a header."""


class Stored(NamedTuple):
    """A tensor in a file: what is known without reading it, and how to."""

    shape: tuple[int, ...]
    is_float: bool
    read: Callable[[], Tensor]
    file: Path


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
        UserError: missing, unreadable or larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    if len(content) > most_bytes:
        raise UserError(f"{path}: is larger than {most_bytes >> 20} MiB")
    return content


def read_json(path: Path, most_bytes: int = LARGEST_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: missing, too large, or no JSON object.
    """
    content = read_bounded(path, most_bytes)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, nested without end
        raise UserError(f"{path}: not a JSON file") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object")
    return value


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a model's folder: of model.safetensors, pytorch_model.bin, or the files in the index of either.

    Raises:
        UserError: there are none, a file is damaged, or an index does not fit its files or leaves the folder.
    """
    for name, read in (("model.safetensors", _from_safetensors), ("pytorch_model.bin", _from_pickle)):
        if is_file(folder / name):
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _from_index(index, read)
    raise UserError(f"{folder}: holds no model.safetensors and no pytorch_model.bin")


def _from_index(index: Path, read: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise UserError(f"{index}: weight_map must name a file for each tensor")
    found = dict[str, Stored]()
    for name in sorted(set(places.values())):
        # A name, not a path: an index must not reach outside its folder.
        if name in {"", ".", ".."} or set(name) & {"/", "\\", "\0", ":"}:
            raise UserError(f"{index}: {name!r} is not the name of a file beside it")
        if not is_file(index.parent / name):
            raise UserError(f"{index}: {name} is missing; download it into the same folder")
        tensors = read(index.parent / name)
        if twice := sorted(tensors.keys() & found.keys()):
            raise UserError(f"{index.parent / name}: holds tensors that another file holds too: {listed(twice)}")
        found |= tensors
    wrong = [name for name, place in places.items() if name not in found or found[name].file.name != place]
    if wrong:
        raise UserError(f"{index}: the files lack {len(wrong)} of its tensors: {listed(wrong)}")
    return found


def _from_safetensors(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return {
            name: Stored(
                tuple(each.get_shape()),
                each.get_dtype() in DTYPES,
                lambda name=name: file.get_tensor(name),  # type: ignore[misc]
                path,
            )
            for name, each in slices.items()
        }
    except (SafetensorError, OSError, OverflowError) as error:
        raise UserError(f"{path}: damaged or incomplete ({reason(error)})") from None


def _from_pickle(path: Path) -> dict[str, Stored]:
    """Nothing in it is run, and its tensors are read from the disk when they are used."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors and plain values, so it is not opened") from None
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except Exception:  # torch.load raises many types for files that are not its own, or older than its zip format
        raise UserError(
            f"{path}: damaged, or in torch's format from before 2020; convert it to model.safetensors"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{path}: expected tensors by name")
    wrong = [name for name, each in tensors.items() if not isinstance(each, Tensor) or each.layout != torch.strided]
    if wrong:
        raise UserError(f"{path}: not plain tensors: {listed(wrong)}")
    return {
        name: Stored(tuple(each.shape), each.dtype in DTYPES.values(), lambda each=each: each, path)  # type: ignore[misc]
        for name, each in tensors.items()
    }


def write_safetensors(
    path: Path, shapes: Mapping[str, Sequence[int]], tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> None:
    """Write one file, tensor by tensor: safetensors' own writer wants all of them in memory.

    The format: 8 bytes of the header's length, the header in JSON, then the tensors as they lie in memory
    (https://github.com/huggingface/safetensors#format).

    Args:
        path: the file, written atomically.
        shapes: of all tensors, in their order.
        tensors: the same names in the same order; each is converted on its own.
        dtype: of the file.

    Raises:
        UserError: it cannot be written; an existing file is unchanged.
    """
    kind = next(name for name, each in DTYPES.items() if each == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in tensors:
                plain = tensor.detach().to("cpu", dtype).contiguous()
                file.write(plain.view(torch.uint8).numpy().data)

    write_atomically(path, write, 8 + len(text) + end)
