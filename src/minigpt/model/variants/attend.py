"""`attend`: attention with any similarity and graph, and its weights written out for inspection.

Each token sends a query along the edges of a directed graph, weighs its in-neighbours by the similarity of query and
key, and takes the weighted sum of their values. `attend` computes that as fast as the similarity and the graph allow;
`attention_weights` writes the weights out. A model's layers come here for whatever `attention.Attention` does not do
itself. The tests compare it with the same definition as a loop over tokens (tests/reference.py).
"""

from __future__ import annotations

from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import check_attention
from minigpt.errors import UserError
from minigpt.model.cache import LayerCache
from minigpt.model.variants import flex
from minigpt.model.variants.graphs import Adjacency, Causal, Full, Graph
from minigpt.model.variants.kernels import ROWS_PER_CHUNK, chunked, fused, repeat_heads, with_a_key_for_each_head
from minigpt.model.variants.linear_attention import causal_linear_attention, float32_product, full_linear_attention
from minigpt.model.variants.similarities import Hard, Linear, ScoreFactors, Similarity


class AttentionSpec(TypedDict):
    """The kind of attention: all arguments of `attend` but its queries, keys, values and dropout.

    A dict, so that a hook that receives it passes it on: `attention_weights(query, key, **spec)`.
    """

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
    """Each query's weighted sum of the values it attends to; zeros, with a gradient of zero, in fully masked rows.

    Self- and cross-attention differ only in where key and value come from. Memory grows with T, not with T * S, but for
    one case: with dropout, PyTorch's kernel for a CPU stores the weights of all queries on the causal and full graphs.

    Args:
        query: (B, H, T, D).
        key: (B, H_kv, S, D); H_kv divides H, and query head h reads key head h // (H / H_kv).
        value: (B, H_kv, S, D_v).
        similarity: how much a query weighs a key.
        graph: which tokens each query may attend to, stored as a rule, not a matrix.
        key_bias: (B or 1, H, S), added to the score of every query with that key; ALiBi's form. Not learned.
        softcap: bends scores into (-softcap, softcap) by a tanh, before key_bias (Gemma 2, arXiv:2408.00118).
        dropout: probability of dropping a weight.

    Returns:
        (B, H, T, D_v), in value's dtype.

    Raises:
        UserError: shapes that do not fit one another, or a softcap, bias or dropout that the similarity cannot have.
    """
    spec: AttentionSpec = {"similarity": similarity, "graph": graph, "key_bias": key_bias, "softcap": softcap}
    _check(query, key, value, spec, dropout)
    return attend_variant(query, key, value, spec, dropout, None)


def attend_variant(
    query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, dropout: float, cache: LayerCache | None
) -> Tensor:
    """Attention of a model's layer wherever it is not the default: `attend` without its checks, and with a cache.

    The config and the graph were checked when they were built, so no layer checks them again in each step.

    Args: as for `attend`; cache is the layer's, to which the new keys and values have been added.
    """
    similarity = spec["similarity"]
    if isinstance(similarity, Linear):
        return _attend_linearly(query, key, value, similarity, spec["graph"], cache)
    # Hopfield: all but the last step replace the query by the weighted sum of keys.
    for _ in range(similarity.steps - 1):
        query = _gather(query, key, key, spec, dropout)
    return _gather(query, key, value, spec, dropout)


def missing_query_and_key(key: Tensor, value: Tensor, n_head: int) -> tuple[Tensor, Tensor]:
    """The query and key of a similarity without a query projection: `Symmetric` has one for both, `Uniform` none.

    Args:
        key: (B, H, T, D), or without heads where keys are not projected either.
        value: (B, H_kv, T, D).
        n_head: query heads, H.

    Returns:
        (B, H, T, D) queries and (B, H or H_kv, T, D) keys; zeros, without memory of their own, for `Uniform`.
    """
    if key.shape[1]:
        return key, key
    (B, _, T, D), zero = value.shape, value.new_zeros(())
    return zero.expand(B, n_head, T, D), zero.expand_as(value)


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

    Args: as for `attend`; queries are the positions whose weights are returned; all when not given.

    Returns:
        (B, H, T, S) in at least float32: rows sum to 1, or to 0 where fully masked; 0 where there is no edge. T is
        the number of `queries`.
    """
    spec: AttentionSpec = {"similarity": similarity, "graph": graph, "key_bias": key_bias, "softcap": softcap}
    return weights_of(attention_scores(query, key, spec, queries), similarity)


def query_chunks(T: int) -> list[range]:
    """The T queries in chunks whose scores, written out, take little memory."""
    return [range(start, min(start + ROWS_PER_CHUNK, T)) for start in range(0, T, ROWS_PER_CHUNK)]


def attention_scores(query: Tensor, key: Tensor, spec: AttentionSpec, queries: range | None = None) -> Tensor:
    """Scores before the softmax, -inf where there is no edge; for linear attention, the products of features.

    Args: as for `attention_weights`, the kind of attention as hooks receive it.

    Returns:
        (B, H, T, S) in at least float32.
    """
    _check(query, key, key, spec)
    similarity = spec["similarity"]
    (B, H, T, _), S = query.shape, key.shape[2]
    queries = range(T) if queries is None else queries
    wanted = slice(queries.start, queries.stop)
    if isinstance(similarity, Linear):
        features = similarity.features(query[:, :, wanted]), similarity.features(repeat_heads(key, H))
        products = float32_product(features[0], features[1].mT)
    else:
        for _ in range(similarity.steps - 1):
            query = _gather(query, key, key, spec)
        factors = _score_factors(query[:, :, wanted], key, similarity, spec["key_bias"])
        factors, _ = with_a_key_for_each_head(factors, key)
        products = _written_scores(factors, spec["softcap"])
    mask = spec["graph"].mask(queries, range(S), query.device)
    return products.masked_fill(~mask, float("-inf")).expand(B, H, len(queries), S)


def weights_of(scores: Tensor, similarity: Similarity) -> Tensor:
    """`attention_scores` -> `attention_weights`."""
    edges = ~scores.isneginf()
    if isinstance(similarity, Linear):
        return _shares(scores.masked_fill(~edges, 0.0))
    # A softmax over -inf alone would be NaN: fully masked rows get scores of 0, then weights of 0.
    attends = edges.any(dim=-1, keepdim=True)
    return _normalised(scores.masked_fill(~attends, 0.0), similarity).masked_fill(~attends, 0.0)


def _gather(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, dropout: float = 0.0) -> Tensor:
    """One softmax, or one hard choice, over the keys of each query, by the fastest kernel that allows it."""
    similarity, softcap = spec["similarity"], spec["softcap"]
    graph = spec["graph"].reduced(query.shape[2], key.shape[2])
    factors = _score_factors(query, key, similarity, spec["key_bias"])
    is_softmax, is_grouped = not isinstance(similarity, Hard), key.shape[1] < query.shape[1]
    # Grouped heads of one query or on the full graph, as in every decode step: no key is copied for each query head.
    is_one_mask = isinstance(graph, Full) or query.shape[2] == 1 == graph.shape[1]
    if is_one_mask and is_grouped and is_softmax and factors.key_bias is None and softcap is None:
        return _fused_by_groups(factors, value, graph, dropout)
    pays = is_softmax and flex.pays(
        graph,
        softcap,
        dropout,
        device=query.device.type,
        dtype=value.dtype,
        n_queries=query.shape[2],
        n_keys=key.shape[2],
        width=min(query.shape[3], value.shape[3]),
    )
    if pays and flex.can_run():
        gathered = flex.by_blocks(factors, value, graph, softcap)
        if gathered is not None:
            return gathered
    if softcap is None and is_softmax:
        return fused(factors, value, graph, dropout)
    factors, value = with_a_key_for_each_head(factors, value)

    # The fused kernel has no softcap and chooses no key: write the weights out, chunk by chunk.
    def by_weights(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        bias = None if factors.key_bias is None else factors.key_bias[..., keys]
        chunk = ScoreFactors(query, key, factors.scale, bias)
        weights = _normalised(_written_scores(chunk, softcap).masked_fill(~mask, float("-inf")), similarity)
        return (F.dropout(weights, dropout).to(value.dtype) @ value).to(value.dtype)

    return chunked(by_weights, factors.query, factors.key, value, graph, writes_weights=True)


def _fused_by_groups(factors: ScoreFactors, value: Tensor, graph: Graph, dropout: float) -> Tensor:
    """With one mask for all queries, heads that share a key head can be stacked as further queries of it."""
    (B, H, T, D), (_, H_kv, S, _) = factors.query.shape, value.shape
    query = factors.query.reshape(B, H_kv, H // H_kv * T, D)
    if not isinstance(graph, Full):
        mask = graph.mask(range(1), range(S), query.device)
        graph = Adjacency(mask.expand(-1, -1, query.shape[2], -1))
    gathered = fused(ScoreFactors(query, factors.key, factors.scale), value, graph, dropout)
    return gathered.reshape(B, H, T, value.shape[-1])


def _attend_linearly(
    query: Tensor, key: Tensor, value: Tensor, similarity: Linear, graph: Graph, cache: LayerCache | None
) -> Tensor:
    query, key = similarity.features(query), similarity.features(repeat_heads(key, query.shape[1]))
    value = repeat_heads(value, query.shape[1])
    if cache is not None and cache.summed:  # go on from the sums over earlier tokens
        is_real = cache.is_real(key.shape[2])
        if is_real is not None:  # padding adds nothing to a sum
            key = key * is_real[:, None, :, None]
        gathered, cache.state = causal_linear_attention(query, key, value, cache.state)
        return gathered
    graph = graph.reduced(query.shape[2], key.shape[2])
    if isinstance(graph, Full):
        return full_linear_attention(query, key, value)
    if isinstance(graph, Causal) and query.shape[2] == key.shape[2]:
        return causal_linear_attention(query, key, value)[0]

    # Any other mask cuts through the sums: write the weights out, chunk by chunk.
    def by_weights(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        weights = _shares(float32_product(query, key.mT).masked_fill(~mask, 0.0))
        return (weights.to(value.dtype) @ value).to(value.dtype)

    return chunked(by_weights, query, key, value, graph, writes_weights=True)


def _score_factors(query: Tensor, key: Tensor, similarity: Similarity, key_bias: Tensor | None) -> ScoreFactors:
    """The similarity's factors, with the positions' bias added to its own."""
    factors = similarity.score_factors(query, key)
    bias = factors.key_bias
    if key_bias is not None:
        bias = key_bias if bias is None else bias + key_bias
    return factors._replace(key_bias=bias)


def _normalised(products: Tensor, similarity: Similarity) -> Tensor:
    return similarity.choose(products) if isinstance(similarity, Hard) else products.softmax(dim=-1)


def _written_scores(factors: ScoreFactors, softcap: float | None) -> Tensor:
    """(B, H, T, S) scores in at least float32."""
    products = float32_product(factors.query, factors.key.mT) * factors.scale
    # The cap comes before ALiBi's bias, which it would otherwise flatten at long distances.
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    if factors.key_bias is not None:
        products = products + factors.key_bias[:, :, None].to(products.dtype)
    return products


def _shares(products: Tensor) -> Tensor:
    # Clamped, so that a row without an edge is 0 / tiny = 0 and not NaN.
    return products / products.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(products.dtype).tiny)


def _check(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, dropout: float = 0.0) -> None:
    (B, H, T, D), S = query.shape, key.shape[2]
    if key.shape[0] != B or key.shape[3] != D or key.shape[:3] != value.shape[:3]:
        raise UserError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: "
            "they are (B, H, T, D), (B, H_kv, S, D) and (B, H_kv, S, D_v)"
        )
    if H % key.shape[1]:
        raise UserError(f"{key.shape[1]} key heads do not divide {H} query heads: each serves an equal number of them")
    spec["graph"].check(B, H, T, S)
    bias, n_head = spec["key_bias"], spec["similarity"].n_head
    if bias is not None and tuple(bias.shape) not in {(1, H, S), (B, H, S)}:
        raise UserError(f"key_bias has shape {tuple(bias.shape)}: it is (1, {H}, {S}) or ({B}, {H}, {S})")
    if n_head not in {None, H}:
        raise UserError(f"the similarity was made for {n_head} heads, but there are {H} query heads")
    check_attention(
        spec["similarity"].name, softcap=spec["softcap"], dropout=dropout, alibi=spec["key_bias"] is not None
    )
