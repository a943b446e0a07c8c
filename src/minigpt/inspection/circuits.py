"""A model's weights alone, without any text -> what each head copies, and how alike its queries and its keys are.

Both work on the small products that share their eigenvalues and traces with the large matrices (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework). What is linear in a norm, its gains and LayerNorm's subtraction of
the mean, is folded in; its division by a length, biases and rotations are not: of rotary positions this is the reading
at distance 0. All is computed on the CPU in float64, which not every accelerator has.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minigpt.model.attention import Attention
from minigpt.model.blocks import Block
from minigpt.model.gpt import GPT


@torch.no_grad()
def copying(model: GPT) -> Tensor:
    """sum_k Re(l_k) / sum_k |l_k| over the eigenvalues l of W_U W_O W_V W_E: 1 where what is heard is made likelier.

    -1 where it is made less likely, around 0 where something else is done with it (Olsson et al. 2022,
    https://arxiv.org/abs/2209.11895). Only the way straight from the embedding through this head to the logits counts,
    not what other layers make of it.

    Returns:
        (n_layer, n_head) float64 on the CPU; NaN of a head whose weights are zeros.
    """
    V = model.config.vocab_size
    embedding = _exact(model.token_embedding.weight)[:V]
    head = embedding if model.config.tie_embeddings else _exact(model.lm_head.weight)[:V]
    back = embedding.T @ head @ _linear_part(model.final_norm, model.config.n_embd)  # (C, C), from written to read
    layers = []
    for attention, norm in _layers(model):
        reads = _projection(attention, "value") @ norm  # (H, D, C)
        writes = _exact(attention.proj.weight).unflatten(1, (attention.n_head, -1)).transpose(0, 1)  # (H, C, D)
        eigenvalues = torch.linalg.eigvals(reads @ back @ writes)
        layers.append(eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1))
    return torch.stack(layers)


@torch.no_grad()
def symmetry(model: GPT) -> Tensor:
    """tr(M M) / |M|^2 of M = W_Q^T W_K: 1 where a looks for b as b does for a, -1 where the opposite, 0 for neither.

    That most heads are far from 1 is why there are two projections (Saponati et al. 2025,
    https://arxiv.org/abs/2502.10927).

    Returns:
        (n_layer, n_head) float64 on the CPU; 1 where both share a projection, NaN where there is none, or only zeros.
    """
    layers = []
    for attention, norm in _layers(model):
        names = attention.similarity.projections
        if "key" not in names:
            layers.append(torch.full((attention.n_head,), torch.nan, dtype=torch.float64))
            continue
        D = attention.head_dim
        key = query = _linear_part(attention.k_norm, D) @ _projection(attention, "key") @ norm  # (H, D, C)
        if "query" in names:
            query = _linear_part(attention.q_norm, D) @ _projection(attention, "query") @ norm
        across = key @ query.mT  # (H, D, D)
        size = ((query @ query.mT) * (key @ key.mT)).sum((-2, -1))
        layers.append((across * across.mT).sum((-2, -1)) / size)
    return torch.stack(layers)


def _layers(model: GPT) -> Iterator[tuple[Attention, Tensor]]:
    """Each layer's attention, and the (C, C) matrix of the norm before it."""
    for block in model.blocks:
        assert isinstance(block, Block)
        yield block.attn, _linear_part(block.attn_norm, model.config.n_embd)


def _projection(attention: Attention, name: str) -> Tensor:
    """(H, D, C) rows that make each head's queries, keys or values; heads that share some have them each."""
    parts = _exact(attention.qkv.weight).unflatten(0, (-1, attention.head_dim)).split(attention.n_projected)
    part = parts[("query", "key", "value").index(name)]
    return part.repeat_interleave(attention.n_head // len(part), dim=0)


def _linear_part(norm: nn.Module, width: int) -> Tensor:
    """(width, width) matrix of what a norm does besides dividing by a length and adding a bias."""
    matrix = torch.eye(width, dtype=torch.float64)
    if isinstance(norm, nn.Identity):
        return matrix
    if isinstance(norm, nn.LayerNorm):
        matrix -= 1 / width  # the mean
    return _exact(norm.weight)[:, None] * matrix


def _exact(weight: Tensor | nn.Module) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight.cpu().double()
