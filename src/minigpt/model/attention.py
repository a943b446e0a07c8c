"""Causal multi-head self-attention: project, rotate, extend the cache, attend, and mix the heads.

The default path is on this page, down to PyTorch's fused kernel: scaled dot products along the causal graph, with
rotary positions. Other similarities and masks, ALiBi, softcap and grouped heads go to `variants.attend`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.cache import LayerCache
from minigpt.model.variants.attend import AttentionSpec, attend_variant, missing_query_and_key
from minigpt.model.variants.graphs import Causal, Full, Graph
from minigpt.model.variants.similarities import SIMILARITIES, ScaledDot


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    def __init__(self, config: GPTConfig, make_norm: Callable[[GPTConfig, int], nn.Module]) -> None:
        """Args: make_norm builds the norm of queries and keys, (config, width) -> module."""
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.width_per_head
        self.similarity = SIMILARITIES[config.similarity](config)
        self.softcap, self.dropout = config.logit_softcap, config.dropout
        # Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245): with fewer key and value
        # heads, the KV cache, all of which a decode step reads, is smaller by that factor.
        n_heads = {"query": config.n_head, "key": config.kv_heads, "value": config.kv_heads}
        # A similarity has no weights for what it does not read: `uniform` has values only.
        self.n_projected = [n if name in self.similarity.projections else 0 for name, n in n_heads.items()]
        # One weight for queries, keys and values: one large matrix product is faster than three small ones.
        qkv_bias = config.bias if config.qkv_bias is None else config.qkv_bias
        self.qkv = nn.Linear(config.n_embd, sum(self.n_projected) * self.head_dim, bias=qkv_bias)
        # Named proj, as in the MLP: `GPT` initialises both by this name, as both write to the residual stream.
        self.proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        # QK-norm (Dehghani et al. 2023, https://arxiv.org/abs/2302.05442): only the gains can make scores grow, so
        # fewer heads saturate their softmax, and training survives higher learning rates (Wortsman et al. 2023,
        # https://arxiv.org/abs/2309.14322).
        n_query, n_key, _ = self.n_projected
        D, self.qk_norm_per_head = self.head_dim, config.qk_norm_per_head
        width = (D, D) if self.qk_norm_per_head else (n_query * D, n_key * D)
        self.q_norm = make_norm(config, width[0]) if config.qk_norm and n_query else nn.Identity()
        self.k_norm = make_norm(config, width[1]) if config.qk_norm and n_key else nn.Identity()
        # Called with the query, key and value of each forward pass and its kind of attention; see inspection.capture.
        # A hook that returns (B, H, T, D) has attended in the kernel's place.
        self.hooks: list[Callable[[Tensor, Tensor, Tensor, AttentionSpec], Tensor | None]] = []

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        rotary: Tensor | None,
        key_bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Args:
            x: the normalised residual stream.
            graph: which tokens each query may attend to, stored as a rule, not a matrix.
            rotary: `tables.rotary_table` at the positions of x, or None for other positions.
            key_bias: ALiBi's (1, H, S), or None.
            cache: keys and values of earlier tokens, which the T tokens attend to as well; the graph includes them.
        """
        B, T, _ = x.shape
        H, D = self.n_head, self.head_dim
        n_query, n_key, n_value = self.n_projected
        # Split before the heads are: the backward pass then joins the three gradients for qkv in one copy.
        query, key, value = self.qkv(x).split([n_query * D, n_key * D, n_value * D], dim=-1)  # (B, T, n D) each
        if not self.qk_norm_per_head:
            query, key = self.q_norm(query), self.k_norm(key)
        # Heads become a batch axis, as the kernel attends within each head on its own.
        query = query.view(B, T, n_query, D).transpose(1, 2)  # (B, H, T, D)
        key = key.view(B, T, n_key, D).transpose(1, 2)  # (B, H_kv, T, D)
        if self.qk_norm_per_head:
            query, key = self.q_norm(query), self.k_norm(key)
        value = value.view(B, T, n_value, D).transpose(1, 2)  # (B, H_kv, T, D)
        if not n_query:  # similarity symmetric or uniform
            query, key = missing_query_and_key(key, value, H)
        # Rotate after QK-norm: gains applied to rotated channels would make q·k depend on absolute positions.
        # Values are not rotated: positions decide who attends to whom, not what is passed on.
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        # Rotated keys are cached: a token's position never changes, so no step has to rotate them again.
        if cache is not None:
            key, value = cache.extend(key, value)  # (B, H_kv, S, D)
        spec: AttentionSpec = {
            "similarity": self.similarity,
            "graph": graph,
            "key_bias": key_bias,
            "softcap": self.softcap,
        }
        gathered = None
        for hook in self.hooks:
            replacement = hook(query, key, value, spec)
            gathered = gathered if replacement is None else replacement
        dropout = self.dropout if self.training else 0.0
        similarity = self.similarity
        # Grouped heads branch off too: not every device has a fused kernel for them.
        is_default = self.softcap is None and key_bias is None and n_value == H
        # The exact type, as subclasses of ScaledDot weigh keys in another way.
        if gathered is not None:
            pass  # a hook has attended
        elif is_default and type(similarity) is ScaledDot and isinstance(graph, Causal | Full):
            # A sum of D independent products has variance D: divided by sqrt(D), no softmax starts saturated.
            scale = 1 / (D**0.5 * similarity.temperature)
            # The fused kernel does not store the (T, S) weights; with dropout a CPU falls back to one that does. The
            # causal flag skips the masked half of the scores.
            gathered = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=isinstance(graph, Causal), scale=scale
            )  # (B, H, T, D)
        else:
            gathered = attend_variant(query, key, value, spec, dropout, cache)
        # Concatenating the heads and multiplying by proj is the sum over heads of each head's own output matrix.
        return self.proj(gathered.transpose(1, 2).reshape(B, T, H * D))  # (B, T, C)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864): q·k then depends on the distance alone.

    Channel pair (i, i + D/2) is rotated by the angle of its position, so norms are unchanged.

    Args:
        x: (B, H, T, D) queries or keys.
        table: (2, T, D) from `tables.rotary_table`, cut to the T positions of x, or (2, B, T, D) with positions of its
            own for each row.

    Returns:
        (B, H, T, D), in x's dtype.
    """
    # In x's dtype: a float32 table would promote queries and keys of 16 bits, and the kernel wants one dtype for them
    # and the values. The angles are float64's, so only their cosines and sines are rounded, as x itself is.
    cos, sin = table.to(x.dtype).unsqueeze(-3)  # (T, D) or (B, T, D), broadcast over heads
    # Rolling by D/2 swaps the two halves: three passes over x, where taking the halves apart needs eight.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
