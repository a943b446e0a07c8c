"""Biases of scores by position: ALiBi (Press et al. 2022, https://arxiv.org/abs/2108.12409). Its slopes, and the tables
of other positions, are in model/tables.py; `attention.rotate` is the default.
"""

from __future__ import annotations

import torch
from torch import Tensor


def alibi_bias(slopes: Tensor, n_keys: int) -> Tensor:
    """(1, H, S) slope * s for key s, in the slopes' dtype: at least float32, as 16 bits do not tell far keys apart."""
    # The penalty -slope * (t - s) without -slope * t, which is the same for all keys of a query, so softmax cancels it.
    return (slopes[:, None] * torch.arange(n_keys, device=slopes.device))[None]
