"""A model's weights as text for a page: rounded to 8 or 16 bits, deflated, base64; weights.js reads them."""

from __future__ import annotations

import base64
import copy
import dataclasses
import zlib
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.model.tables import alibi_slopes, rotary_frequencies

WeightKind = Literal["int8", "float16", "float32"]
Floats = npt.NDArray[np.float32]

_VOCABULARY_TABLES = ("token_embedding.weight", "lm_head.weight")
_CHUNK_BYTES = 11_900_000
"""Bytes of a chunk before deflate, which adds next to nothing to what it cannot compress, and base64 a third."""


class PackedWeights(NamedTuple):
    """The weights of a model, as a page holds them."""

    header: dict[str, Any]
    """JSON: kind, n_bytes of all chunks together, and name, shape, kind and offset in bytes of each tensor."""
    chunks: list[str]
    """base64 of deflated bytes, at most 16 MB each."""


_KNOWN = {
    "similarity": {"scaled_dot", "cosine", "gaussian", "hopfield", "symmetric", "uniform", "linear", "hard"},
    "position": {"rotary", "learned", "sinusoidal", "alibi", "none"},
    "norm": {"rmsnorm", "layernorm"},
    "block": {"pre_norm", "post_norm", "parallel"},
    "mlp": {"swiglu", "gelu", "gelu_exact"},
}
"""What the scripts of this folder know. A variant that is added to model/ needs its twin there."""


def unsupported(config: GPTConfig) -> str | None:
    """The first setting that the page's scripts cannot compute, as `model.mlp=relu`; None if they compute all."""
    values = {name: getattr(config, name) for name in _KNOWN}
    return next((f"model.{name}={value}" for name, value in values.items() if value not in _KNOWN[name]), None)


def live_config(config: GPTConfig) -> dict[str, Any]:
    """GPTConfig as JSON for model.js: with defaults filled in, frequencies of rotary and slopes of ALiBi.

    Raises:
        UserError: the scripts do not know a setting's value.
    """
    if missing := unsupported(config):
        raise UserError(f"{missing}: the live page cannot compute it: add it to the scripts of minigpt/pages/live")
    filled = {
        "kv_heads": config.kv_heads,
        "width_per_head": config.width_per_head,
        "mlp_width": config.mlp_width,
        "eps": config.eps,
        "windows": list(config.windows),
    }
    rotary = slopes = None
    if config.position == "rotary":
        frequencies, length = rotary_frequencies(
            config.width_per_head, config.rotary_base, config.rotary_fraction, config.rotary_scaling
        )
        rotary = {"frequencies": frequencies.tolist(), "length": length}
    if config.position == "alibi":
        slopes = alibi_slopes(config.n_head).tolist()
    return dataclasses.asdict(config) | filled | {"rotary": rotary, "slopes": slopes}


def pack_weights(model: GPT, kind: WeightKind = "int8") -> PackedWeights:
    """Round and pack the weights of a model.

    Args:
        model: not modified; of any dtype and device.
        kind: of the matrices. int8 has one scale a row, max|w| / 127 (as LLM.int8() does, Dettmers et al. 2022,
            arXiv:2208.07339). Vectors, a thousandth of all weights, stay float32.

    Raises:
        UserError: a weight is NaN or inf, or beyond float16's range.
    """
    tensors, data = list[dict[str, Any]](), bytearray()
    for name, weight in _weights(model).items():
        own: WeightKind = kind if weight.ndim > 1 else "float32"
        entry: dict[str, Any] = {"name": name, "shape": list(weight.shape), "kind": own}
        rounded, scales = _rounded(name, weight, own)
        if scales is not None:
            entry["scales"] = _append(data, scales)
        tensors.append(entry | {"offset": _append(data, rounded)})
    chunks = [_deflated(bytes(data[at : at + _CHUNK_BYTES])) for at in range(0, len(data), _CHUNK_BYTES)]
    return PackedWeights({"kind": kind, "n_bytes": len(data), "tensors": tensors}, chunks)


def quantised_model(model: GPT, kind: WeightKind = "int8") -> GPT:
    """A copy of the model with the weights that `pack_weights` rounds to, to measure the change of its loss.

    Raises:
        UserError: see `pack_weights`.
    """
    _weights(model)  # refuses NaN and inf
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.ndim > 1:
                rounded, scales = _rounded(name, _array(parameter), kind)
                weight = rounded.astype(np.float32) if scales is None else rounded * scales[:, None]
                parameter.copy_(torch.from_numpy(weight))
    return twin


def _weights(model: GPT) -> dict[str, Floats]:
    """Every weight by its name in the state_dict; tables of the vocabulary without the rows that pad it."""
    found = {name: _array(weight) for name, weight in model.state_dict().items()}
    for name, weight in found.items():
        _require_finite(name, weight, ": take an earlier checkpoint")
        if name in _VOCABULARY_TABLES:
            found[name] = weight[: model.config.vocab_size]
    return found


def _array(weight: Tensor) -> Floats:
    array: Floats = weight.detach().float().cpu().numpy()
    return array


def _require_finite(name: str, weight: npt.NDArray[np.floating], remedy: str) -> None:
    if not np.isfinite(weight).all():
        raise UserError(f"{name} has weights that are NaN or inf{remedy}")


def _rounded(name: str, weight: Floats, kind: WeightKind) -> tuple[npt.NDArray[Any], Floats | None]:
    """(O, I) in another kind; for int8 whole numbers from -127 to 127, and the (O,) scales to multiply them with."""
    if kind == "int8":
        scales = np.abs(weight).max(axis=1) / np.float32(127)
        # A row of zeros has a scale of 0, and 0 / 0 is NaN.
        divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
        return np.rint(weight / divisors).clip(-127, 127).astype(np.int8), scales
    if kind == "float32":
        return weight, None
    with np.errstate(over="ignore"):
        halves = weight.astype(np.float16)
    _require_finite(name, halves, " in float16: take --weights int8 or float32")
    return halves, None


def _append(data: bytearray, array: npt.NDArray[Any]) -> int:
    """Add the array's bytes, little-endian; returns where they begin: a multiple of 4, as typed arrays need."""
    data.extend(bytes(-len(data) % 4))
    offset = len(data)
    data.extend(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return offset


def _deflated(data: bytes) -> str:
    compressor = zlib.compressobj(level=6, wbits=-zlib.MAX_WBITS)
    return base64.b64encode(compressor.compress(data) + compressor.flush()).decode("ascii")
