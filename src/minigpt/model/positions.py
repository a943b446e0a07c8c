"""Positions -> rotations of queries and keys (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(context_length: int, head_dim: int, base: float) -> Tensor:
    """Cosines and sines of every position.

    Channel pair i turns by base ** (-2i / D) radians a token: the first pairs tell neighbours apart, the last ones
    barely turn within the context.

    Returns:
        (2, T, D / 2) float32: cosines, then sines.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(context_length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each channel pair (i, i + D/2) by its position's angle, so that q·k depends on the distance alone.

    Args:
        x: (B, H, T, D) queries or keys.
        table: (2, T, D / 2) from `rotary_table`, cut to the T positions of x.

    Returns:
        (B, H, T, D), in x's dtype; norms are unchanged.
    """
    cos, sin = table.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
