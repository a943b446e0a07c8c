"""Attention as a loop over tokens and their in-neighbours, in float64 on the CPU: slow, and easy to check by reading.

Tests compare `attend` with it, forward and gradients. Formulas are those of the papers that `similarities`
names, on single vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minigpt.model.variants.graphs import Graph
from minigpt.model.variants.similarities import Cosine, Gaussian, Hard, Hopfield, Linear, ScaledDot, Similarity, Uniform


def attend_slowly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    similarity: Similarity,
    graph: Graph,
    key_bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Each token sends a query along its incoming edges, weighs its in-neighbours by similarity, and sums their values.

    Args: as for `attend`.

    Returns:
        (B, H, T, D_v) float64 on the CPU, as not every device has float64; differentiable.
    """
    query, key, value = query.cpu().double(), key.cpu().double(), value.cpu().double()
    (B, H, T, _), S = query.shape, key.shape[2]
    edges = graph.mask(range(T), range(S), query.device).expand(B, H, T, S)
    gathered = value.new_zeros(B, H, T, value.shape[-1])
    for b, h, t in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(T)).tolist():
        in_neighbours = edges[b, h, t].nonzero()[:, 0].tolist()
        if not in_neighbours:
            continue
        kv_head = h // (H // key.shape[1])
        keys = [key[b, kv_head, s] for s in in_neighbours]
        biases = [0.0 if key_bias is None else key_bias[b % len(key_bias), h, s].cpu().double() for s in in_neighbours]
        asking = query[b, h, t]
        for step in range(similarity.steps):
            weights = _weigh(asking, keys, biases, h, similarity, softcap)
            offers = keys if step < similarity.steps - 1 else [value[b, kv_head, s] for s in in_neighbours]
            asking = sum((w * offer for w, offer in zip(weights, offers, strict=True)), torch.zeros_like(offers[0]))
        gathered[b, h, t] = asking
    return gathered


def _weigh(
    query: Tensor,
    keys: list[Tensor],
    biases: list[Tensor | float],
    head: int,
    similarity: Similarity,
    cap: float | None,
) -> Tensor:
    """The weights of one query's in-neighbours."""
    if isinstance(similarity, Linear):
        products = torch.stack([phi(query) @ phi(key) for key in keys])
        return products / products.sum()
    scores = torch.stack([score(query, key, head, similarity) for key in keys])
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores + torch.stack([torch.as_tensor(bias, dtype=torch.float64) for bias in biases])
    soft = scores.exp() / scores.exp().sum()
    if isinstance(similarity, Hard):
        chosen = torch.zeros_like(soft)
        chosen[scores.argmax()] = 1.0
        return chosen + (soft - soft.detach())  # the choice itself, with the gradient of the softmax
    return soft


def score(query: Tensor, key: Tensor, head: int, similarity: Similarity) -> Tensor:
    """The similarity of one query and one key, both (D,), before the softmax."""
    D = len(query)
    match similarity:
        case Cosine():
            return query @ key / (query.norm() * key.norm()) / similarity.log_temperature[head].cpu().double().exp()
        case Gaussian():
            return -((query - key) ** 2).sum() / (2 * similarity.log_width[head].cpu().double().exp() ** 2)
        case Hopfield():
            return (D**-0.5 if similarity.beta is None else similarity.beta) * (query @ key)
        case Uniform():
            return 0.0 * (query @ key)
        case ScaledDot():
            return query @ key / (D**0.5 * similarity.temperature)
    raise NotImplementedError(type(similarity).__name__)


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())
