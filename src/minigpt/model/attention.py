"""Queries, keys and values -> what each token gathers from the tokens it listens to.

One sentence describes it: each token sends a query along the edges of a directed graph, weighs what its in-neighbours
offer by the similarity of query and key, and takes the weighted sum of their values. `attend` is that sentence, as fast
as the similarity's mathematics and the graph's shape allow; `attention_weights` writes its weights out, for looking;
`reference.attend_slowly` is the sentence word by word, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig, check_attention
from minigpt.errors import UserError
from minigpt.model.cache import LayerCache
from minigpt.model.norms import make_norm
from minigpt.model.variants.graphs import Causal, Full, Graph
from minigpt.model.variants.kernels import by_blocks, chunked, fused, has_triton, repeat_heads
from minigpt.model.variants.linear_attention import causal_linear_attention, full_linear_attention, full_product
from minigpt.model.variants.positions import rotate
from minigpt.model.variants.similarities import SIMILARITIES, Hard, Linear, Scores, Similarity


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
    full graph, with a flag on the causal one, with FlexAttention's block mask on a GPU, and else in pieces of some
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
    how: How = {"similarity": similarity, "graph": graph, "key_bias": key_bias, "softcap": softcap}
    _check(query, key, value, how, dropout)
    if isinstance(similarity, Linear):
        return _gather_linearly(query, key, value, similarity, graph)
    for _ in range(similarity.steps - 1):
        query = _gather(query, key, key, how, dropout)
    return _gather(query, key, value, how, dropout)


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    similarity: Similarity,
    graph: Graph,
    key_bias: Tensor | None = None,
    softcap: float | None = None,
    queries: range | None = None,
) -> Tensor:
    """The weights that `attend` gives each value, written out: of the last step, where there are several.

    Args: as for `attend`; queries are the positions whose weights are wanted, when not of all.

    Returns:
        (B, H, T, S) in at least float32: rows sum to 1, or to 0 where nothing is heard; 0 where there is no edge. T is
        the number of queries that are wanted.
    """
    how: How = {"similarity": similarity, "graph": graph, "key_bias": key_bias, "softcap": softcap}
    return weights_of(attention_scores(query, key, how, queries), similarity)


def attention_scores(query: Tensor, key: Tensor, how: How, queries: range | None = None) -> Tensor:
    """What the softmax makes weights of: -inf where there is no edge; of linear attention, the products of features.

    Args: as for `attention_weights`, the kind of attention as a tap is told it.

    Returns:
        (B, H, T, S) in at least float32.
    """
    _check(query, key, key, how)
    similarity = how["similarity"]
    (B, H, T, _), S = query.shape, key.shape[2]
    queries = range(T) if queries is None else queries
    wanted = slice(queries.start, queries.stop)
    if isinstance(similarity, Linear):
        features = similarity.features(query[:, :, wanted]), similarity.features(repeat_heads(key, H))
        products = full_product(features[0], features[1].mT)
    else:
        for _ in range(similarity.steps - 1):
            query = _gather(query, key, key, how)
        products = _products(_scores(query[:, :, wanted], key, similarity, how["key_bias"]), how["softcap"])
    mask = how["graph"].mask(queries, range(S), query.device)
    return products.masked_fill(~mask, float("-inf")).expand(B, H, len(queries), S)


def weights_of(scores: Tensor, similarity: Similarity) -> Tensor:
    """`attention_scores` -> `attention_weights`."""
    edges = ~scores.isneginf()
    if isinstance(similarity, Linear):
        return _shares(scores.masked_fill(~edges, 0.0))
    heard = edges.any(dim=-1, keepdim=True)
    return _normalised(scores.masked_fill(~heard, 0.0), similarity).masked_fill(~heard, 0.0)


def _gather(query: Tensor, key: Tensor, value: Tensor, how: How, dropout: float = 0.0) -> Tensor:
    """One softmax, or one hard choice, over the keys of each query."""
    similarity, softcap = how["similarity"], how["softcap"]
    graph = how["graph"].reduced(query.shape[2], key.shape[2])
    if isinstance(graph, Full) and key.shape[1] < query.shape[1] and how["key_bias"] is None:
        scores = similarity.scores(query, key)
        if scores.key_bias is None and softcap is None and not isinstance(similarity, Hard):
            return _fused_by_groups(scores, value, dropout)
    scores = _scores(query, key, similarity, how["key_bias"])
    value = repeat_heads(value, query.shape[1])
    simple = softcap is None and isinstance(graph, Full | Causal)
    if query.is_cuda and not simple and not dropout and not isinstance(similarity, Hard) and has_triton():
        return by_blocks(scores, value, graph, softcap)
    if softcap is None and not isinstance(similarity, Hard):
        return fused(scores, value, graph, dropout)

    def by_weights(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        bias = None if scores.key_bias is None else scores.key_bias[..., keys]
        weights = _weights(Scores(query, key, scores.scale, bias), mask, similarity, softcap)
        return (F.dropout(weights, dropout).to(value.dtype) @ value).to(value.dtype)

    return chunked(by_weights, scores.query, scores.key, value, graph, writes_weights=True)


def _fused_by_groups(scores: Scores, value: Tensor, dropout: float) -> Tensor:
    """On the full graph, the query heads of a key head are more queries of one head: no key is copied for each.

    A decoding step would otherwise copy all keys and values so far, in every layer.
    """
    (B, H, T, D), H_kv = scores.query.shape, value.shape[1]
    query = scores.query.reshape(B, H_kv, H // H_kv * T, D)
    gathered = fused(Scores(query, scores.key, scores.scale), value, Full(), dropout)
    return gathered.reshape(B, H, T, value.shape[-1])


def _gather_linearly(query: Tensor, key: Tensor, value: Tensor, similarity: Linear, graph: Graph) -> Tensor:
    query, key = similarity.features(query), similarity.features(repeat_heads(key, query.shape[1]))
    value = repeat_heads(value, query.shape[1])
    graph = graph.reduced(query.shape[2], key.shape[2])
    if isinstance(graph, Full):
        return full_linear_attention(query, key, value)
    if isinstance(graph, Causal) and query.shape[2] == key.shape[2]:
        return causal_linear_attention(query, key, value)[0]

    def by_weights(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        return (_linear_weights(query, key, mask).to(value.dtype) @ value).to(value.dtype)

    return chunked(by_weights, query, key, value, graph, writes_weights=True)


def _scores(query: Tensor, key: Tensor, similarity: Similarity, key_bias: Tensor | None) -> Scores:
    """The similarity's scores, a key for each query head, with the positions' bias added to its own."""
    scores = similarity.scores(query, key)
    bias = scores.key_bias
    if key_bias is not None:
        bias = key_bias if bias is None else bias + key_bias
    return Scores(scores.query, repeat_heads(scores.key, query.shape[1]), scores.scale, bias)


def _weights(scores: Scores, mask: Tensor, similarity: Similarity, softcap: float | None) -> Tensor:
    """(B, H, T, S) weights of one piece in at least float32; NaN in rows of the mask without an edge."""
    return _normalised(_products(scores, softcap).masked_fill(~mask, float("-inf")), similarity)


def _normalised(products: Tensor, similarity: Similarity) -> Tensor:
    return similarity.choose(products) if isinstance(similarity, Hard) else products.softmax(dim=-1)


def _products(scores: Scores, softcap: float | None) -> Tensor:
    """(B, H, T, S) scores in at least float32."""
    products = full_product(scores.query, scores.key.mT) * scores.scale
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    if scores.key_bias is not None:
        products = products + scores.key_bias[:, :, None].to(products.dtype)
    return products


def _linear_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """(B, H, T, S) weights of one piece from features, in at least float32."""
    return _shares(full_product(query, key.mT).masked_fill(~mask, 0.0))


def _shares(products: Tensor) -> Tensor:
    return products / products.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(products.dtype).tiny)


def _check(query: Tensor, key: Tensor, value: Tensor, how: How, dropout: float = 0.0) -> None:
    (B, H, T, D), S = query.shape, key.shape[2]
    if key.shape[0] != B or key.shape[3] != D or key.shape[:3] != value.shape[:3]:
        raise UserError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: "
            "they are (B, H, T, D), (B, H_kv, S, D) and (B, H_kv, S, D_v)"
        )
    if H % key.shape[1]:
        raise UserError(f"{key.shape[1]} key heads do not divide {H} query heads: each serves an equal number of them")
    how["graph"].check(B, H, T, S)
    bias, n_head = how["key_bias"], how["similarity"].n_head
    if bias is not None and tuple(bias.shape) not in {(1, H, S), (B, H, S)}:
        raise UserError(f"key_bias has shape {tuple(bias.shape)}: it is (1, {H}, {S}) or ({B}, {H}, {S})")
    if n_head not in {None, H}:
        raise UserError(f"the similarity was made for {n_head} heads, but there are {H} query heads")
    check_attention(how["similarity"].name, softcap=how["softcap"], dropout=dropout, alibi=how["key_bias"] is not None)


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
        # Each is called with the queries, keys and values that are attended with; see inspection.capture.
        self.taps: list[Callable[[Tensor, Tensor, Tensor, How], None]] = []

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        rotary: Tensor | None,
        key_bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); rotary is the (2, T, D) table and key_bias ALiBi's, or None without them.

        With a cache, the T tokens also hear those that it holds; the graph then has a key for each of them as well.
        """
        B, T, _ = x.shape
        query, key, value = self._project(x)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if cache is not None and not cache.summed:
            key, value = cache.extend(key, value)
        how: How = {"similarity": self.similarity, "graph": graph, "key_bias": key_bias, "softcap": self.softcap}
        for tap in self.taps:
            tap(query, key, value, how)
        if cache is not None and cache.summed:
            gathered = self._gather_on(query, key, value, cache)
        else:
            gathered = attend(query, key, value, dropout=self.dropout if self.training else 0.0, **how)
        mixed: Tensor = self.proj(gathered.transpose(1, 2).reshape(B, T, self.n_head * self.head_dim))
        return mixed

    def _gather_on(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        """Linear attention from the sums of the tokens before; padding adds nothing to them."""
        assert isinstance(self.similarity, Linear)
        query, key = self.similarity.features(query), self.similarity.features(repeat_heads(key, self.n_head))
        real = cache.real(key.shape[2])
        if real is not None:
            key = key * real[:, None, :, None]
        value = repeat_heads(value, self.n_head)
        gathered, cache.state = causal_linear_attention(query, key, value, cache.state)
        return gathered

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> query (B, H, T, D), key and value (B, H_kv, T, D), shared or zero where there are fewer."""
        B, T, _ = x.shape
        # Divided before heads are: so the gradients of all three are put together where qkv's is wanted, in one copy.
        parts = self.qkv(x).split([n * self.head_dim for n in self.n_projected], dim=-1)
        query, key, value = (
            part.view(B, T, n, self.head_dim).transpose(1, 2) for n, part in zip(self.n_projected, parts, strict=True)
        )
        if "key" not in self.similarity.projections:
            nothing = value.new_zeros(())
            return nothing.expand(B, self.n_head, T, self.head_dim), nothing.expand_as(value), value
        key = self.k_norm(key)
        return (self.q_norm(query) if "query" in self.similarity.projections else key), key, value
