"""Rotary positions in a config.json: base, rotated share of each head, and scaling, in its old and its new form.

transformers 5 writes `rope_parameters`; earlier versions, vLLM and llama.cpp read `rope_theta` and `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from minigpt.config import GPTConfig
from minigpt.config.model import ROTARY_SCALINGS
from minigpt.interop.fields import Fields, refused

STANDS_STILL = {"rope_type": "linear", "factor": 1e12}
"""Positions divided by so much that no channel turns: how classes that always rotate say `position: none`."""


def rotary_to_theirs(config: GPTConfig, partial_key: str | None) -> dict[str, Any]:
    """The entries of a config.json. Args: partial_key is the class's older name for the rotated share, if any."""
    scaling = STANDS_STILL if config.position == "none" else config.rotary_scaling
    theta = config.rotary_base
    partial = {} if partial_key is None else {"partial_rotary_factor": _share(config)}
    entries: dict[str, Any] = {
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, **(scaling or {}), **partial},
        "rope_theta": theta,
    }
    if scaling is not None:
        # Over `rope_parameters` in transformers 5, so it says all that they say.
        entries["rope_scaling"] = entries["rope_parameters"]
    if partial_key is not None:
        entries[partial_key] = _share(config)
    if partial_key == "rotary_pct":  # GPT-NeoX' own names
        entries["rotary_emb_base"] = theta
    return entries


def rotary_to_ours(fields: Fields, context_length: int, head_dim: int, partial_key: str | None) -> dict[str, Any]:
    """Our settings.

    Raises:
        UserError: a kind of scaling that minigpt lacks, or a value of a wrong type.
    """
    where = "rope_scaling" if fields.mapping("rope_scaling") else "rope_parameters"
    said = fields.mapping(where)
    if any(isinstance(value, Mapping) for value in said.values()):
        raise refused(where, said, "positions that differ between layers have no counterpart")
    theta_key = "rotary_emb_base" if partial_key == "rotary_pct" else "rope_theta"
    # The newer place comes first.
    merged = Fields({**fields.values, **said}, fields.defaults)
    theta = merged.number("rope_theta") or fields.number(theta_key) or 10_000.0
    if theta <= 1:
        raise refused(theta_key, theta, "expected a base above 1")
    settings: dict[str, Any] = {"position": "rotary", "rotary_base": theta}
    fraction = merged.number("partial_rotary_factor")
    if fraction is None and partial_key is not None:
        fraction = fields.number(partial_key)
    if fraction is not None and fraction != 1:
        n_rotated = int(head_dim * fraction)
        if partial_key is None or n_rotated % 2 or not 0 < n_rotated <= head_dim:
            raise refused("partial_rotary_factor", fraction, "this class rotates whole heads, or an even part of each")
        settings["rotary_fraction"] = n_rotated / head_dim
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "default":
        return settings
    if not isinstance(kind, str) or kind not in ROTARY_SCALINGS:
        raise refused(f"{where}.rope_type", kind, f"minigpt scales positions by {', '.join(ROTARY_SCALINGS)} only")
    required, optional = ROTARY_SCALINGS[kind]
    inside = Fields(said, {"original_max_position_embeddings": context_length})  # as transformers fills it in
    scaling: dict[str, Any] = {"rope_type": kind}
    for key in sorted(required | optional):
        value = inside.flag(key) if key == "truncate" and key in said else inside.number(key)
        if value is not None:
            scaling[key] = value
    return {"position": "none"} if scaling == STANDS_STILL else settings | {"rotary_scaling": scaling}


def _share(config: GPTConfig) -> float:
    """The rotated share of a head, such that int(D share) is the number of channels: transformers rounds down."""
    D = config.width_per_head
    n = round(D * config.rotary_fraction)
    return n / D if int(D * (n / D)) == n else math.nextafter(n / D, 1)
