"""Attention kernels: the weighted sum of values for scores and a graph, without storing the (T, S) matrix.

`fused` serves every softmax on a CPU, and full and causal graphs on a GPU, whose other graphs go to `flex` where that
pays; `chunked` whatever needs explicit scores or a dense mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minigpt.model.variants.graphs import Causal, Full, Graph
from minigpt.model.variants.intervals import IS_SUPPORTED, attend_intervals
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
    # A mask with dropout, the math of two dtypes and GPUs' kernels for masks take no grouped heads.
    if factors.key_bias is not None or not takes_groups(value, graph):
        factors, value = with_a_key_for_each_head(factors, value)
    if fits and not is_plain and IS_SUPPORTED:
        bounds = graph.intervals(factors.query.shape[2], value.shape[2])
        if bounds is not None:
            return _by_intervals(factors, value, *bounds)
    query, key, value = of_one_width(factors, value)
    # Not the comparison itself: while shapes are traced it is a symbol, which torch refuses.
    options = {"enable_gqa": True} if key.shape[1] < query.shape[1] else {}

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal, scale=factors.scale, **options
        )

    def by_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: slice) -> Tensor:
        return attend(query, key, value, mask)

    if isinstance(graph, Full | Causal):
        gathered = attend(query, key, value, None, isinstance(graph, Causal))
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


def repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, H_kv, T, D) -> (B, H, T, D)."""
    return x if x.shape[1] == n_head else x.repeat_interleave(n_head // x.shape[1], dim=1)


def with_a_key_for_each_head(factors: ScoreFactors, value: Tensor) -> tuple[ScoreFactors, Tensor]:
    """Keys and values copied for each query head that shares them."""
    H = factors.query.shape[1]
    return factors._replace(key=repeat_heads(factors.key, H)), repeat_heads(value, H)


def takes_groups(value: Tensor, graph: Graph) -> bool:
    """Whether PyTorch's fused kernel serves query heads that share a key head by itself, without a copy for each.

    Its option would be obeyed anywhere, but elsewhere by a kernel that stores the (T, S) weights.
    """
    kind = value.device.type
    if kind != "cuda":
        return kind == "cpu"
    # FlashAttention alone: it has no mask, and is for 16 bits from the Ampere generation on, the first with bfloat16.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return isinstance(graph, Full | Causal) and dtype is torch.bfloat16 and value.shape[-1] <= 256


def of_one_width(factors: ScoreFactors, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
