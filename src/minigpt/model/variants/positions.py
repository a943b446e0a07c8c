"""Positions other than plain rotary: vectors added to embeddings, biases of scores, and RoPE for longer contexts.

Sinusoidal (Vaswani et al. 2017, section 3.5) and learned positions encode absolute positions; ALiBi (Press et al. 2022,
https://arxiv.org/abs/2108.12409) distances. `attention.rotate` is the default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def scaled_frequencies(frequencies: Tensor, base: float, scaling: Mapping[str, Any]) -> tuple[Tensor, float]:
    """RoPE's frequencies stretched for a context longer than the one trained on, as transformers computes them.

    Args:
        frequencies: (n,) float64, radians per token, falling.
        base: RoPE's base.
        scaling: `rope_type` and its parameters, see config.model.ROTARY_SCALINGS. linear: position interpolation (Chen
            et al. 2023, arXiv:2306.15595); llama3: long wavelengths only (Llama 3.1); yarn: Peng et al. 2023,
            arXiv:2309.00071.

    Returns:
        (n,) float64 frequencies, and the factor of the cosines and sines.
    """
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return frequencies / factor, 1.0
    trained = scaling["original_max_position_embeddings"]
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = trained * frequencies / (2 * math.pi)  # within the trained context
        kept = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        kept = _kept_by_yarn(len(frequencies), base, trained, scaling)
    return frequencies * (kept + (1 - kept) / factor), _yarn_length(scaling) if scaling["rope_type"] == "yarn" else 1.0


def _kept_by_yarn(n: int, base: float, trained: float, scaling: Mapping[str, Any]) -> Tensor:
    """(n,) float64: 1 where a frequency stays as it is, 0 where it is divided by the factor, and a ramp between."""
    fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
    # The pair that turns so many times within the trained context.
    first, last = (n * math.log(trained / (turns * 2 * math.pi)) / math.log(base) for turns in (fast, slow))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * n - 1)
    last += 0.001 if first == last else 0
    return 1 - ((torch.arange(n, dtype=torch.float64) - first) / (last - first)).clamp(0, 1)


def _yarn_length(scaling: Mapping[str, Any]) -> float:
    """The factor of queries and keys, which keeps the entropy of the weights as the context grows."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def length(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1 if scaling["factor"] > 1 else 1.0

    weight, of_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return length(weight) / length(of_all) if weight and of_all else length(1)


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
