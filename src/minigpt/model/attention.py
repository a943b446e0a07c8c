"""Queries, keys and values -> what each token gathers from the tokens it listens to.

One sentence describes it: each token sends a query along the edges of a directed graph, weighs what its in-neighbours
offer by the similarity of query and key, and takes the weighted sum of their values. `attend` is that sentence, as fast
as the similarity's mathematics and the graph's shape allow; `attention_weights` writes its weights out, for looking;
`reference.attend_slowly` is the sentence word by word, for comparison.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from minigpt.config import GPTConfig, UserError, check_attention
from minigpt.model.graphs import Causal, Full, Graph
from minigpt.model.linear_attention import causal_linear_attention, full_linear_attention
from minigpt.model.norms import make_norm
from minigpt.model.positions import rotate
from minigpt.model.similarities import SIMILARITIES, Hard, Linear, Scores, Similarity

ROWS = 256
"""Queries for which a dense piece of the graph is made at a time."""


class How(TypedDict):
    """What makes an attention the kind it is: everything but its queries, keys and values."""

    similarity: Similarity
    graph: Graph
    key_bias: Tensor | None
    softcap: float | None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    similarity: Similarity,
    graph: Graph,
    key_bias: Tensor | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Each query's weighted sum of the values it hears; zeros, and a gradient of zero, where it hears nothing.

    Self- and cross-attention differ only in where key and value come from.

    A softmax similarity runs on PyTorch's fused kernel, which never holds the (T, S) weights: without a mask on the
    full graph, with a flag on the causal one, with FlexAttention's block mask on a GPU, and else in pieces of ROWS
    queries and the keys in their reach. The pieces of the mask are made again for the backward pass, so that memory
    grows with T, not with T * S. Linear attention carries sums along the causal and the full graph. Softcap and hard
    attention need the scores themselves, piece by piece.

    Args:
        query: (B, H, T, D).
        key: (B, H_kv, S, D); H_kv divides H, and query head h reads key head h // (H / H_kv).
        value: (B, H_kv, S, D_v).
        similarity: how much a query weighs a key.
        graph: who may listen to whom.
        key_bias: (B or 1, H, S), added to the score of every query with that key; ALiBi's form. Not learned.
        softcap: bends scores into (-softcap, softcap) by a tanh, before key_bias (Gemma 2, arXiv:2408.00118).
        dropout: probability of dropping a weight.

    Returns:
        (B, H, T, D_v), in value's dtype.

    Raises:
        UserError: shapes that do not fit one another, or a similarity that cannot do what is asked of it.
    """
    _check(query, key, value, similarity, graph, key_bias, softcap, dropout)
    graph = graph.reduced(query.shape[2], key.shape[2])
    if isinstance(similarity, Linear):
        return _gather_linearly(query, key, value, similarity, graph)
    for _ in range(similarity.steps - 1):
        query = _gather(query, key, key, similarity, graph, key_bias, softcap, dropout)
    return _gather(query, key, value, similarity, graph, key_bias, softcap, dropout)


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    similarity: Similarity,
    graph: Graph,
    key_bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The weights that `attend` gives each value, written out: of the last step, where there are several.

    Args: as for `attend`.

    Returns:
        (B, H, T, S) in at least float32: rows sum to 1, or to 0 where nothing is heard; 0 where there is no edge.
    """
    _check(query, key, key, similarity, graph, key_bias, softcap, 0.0)
    (B, H, T, _), S = query.shape, key.shape[2]
    mask = graph.mask(range(T), range(S), query.device)
    heard = mask.any(dim=-1, keepdim=True)
    if isinstance(similarity, Linear):
        features = similarity.features(query), similarity.features(_repeat_heads(key, H))
        weights = _linear_weights(*features, mask | ~heard)
    else:
        for _ in range(similarity.steps - 1):
            query = _gather(query, key, key, similarity, graph, key_bias, softcap, 0.0)
        weights = _weights(_scores(query, key, similarity, key_bias), mask | ~heard, similarity, softcap)
    return weights.masked_fill(~mask, 0.0).expand(B, H, T, S)


def _gather(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    similarity: Similarity,
    graph: Graph,
    key_bias: Tensor | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """One softmax, or one hard choice, over the keys of each query."""
    scores = _scores(query, key, similarity, key_bias)
    value = _repeat_heads(value, query.shape[1])
    simple = softcap is None and isinstance(graph, Full | Causal)
    if query.is_cuda and not simple and not dropout and not isinstance(similarity, Hard) and _has_triton():
        return _by_blocks(scores, value, graph, softcap)
    if softcap is None and not isinstance(similarity, Hard):
        return _fused(scores, value, graph, dropout)

    def by_weights(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        bias = None if scores.key_bias is None else scores.key_bias[..., keys]
        weights = _weights(Scores(query, key, scores.scale, bias), mask, similarity, softcap)
        return F.dropout(weights, dropout).to(value.dtype) @ value

    return _in_pieces(by_weights, scores.query, scores.key, value, graph)


def _gather_linearly(query: Tensor, key: Tensor, value: Tensor, similarity: Linear, graph: Graph) -> Tensor:
    query, key = similarity.features(query), similarity.features(_repeat_heads(key, query.shape[1]))
    value = _repeat_heads(value, query.shape[1])
    if isinstance(graph, Full):
        return full_linear_attention(query, key, value)
    if isinstance(graph, Causal) and query.shape[2] == key.shape[2]:
        return causal_linear_attention(query, key, value)[0]

    def by_weights(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        return _linear_weights(query, key, mask).to(value.dtype) @ value

    return _in_pieces(by_weights, query, key, value, graph)


def _fused(scores: Scores, value: Tensor, graph: Graph, dropout: float) -> Tensor:
    """scaled_dot_product_attention: by its flag, or by pieces of a dense mask."""
    dtype, D_v = value.dtype, value.shape[-1]
    query, key, value = _of_one_width(*_bias_in_channels(scores), value)

    def by_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scores.scale)

    if isinstance(graph, Full | Causal):
        gathered = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=isinstance(graph, Causal), scale=scores.scale
        )
    else:
        gathered = _in_pieces(by_mask, query, key, value, graph)
    return gathered[..., :D_v].to(dtype)


def _in_pieces(
    piece: Callable[[Tensor, Tensor, Tensor, Tensor, slice], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    graph: Graph,
) -> Tensor:
    """ROWS queries at a time, with the keys in their reach and that piece of the graph's matrix.

    Args:
        piece: (query, key, value, mask, keys) -> what these queries gather from these keys. No row of the mask it gets
            is empty: who hears nothing is let to hear all, and its result replaced by zeros.
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D_v).
        graph: that the pieces are cut from.
    """
    B, H, T, _ = query.shape
    S = key.shape[2]
    gathered = []
    for start in range(0, T, ROWS):
        stop = min(start + ROWS, T)
        low, high = graph.reach(start, stop, S)
        if low >= high:
            gathered.append(value.new_zeros(B, H, stop - start, value.shape[-1]))
            continue

        def run(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            queries: range = range(start, stop),
            keys: range = range(low, high),
        ) -> Tensor:
            mask = graph.mask(queries, keys, query.device)
            here = slice(keys.start, keys.stop)
            if graph.reflexive and T <= S:
                return piece(query, key, value, mask, here)
            heard = mask.any(dim=-1, keepdim=True)
            return piece(query, key, value, mask | ~heard, here).masked_fill(~heard, 0.0)

        parts = query[:, :, start:stop], key[:, :, low:high], value[:, :, low:high]
        keep = T <= ROWS or not torch.is_grad_enabled()
        gathered.append(run(*parts) if keep else checkpoint(run, *parts, use_reentrant=False))
    return gathered[0] if len(gathered) == 1 else torch.cat(gathered, dim=2)


def _by_blocks(scores: Scores, value: Tensor, graph: Graph, softcap: float | None) -> Tensor:
    """FlexAttention: blocks of the matrix without an edge are skipped, and no mask is held."""
    bias = scores.key_bias

    def score_mod(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if bias is None else score + bias[b % len(bias), h, s]

    kernel: Callable[..., Tensor] = flex_attention
    if value.is_cuda and not torch.compiler.is_compiling():
        kernel = _compiled_flex_attention()
    gathered: Tensor = kernel(
        scores.query.to(value.dtype),
        scores.key.to(value.dtype),
        value,
        score_mod=None if softcap is None and bias is None else score_mod,
        block_mask=_block_mask(graph, value.device, scores.query.shape[2], value.shape[2]),
        scale=scores.scale,
    )
    return gathered


@lru_cache(maxsize=8)  # a model's layers share their graphs, and a static graph stays the same from step to step
def _block_mask(graph: Graph, device: torch.device, n_queries: int, n_keys: int) -> BlockMask:
    n_batch, n_heads = (n if n > 1 else None for n in graph.shape)

    def edges(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:  # a plain function, as torch looks at its kind
        return graph.edges(b, h, t, s)

    return create_block_mask(edges, n_batch, n_heads, n_queries, n_keys, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    """Without the compiler that it needs, FlexAttention would hold the whole matrix."""
    return importlib.util.find_spec("triton") is not None


def _scores(query: Tensor, key: Tensor, similarity: Similarity, key_bias: Tensor | None) -> Scores:
    """The similarity's scores, a key for each query head, with the positions' bias added to its own."""
    scores = similarity.scores(query, key)
    bias = scores.key_bias
    if key_bias is not None:
        bias = key_bias if bias is None else bias + key_bias
    return Scores(scores.query, _repeat_heads(scores.key, query.shape[1]), scores.scale, bias)


def _weights(scores: Scores, mask: Tensor, similarity: Similarity, softcap: float | None) -> Tensor:
    """(B, H, T, S) weights of one piece in at least float32; NaN in rows of the mask without an edge."""
    dtype = torch.promote_types(scores.query.dtype, torch.float32)
    products = scores.query.to(dtype) @ scores.key.to(dtype).mT * scores.scale
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    if scores.key_bias is not None:
        products = products + scores.key_bias[:, :, None].to(dtype)
    products = products.masked_fill(~mask, float("-inf"))
    return similarity.choose(products) if isinstance(similarity, Hard) else products.softmax(dim=-1)


def _linear_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """(B, H, T, S) weights of one piece from features, in at least float32."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    products = (query.to(dtype) @ key.to(dtype).mT).masked_fill(~mask, 0.0)
    return products / products.sum(dim=-1, keepdim=True)


def _repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, H_kv, T, D) -> (B, H, T, D). Explicit, as enable_gqa leaves the fused kernel on some devices."""
    return x if x.shape[1] == n_head else x.repeat_interleave(n_head // x.shape[1], dim=1)


def _bias_in_channels(scores: Scores) -> tuple[Tensor, Tensor]:
    """Queries and keys whose product has the bias in it: (q, 1)·(k, bias) = q·k + bias.

    The fused kernels take no bias for each key along with the causal flag, nor give its gradient. A bias of 16 bits
    would be coarser than the scores' differences, so there it is split over three channels, which hold 24 bits.
    """
    query, key, scale, bias = scores
    if bias is None:
        return query, key
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    bias = (bias / scale).expand(len(key), -1, -1)
    parts = []
    for _ in range(3 if dtype.itemsize < 4 else 1):
        parts.append(bias.to(dtype))
        bias = bias - parts[-1]
    ones = query.new_ones(()).to(dtype).expand(*query.shape[:-1], len(parts))
    return torch.cat([query.to(dtype), ones], dim=-1), torch.cat([key.to(dtype), torch.stack(parts, dim=-1)], dim=-1)


def _of_one_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zero channels for the narrower ones, as the fused kernels want one width: they change no product and no sum."""
    widths = query.shape[-1], value.shape[-1]
    if widths[0] == widths[1]:
        return query, key, value
    width = -(-max(widths) // 8) * 8  # rows that begin at multiples of 32 bytes are faster
    query, key, value = (F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    return query, key, value


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    similarity: Similarity,
    graph: Graph,
    key_bias: Tensor | None,
    softcap: float | None,
    dropout: float,
) -> None:
    (B, H, T, D), S = query.shape, key.shape[2]
    if key.shape[0] != B or key.shape[3] != D or key.shape[:3] != value.shape[:3]:
        raise UserError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: "
            "they are (B, H, T, D), (B, H_kv, S, D) and (B, H_kv, S, D_v)"
        )
    if H % key.shape[1]:
        raise UserError(f"{key.shape[1]} key heads do not divide {H} query heads: each serves an equal number of them")
    graph.check(B, H, T, S)
    check_attention(similarity.name, softcap=softcap, dropout=dropout, alibi=key_bias is not None)


class Attention(nn.Module):
    """Causal multi-head self-attention: one projection makes what the similarity needs, one mixes the heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.width_per_head
        self.similarity = SIMILARITIES[config.similarity](config)
        self.softcap, self.dropout = config.logit_softcap, config.dropout
        n_heads = {"query": config.n_head, "key": config.kv_heads, "value": config.kv_heads}
        self.n_head = config.n_head
        self.n_projected = [n if name in self.similarity.projections else 0 for name, n in n_heads.items()]
        self.qkv = nn.Linear(config.n_embd, sum(self.n_projected) * self.head_dim, bias=config.bias)
        self.proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        n_query, n_key, _ = self.n_projected
        self.q_norm = make_norm(config, self.head_dim) if config.qk_norm and n_query else nn.Identity()
        self.k_norm = make_norm(config, self.head_dim) if config.qk_norm and n_key else nn.Identity()
        # Whoever wants to look is handed the very queries, keys and values that are attended with; see
        # inspection.capture.
        self.tap: Callable[[Tensor, Tensor, Tensor, How], None] | None = None

    def forward(self, x: Tensor, graph: Graph, rotary: Tensor | None, key_bias: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C); rotary is the (2, T, D / 2) table and key_bias ALiBi's, or None without them."""
        B, T, _ = x.shape
        query, key, value = self._project(x)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        how: How = {"similarity": self.similarity, "graph": graph, "key_bias": key_bias, "softcap": self.softcap}
        if self.tap is not None:
            self.tap(query, key, value, how)
        gathered = attend(query, key, value, dropout=self.dropout if self.training else 0.0, **how)
        mixed: Tensor = self.proj(gathered.transpose(1, 2).reshape(B, T, self.n_head * self.head_dim))
        return mixed

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> query (B, H, T, D), key and value (B, H_kv, T, D), shared or zero where there are fewer."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, sum(self.n_projected), self.head_dim).transpose(1, 2)
        query, key, value = heads.split(self.n_projected, dim=1)
        if "key" not in self.similarity.projections:
            nothing = value.new_zeros(())
            return nothing.expand(B, self.n_head, T, self.head_dim), nothing.expand_as(value), value
        key = self.k_norm(key)
        return (self.q_norm(query) if "query" in self.similarity.projections else key), key, value
