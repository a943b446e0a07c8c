"""Stand-in for part A."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from typing import Any, Literal, NamedTuple

from minigpt.config import GPTConfig
from minigpt.model.gpt import GPT

WeightKind = Literal["int8", "float16", "float32"]


class PackedWeights(NamedTuple):
    header: dict[str, Any]
    chunks: list[str]


def pack_weights(model: GPT, kind: WeightKind) -> PackedWeights:
    raw = b"".join(tensor.float().numpy().tobytes() for tensor in model.state_dict().values())
    packer = zlib.compressobj(wbits=-15)
    return PackedWeights({"kind": kind}, [base64.b64encode(packer.compress(raw) + packer.flush()).decode()])


def quantised_model(model: GPT, kind: WeightKind) -> GPT:
    return model


def live_config(config: GPTConfig) -> dict[str, Any]:
    """The model's settings for model.js, those filled in that are given by others."""
    return dataclasses.asdict(config) | {
        "kv_heads": config.kv_heads,
        "width_per_head": config.width_per_head,
        "mlp_width": config.mlp_width,
        "eps": config.eps,
        "windows": list(config.windows),
    }
