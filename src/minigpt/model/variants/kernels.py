"""Attention kernels: the weighted sum of values for scores and a graph, without storing the (T, S) matrix.

`fused` serves every softmax on a CPU, and full and causal graphs on a GPU; `by_blocks` (FlexAttention) the other graphs
on a GPU; `chunked` whatever needs explicit scores or a dense mask.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from minigpt.model.variants.graphs import Causal, Full, Graph
from minigpt.model.variants.intervals import attend_intervals
from minigpt.model.variants.similarities import ScoreFactors

ROWS_PER_CHUNK = 256
"""Queries in one chunk of a dense mask."""
WEIGHTS_PER_CHUNK = 2**22
"""Weights in one chunk, over all rows and heads: 16 MB in float32, of which a few copies exist at a time."""


def fused(factors: ScoreFactors, value: Tensor, graph: Graph, dropout: float) -> Tensor:
    """torch's scaled_dot_product_attention, with its causal flag or with chunks of a dense mask.

    On a CPU a mask, or a bias of keys, goes to `intervals` where it can.
    """
    dtype, D_v = value.dtype, value.shape[-1]
    is_plain = factors.key_bias is None and isinstance(graph, Full | Causal)
    # Blocks depend on the numbers in the mask, which torch.compile does not see.
    fits = value.device.type == "cpu" and not dropout and not torch.compiler.is_compiling()
    if fits and not is_plain:
        bounds = graph.intervals(factors.query.shape[2], value.shape[2])
        if bounds is not None:
            return _by_intervals(factors, value, *bounds)
    query, key, value = _of_one_width(factors, value)

    def by_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=factors.scale)

    if isinstance(graph, Full | Causal):
        gathered = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=isinstance(graph, Causal), scale=factors.scale
        )
    else:
        gathered = chunked(by_mask, query, key, value, graph)
    return gathered[..., :D_v].to(dtype)


def _by_intervals(factors: ScoreFactors, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    dtype, D_v = value.dtype, value.shape[-1]
    query, key, scale, bias = factors
    if torch.is_autocast_enabled("cpu"):  # which knows no operator but torch's own
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    width = max(query.shape[-1], D_v)
    query, key, value = (_widened([x], width) for x in (query, key, value.to(query.dtype)))
    return attend_intervals(query, key, value, low, high, bias, scale)[..., :D_v].to(dtype)


def chunked(
    attend_chunk: Callable[[Tensor, Tensor, Tensor, Tensor, slice], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    graph: Graph,
    *,
    writes_weights: bool = False,
) -> Tensor:
    """Attention of some queries at a time, over the keys in their reach and that chunk of the mask.

    Args:
        attend_chunk: (query, key, value, mask, keys) -> the weighted sums of these queries over these keys.
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D_v).
        graph: the mask.
        writes_weights: whether attend_chunk materialises its weights. Then chunks have equally many weights, at most
            WEIGHTS_PER_CHUNK, instead of equally many queries.
    """
    (B, H, T, _), S = query.shape, key.shape[2]
    gathered: list[Tensor] = []
    stop = 0
    while stop < T:
        start = stop
        # Equally many weights bound the memory whatever the number of keys, and the allocator reuses one chunk's memory
        # for the next: growing chunks would fragment the heap.
        n_rows = ROWS_PER_CHUNK
        if writes_weights:
            n_rows = _rows_of_weights(graph, start, T, S, WEIGHTS_PER_CHUNK // (B * H))
        stop = min(start + n_rows, T)
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
                return attend_chunk(query, key, value, mask, here)
            # Fully masked rows attend everywhere, then are zeroed: a softmax over a row of -inf would be NaN.
            attends = mask.any(dim=-1, keepdim=True)
            return attend_chunk(query, key, value, mask | ~attends, here).masked_fill(~attends, 0.0)

        parts = query[:, :, start:stop], key[:, :, low:high], value[:, :, low:high]
        # For the backward pass each chunk is computed again, so memory grows with T, not with T * S.
        keep = stop - start == T or not torch.is_grad_enabled()
        gathered.append(run(*parts) if keep else checkpoint(run, *parts, use_reentrant=False))
    return gathered[0] if len(gathered) == 1 else torch.cat(gathered, dim=2)


def _rows_of_weights(graph: Graph, start: int, n_queries: int, n_keys: int, most: int) -> int:
    """The largest number of queries from `start` on with at most `most` weights; at least one."""

    def weights(rows: int) -> int:
        low, high = graph.reach(start, start + rows, n_keys)
        return rows * max(0, high - low)

    # A window does not reach back to the first key: long chunks would be masked almost everywhere.
    fewest, largest = 1, n_queries - start if graph.reach(start, start + 1, n_keys)[0] == 0 else ROWS_PER_CHUNK
    while fewest < largest:
        middle = (fewest + largest + 1) // 2
        fewest, largest = (middle, largest) if weights(middle) <= most else (fewest, middle - 1)
    return fewest


def by_blocks(factors: ScoreFactors, value: Tensor, graph: Graph, softcap: float | None) -> Tensor:
    """FlexAttention: skips empty blocks of the mask and stores no mask (Dong et al. 2024, arXiv:2412.05496)."""
    bias = factors.key_bias

    def score_mod(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if bias is None else score + bias[b % len(bias), h, s]

    # Uncompiled, FlexAttention stores the whole matrix. Inside a compiled model the outer compiler fuses it.
    kernel: Callable[..., Tensor] = flex_attention
    if value.is_cuda and not torch.compiler.is_compiling():
        kernel = _compiled_flex_attention()
    return kernel(
        factors.query.to(value.dtype),
        factors.key.to(value.dtype),
        value,
        score_mod=None if softcap is None and bias is None else score_mod,
        block_mask=_block_mask(graph, value.device, factors.query.shape[2], value.shape[2]),
        scale=factors.scale,
    )


@lru_cache(maxsize=8)  # layers share their graphs, and a static graph is the same in every step
def _block_mask(graph: Graph, device: torch.device, n_queries: int, n_keys: int) -> BlockMask:
    # A size of None: the mask is the same for all rows or heads, and is built once.
    n_batch, n_heads = (n if n > 1 else None for n in graph.shape)

    def edges(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:  # a plain function: torch inspects its type
        return graph.edges(b, h, t, s)

    return create_block_mask(edges, n_batch, n_heads, n_queries, n_keys, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether FlexAttention can compile its kernel; without Triton it would materialise the whole matrix."""
    return importlib.util.find_spec("triton") is not None


def repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, H_kv, T, D) -> (B, H, T, D)."""
    # Not by the kernel's enable_gqa, which leaves the fused kernel on some devices.
    return x if x.shape[1] == n_head else x.repeat_interleave(n_head // x.shape[1], dim=1)


def _of_one_width(factors: ScoreFactors, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one width, as the fused kernels need them, with the bias as an extra channel."""
    # (q, 1)·(k, bias) = q·k + bias: the kernels take no per-key bias together with the causal flag, nor give its
    # gradient. Channels of zeros change no product and no sum.
    query, key, scale, bias = factors
    if bias is None and query.shape[-1] == value.shape[-1]:
        return query, key, value
    dtype, parts = query.dtype, []
    if bias is not None:
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        bias = (bias / scale).expand(len(key), -1, -1)
        # One channel of 16 bits would be too coarse for the bias: three, each the rest of the one before, hold 24 bits.
        for _ in range(3 if dtype.itemsize < 4 else 1):
            parts.append(bias.to(dtype))
            bias = bias - parts[-1]
    width = max(query.shape[-1] + len(parts), value.shape[-1])
    width = -(-width // 8) * 8  # a multiple of 8 channels, as aligned rows are faster
    ones = [query.new_ones(()).to(dtype).expand(*query.shape[:-1], 1)] * len(parts)
    channels = [part[..., None] for part in parts]
    return (
        _widened([query.to(dtype), *ones], width),
        _widened([key.to(dtype), *channels], width),
        _widened([value], width),
    )


def _widened(channels: list[Tensor], width: int) -> Tensor:
    """Concatenate channels and pad with zeros to a width, in at most one copy."""
    missing = width - sum(x.shape[-1] for x in channels)
    if missing:
        channels = [*channels, channels[0].new_zeros(()).expand(*channels[0].shape[:-1], missing)]
    return torch.cat(channels, dim=-1) if len(channels) > 1 else channels[0]
