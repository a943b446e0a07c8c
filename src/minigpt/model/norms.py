"""Vectors of any scale -> vectors of one scale."""

from __future__ import annotations

from torch import nn

from minigpt.config import GPTConfig


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """The config's norm over the last axis: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=1e-5, bias=config.bias)
    return nn.RMSNorm(width, eps=1e-6)
