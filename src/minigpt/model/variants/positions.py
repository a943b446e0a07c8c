"""Position encodings: rotations of queries and keys, vectors added to embeddings, or biases of scores.

Rotary (Su et al. 2021, https://arxiv.org/abs/2104.09864) and ALiBi (Press et al. 2022,
https://arxiv.org/abs/2108.12409) encode distances; sinusoidal (Vaswani et al. 2017, section 3.5) and learned positions
encode absolute positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(context_length: int, head_dim: int, base: float) -> Tensor:
    """Cosines and sines of every position, for `rotate`.

    Channel pair (i, i + D/2) turns by base ** (-2i / D) radians a token: the first pairs tell neighbours apart, the
    last ones barely turn within the context.

    Returns:
        (2, T, D) float32: the cosine of each channel, then its sine, negative in the first half.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(context_length, dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary positions: turn channel pair (i, i + D/2) by its position's angle; q·k then depends on the distance alone.

    Args:
        x: (B, H, T, D) queries or keys. table: (2, T, D) from `rotary_table`, cut to the T positions of x, or (2, B, T,
        D) with positions of its own for each row.

    Returns:
        (B, H, T, D), in x's dtype; norms are unchanged.
    """
    cos, sin = table.to(x.dtype).unsqueeze(-3)  # the same for all heads
    # Three passes over x; taking its halves apart would need eight.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def sinusoidal_table(context_length: int, n_embd: int) -> Tensor:
    """A vector for each position: sines in the even channels, cosines in the odd ones, wavelengths 2 pi to 20,000 pi.

    Scaled to the standard deviation of the initial token embeddings (0.02); the original scales the embeddings up
    instead.

    Returns:
        (T, C) float32.
    """
    frequencies = 10_000.0 ** (-torch.arange(0, n_embd, 2, dtype=torch.float64) / n_embd)
    angles = torch.arange(context_length, dtype=torch.float64)[:, None] * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :n_embd]
    return (0.02 * 2**0.5 * waves).float()


def alibi_slopes(n_head: int) -> Tensor:
    """Each head's penalty for a token of distance: 2^(-8/H), 2^(-16/H), ..., 2^-8.

    Where H is not a power of two, as in the paper: the slopes of the next smaller power, then every other one of the
    next larger.

    Returns:
        (H,) float32.
    """
    whole = 2 ** (n_head.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    between = [2 ** (-8 * (i + 1) / (2 * whole)) for i in range(0, 2 * whole, 2)]
    return torch.tensor((slopes + between)[:n_head])


def alibi_bias(slopes: Tensor, n_keys: int) -> Tensor:
    """slope * s for key s: the penalty -slope * (t - s) up to slope * t, which is the same for all keys and cancels.

    Returns:
        (1, H, S) float32.
    """
    return (slopes[:, None] * torch.arange(n_keys, device=slopes.device))[None]
