"""Linear attention (Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236): time linear in T.

weights[t, s] = q[t]·k[s] / sum over s' of q[t]·k[s'] for positive features q and k. The product is bilinear, so the
running sum over s of k[s] v[s] replaces the keys and values themselves. The denominator needs the sum of k[s]: it is
one more channel, of ones, in the values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Tokens that attend pair by pair; earlier ones are in the running sum. Near D, both parts cost the same."""


def causal_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal linear attention, and the running sum to continue from.

    Args:
        query: (B, H, T, D), features, not negative.
        key: (B, H, T, D), features.
        value: (B, H, T, D_v).
        state: (B, H, D, D_v + 1) from the tokens before, or None at the beginning.

    Returns:
        (B, H, T, D_v) in value's dtype, and the new state in at least float32.
    """
    B, H, T, _ = query.shape
    dtype, D_v = value.dtype, value.shape[-1]
    query, key, value = _prepared(query, key, value)
    # Training passes a whole text (the parallel form), decoding one token and the state so far (the recurrent form):
    # one chunk of one token. One function serves both, so they agree.
    C = min(CHUNK, T)
    missing = -T % C  # keys of zero add nothing to any sum
    query, key, value = (F.pad(x, (0, 0, 0, missing)).view(B, H, -1, C, x.shape[-1]) for x in (query, key, value))
    within = float32_product(float32_product(query, key.mT).tril(), value)  # (B, H, T / C, C, D_v + 1)
    sums = float32_product(key.mT, value)  # (B, H, T / C, D, D_v + 1), of each chunk
    # What a chunk sees of earlier ones is the sum up to the chunk before it.
    carried = running_sum(sums, dim=2)
    before = F.pad(carried[:, :, :-1], (0, 0, 0, 0, 1, 0))
    if state is not None:
        carried, before = carried + state[:, :, None], before + state[:, :, None]
    total = (within + float32_product(query, before)).reshape(B, H, T + missing, D_v + 1)[:, :, :T]
    return _divided(total).to(dtype), carried[:, :, -1]


def full_linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention on the full graph: one sum serves every query. Shapes as above, with any number of keys."""
    dtype = value.dtype
    query, key, value = _prepared(query, key, value)
    return _divided(float32_product(query, float32_product(key.mT, value))).to(dtype)


def _prepared(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(value.dtype, torch.float32)  # a long sum in 16 bits would lose its newest terms
    return query.to(dtype), key.to(dtype), F.pad(value.to(dtype), (0, 1), value=1.0)


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in at least float32, also under autocast to 16 bits."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype)


def running_sum(x: Tensor, dim: int) -> Tensor:
    """`x.cumsum(dim)`, also where torch refuses it: CUDA's kernel for floats is not deterministic."""
    is_refused = x.is_cuda and torch.are_deterministic_algorithms_enabled()
    return doubled_sum(x, dim) if is_refused else x.cumsum(dim)


def doubled_sum(x: Tensor, dim: int) -> Tensor:
    """`x.cumsum(dim)` in log2(n) additions of shifted copies (Hillis and Steele 1986, doi:10.1145/7902.7903).

    Not as a product with a triangular matrix, which TF32 would round to 11 bits.
    """
    n, shift = x.shape[dim], 1
    while shift < n:
        later = x.narrow(dim, shift, n - shift) + x.narrow(dim, 0, n - shift)
        x = torch.cat([x.narrow(dim, 0, shift), later], dim)
        shift *= 2
    return x


def _divided(total: Tensor) -> Tensor:
    # Clamped against features that are all 0.
    numerator, denominator = total[..., :-1], total[..., -1:]
    return numerator / denominator.clamp(min=torch.finfo(total.dtype).tiny)
