"""Positions other than rotary: vectors added to embeddings, or biases of scores.

Sinusoidal (Vaswani et al. 2017, section 3.5) and learned positions encode absolute positions; ALiBi (Press et al. 2022,
https://arxiv.org/abs/2108.12409) distances. `attention.rotate` is the default.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoidal_table(context_length: int, n_embd: int) -> Tensor:
    """(T, C) float32: sines in the even channels, cosines in the odd ones, wavelengths 2 pi to 20,000 pi tokens."""
    frequencies = 10_000.0 ** (-torch.arange(0, n_embd, 2, dtype=torch.float64) / n_embd)
    angles = torch.arange(context_length, dtype=torch.float64)[:, None] * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :n_embd]
    # Scaled to the standard deviation of the initial token embeddings, 0.02, or they would drown those. The original
    # scales the embeddings up instead.
    return (0.02 * 2**0.5 * waves).float()


def alibi_slopes(n_head: int) -> Tensor:
    """(H,) float32: each head's penalty per token of distance; 2^(-8/H), 2^(-16/H), ..., 2^-8 for powers of two.

    For other H, as in the paper: the slopes of the next smaller power of two, then every other one of the next larger.
    """
    whole = 2 ** (n_head.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    between = [2 ** (-8 * (i + 1) / (2 * whole)) for i in range(0, 2 * whole, 2)]
    return torch.tensor((slopes + between)[:n_head])


def alibi_bias(slopes: Tensor, n_keys: int) -> Tensor:
    """(1, H, S) float32: slope * s for key s."""
    # The penalty -slope * (t - s) without -slope * t, which is the same for all keys of a query, so softmax cancels it.
    return (slopes[:, None] * torch.arange(n_keys, device=slopes.device))[None]
