"""Statistics of attention patterns, computed on chunks of queries, so the full (T, T) matrix is never needed.

A statistic maps rows of weights, (..., R, S), and the positions of their queries, (R,), to (..., R): NaN where it is
undefined, as for the first token, which can only attend to itself. A head's score is the mean over queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.model.variants.linear_attention import running_sum

Statistic = Callable[[Tensor, Tensor], Tensor]


def entropy(weights: Tensor, queries: Tensor) -> Tensor:
    """-sum_j a_ij ln a_ij / ln(i + 1): 0 if one key has all the weight, 1 if all i + 1 keys have equal weight.

    Low entropy in many heads at once precedes unstable training (Zhai et al. 2023, https://arxiv.org/abs/2303.06296).
    """
    return _after_first(torch.special.entr(weights).sum(-1) / torch.log(queries + 1.0), queries)


def previous_token(weights: Tensor, queries: Tensor) -> Tensor:
    """a_{i, i-1}: induction heads build on such heads (Olsson et al. 2022, https://arxiv.org/abs/2209.11895)."""
    return _at_distance(weights, queries, 1)


def current_token(weights: Tensor, queries: Tensor) -> Tensor:
    """a_{i, i}: attention of a token to itself."""
    return _after_first(_at_distance(weights, queries, 0), queries)


def first_token(weights: Tensor, queries: Tensor) -> Tensor:
    """a_{i, 0}: attention sink, where heads without a match put their weight (Xiao et al. 2023, arXiv:2309.17453)."""
    return _after_first(weights[..., 0], queries)


def mean_distance(weights: Tensor, queries: Tensor) -> Tensor:
    """sum_j a_ij (i - j), in tokens (Vig and Belinkov 2019, https://arxiv.org/abs/1906.04284)."""
    keys = torch.arange(weights.shape[-1], device=weights.device)
    return _after_first((weights * (queries[:, None] - keys)).sum(-1), queries)


def near_zero(weights: Tensor, queries: Tensor) -> Tensor:
    """Share of the i + 1 keys with less than a hundredth of an even share: below 0.01 / (i + 1)."""
    keys = torch.arange(weights.shape[-1], device=weights.device)
    n_keys = queries + 1
    small = (weights < 0.01 / n_keys[:, None]) & (keys < n_keys[:, None])
    return _after_first(small.sum(-1) / n_keys, queries)


def keys_for_mass(mass: float) -> Statistic:
    """The smallest number of keys whose weights add up to the share `mass` of the row."""

    def statistic(weights: Tensor, queries: Tensor) -> Tensor:
        held = running_sum(weights.sort(dim=-1, descending=True).values, dim=-1)
        # Tolerance, so that rounding of the sum does not add a key.
        return _after_first(1.0 + (held < mass * (1 - 1e-6) * held[..., -1:]).sum(-1), queries)

    return statistic


def duplicate_token(period: int, first: int = 0) -> Statistic:
    """a_{i, i-period} in the second of two copies: attention to the same token (Wang et al. 2022, arXiv:2211.00593).

    Args: copies of `period` tokens each, the first of which begins at position `first`.
    """
    return _second_copy(period, period, first)


def induction(period: int, first: int = 0) -> Statistic:
    """a_{i, i-period+1} in the second of two copies: attention to the token that came next in the first.

    Olsson et al. (2022, https://arxiv.org/abs/2209.11895) call it prefix matching.

    Args:
        period: length of a copy of random tokens, in tokens.
        first: position of the first copy's first token.
    """
    return _second_copy(period, period - 1, first)


def sink_rate(first_token_scores: Tensor, threshold: float = 0.3) -> float:
    """Share of heads that give the first token more than 0.3 (Gu et al. 2024, https://arxiv.org/abs/2410.10781)."""
    return float((first_token_scores > threshold).double().mean())


def redundancy(weights: Tensor) -> Tensor:
    """Similarity of each head to the closest head of its layer: 1 - the smallest Jensen-Shannon divergence.

    The divergence is in units of ln 2: 1 means the same map, 0 no key in common (after Clark et al. 2019,
    https://arxiv.org/abs/1906.04341). Unlike the other statistics it needs full maps. The first token does not count.

    Args:
        weights: (B, H, T, S).

    Returns:
        (H,); NaN for a single head or a single token.
    """
    n_head = weights.shape[1]
    weights = weights[:, :, 1:]
    own = torch.special.entr(weights).sum(-1)  # (B, H, T - 1)
    divergence = weights.new_full((n_head, n_head), math.inf)
    for one in range(n_head):
        for other in range(one):
            mixed = torch.special.entr((weights[:, one] + weights[:, other]) / 2).sum(-1)
            between = (mixed - (own[:, one] + own[:, other]) / 2).mean() / math.log(2)
            divergence[one, other] = divergence[other, one] = between
    closest = divergence.min(dim=1).values.clamp(min=0)  # rounding can go below 0
    return torch.where(closest.isfinite(), 1 - closest, torch.nan)


def _second_copy(period: int, distance: int, first: int) -> Statistic:
    def statistic(weights: Tensor, queries: Tensor) -> Tensor:
        in_second = (queries >= first + period) & (queries < first + 2 * period)
        return torch.where(in_second, _at_distance(weights, queries, distance), torch.nan)

    return statistic


def _at_distance(weights: Tensor, queries: Tensor, distance: int) -> Tensor:
    """a_{i, i-distance}; NaN where there is no such key."""
    keys = (queries - distance).clamp(min=0)
    found = weights.gather(-1, keys.expand(weights.shape[:-1])[..., None])[..., 0]
    return torch.where(queries >= distance, found, torch.nan)


def _after_first(values: Tensor, queries: Tensor) -> Tensor:
    return torch.where(queries > 0, values, torch.nan)
