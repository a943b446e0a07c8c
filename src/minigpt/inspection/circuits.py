"""Head scores from the model's weights alone: does the OV circuit copy, and is the QK circuit symmetric?

Both use (D, D) products that have the eigenvalues and traces of the full circuits (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework). The linear part of a norm is folded in: its gains and LayerNorm's
subtraction of the mean. Its division, biases and rotations are not, so with rotary positions the scores hold for
distance 0. Computed on the CPU in float64, which MPS lacks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT, Block, PostNormBlock


@torch.no_grad()
def copying(model: GPT) -> Tensor:
    """sum_k Re(l_k) / sum_k |l_k| over the eigenvalues l of W_U W_O W_V W_E (Olsson et al. 2022, arXiv:2209.11895).

    A head with 1 copies: it raises the logits of the tokens it attends to; one with -1 lowers them, one near 0 does
    neither. Only the direct path counts, from the embedding through this head to the logits, without other layers.

    Returns:
        (n_layer, n_head) float64 on the CPU; NaN for a head whose weights are all zero.
    """
    V = model.config.vocab_size
    embedding = exact(model.token_embedding.weight)[:V]
    head = embedding if model.config.tie_embeddings else exact(model.lm_head.weight)[:V]
    back = embedding.T @ head @ linear_part(model.final_norm, model.config.n_embd)  # (C, C): output to logits to input
    layers = []
    for attention, norm, norm_after in layers_of(model):
        reads = projection(attention, "value") @ norm  # (H, D, C)
        proj = norm_after @ exact(attention.proj.weight)
        writes = proj.unflatten(1, (attention.n_head, -1)).transpose(0, 1)  # (H, C, D)
        eigenvalues = torch.linalg.eigvals(reads @ back @ writes)
        layers.append(eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1))
    return torch.stack(layers)


@torch.no_grad()
def symmetry(model: GPT) -> Tensor:
    """tr(M M) / |M|^2 of M = W_Q^T W_K: 1 if M is symmetric, -1 if antisymmetric, 0 for neither.

    Symmetric: b scores for a as a does for b. Most trained heads are far from it, hence separate query and key
    projections (Saponati et al. 2025, https://arxiv.org/abs/2502.10927).

    Returns:
        (n_layer, n_head) float64 on the CPU; 1 where query and key share a projection, NaN where the similarity has no
        key projection or the weights are all zero.
    """
    layers = []
    for attention, norm, _ in layers_of(model):
        if "key" not in attention.similarity.projections:
            layers.append(torch.full((attention.n_head,), torch.nan, dtype=torch.float64))
            continue
        query, key = query_and_key(attention, norm)
        across = key @ query.mT  # (H, D, D)
        size = ((query @ query.mT) * (key @ key.mT)).sum((-2, -1))
        layers.append((across * across.mT).sum((-2, -1)) / size)
    return torch.stack(layers)


def layers_of(model: GPT) -> Iterator[tuple[Attention, Tensor, Tensor]]:
    """Each layer's attention, and the (C, C) matrices of the norms before it and after it."""
    C = model.config.n_embd
    for block in model.blocks:
        assert isinstance(block, Block)
        norm, none = linear_part(block.attn_norm, C), torch.eye(C, dtype=torch.float64)
        yield block.attn, *((none, norm) if isinstance(block, PostNormBlock) else (norm, none))


def query_and_key(attention: Attention, norm: Tensor) -> tuple[Tensor, Tensor]:
    """(H, D, C) each, with the norm before them folded in; one and the same where they share a projection."""
    key = projection(attention, "key") @ norm
    return (projection(attention, "query") @ norm if "query" in attention.similarity.projections else key), key


def projection(attention: Attention, name: str) -> Tensor:
    """(H, D, C) query, key or value projection of each head, with QK-norm's gains; shared ones are repeated."""
    D, which = attention.head_dim, ("query", "key", "value").index(name)
    part = exact(attention.qkv.weight).split([n * D for n in attention.n_projected])[which]  # (n D, C)
    norm = (attention.q_norm, attention.k_norm, nn.Identity())[which]
    width = D if attention.qk_norm_per_head else len(part)
    part = (linear_part(norm, width) @ part.unflatten(0, (-1, width))).reshape(-1, D, part.shape[1])
    return part.repeat_interleave(attention.n_head // len(part), dim=0)


def linear_part(norm: nn.Module, width: int) -> Tensor:
    """(width, width) matrix of a norm without its division and its bias."""
    matrix = torch.eye(width, dtype=torch.float64)
    if isinstance(norm, nn.Identity):
        return matrix
    if isinstance(norm, nn.LayerNorm):
        matrix -= 1 / width  # subtracts the mean
    return exact(norm.weight)[:, None] * matrix


def exact(weight: Tensor | nn.Module) -> Tensor:
    """A weight in float64 on the CPU."""
    assert isinstance(weight, Tensor)
    return weight.cpu().double()
