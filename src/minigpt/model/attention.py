"""Queries, keys and values -> what each token gathers from the tokens it listens to.

One sentence describes it: each token sends a query along the edges of a directed graph, weighs what its in-neighbours
offer by the similarity of query and key, and takes the weighted sum of their values. Here the graph is causal (a token
listens to itself and to what came before) and the similarity is the scaled dot product (Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762). `attend` is the fused way that trains; `attention_weights` is its explicit twin, for
looking and for tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.norms import make_norm
from minigpt.model.positions import rotate


def attend(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Causal attention through PyTorch's fused kernel, which never holds the (T, T) weights.

    Args:
        query: (B, H, T, D).
        key: (B, H_kv, T, D); H_kv divides H, and query head h reads key head h // (H / H_kv).
        value: (B, H_kv, T, D).
        dropout: probability of dropping a weight.

    Returns:
        (B, H, T, D).
    """
    key, value = _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1])
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """The weights that `attend` uses, written out: softmax(q·k / sqrt(D)) over the keys at or before each query.

    Args:
        query: (B, H, T, D).
        key: (B, H_kv, T, D).

    Returns:
        (B, H, T, S) in at least float32; rows sum to 1, entries above the diagonal are 0.
    """
    T, D = query.shape[-2:]
    key = _repeat_heads(key, query.shape[1])
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(dtype) @ key.to(dtype).mT / D**0.5
    future = torch.ones(T, T, dtype=torch.bool, device=query.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1)


def _repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, H_kv, T, D) -> (B, H, T, D). Explicit, as enable_gqa leaves the fused kernel on some devices."""
    return x if x.shape[1] == n_head else x.repeat_interleave(n_head // x.shape[1], dim=1)


class Attention(nn.Module):
    """Causal multi-head self-attention: one projection makes q, k and v, one mixes the heads' results."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.width_per_head
        self.qkv = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias)
        self.proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.q_norm = make_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.dropout = config.dropout
        # Whoever wants to look is handed the very queries and keys that the fused kernel gets; see inspection.capture.
        self.tap: Callable[[Tensor, Tensor], None] | None = None

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C); rotary is the (2, T, D / 2) table, or None for other kinds of position."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, self.n_head + 2 * self.n_kv_head, self.head_dim).transpose(1, 2)
        query, key, value = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)  # (B, H, T, D)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if self.tap is not None:
            self.tap(query, key)
        gathered = attend(query, key, value, dropout=self.dropout if self.training else 0.0)
        mixed: Tensor = self.proj(gathered.transpose(1, 2).reshape(B, T, self.n_head * self.head_dim))
        return mixed
