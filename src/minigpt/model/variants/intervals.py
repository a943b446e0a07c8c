"""Attention on a CPU where the keys of each query are contiguous: PyTorch's flash kernel, block by block.

Windows, documents, prefixes and padding all leave each query one range of keys. Most of such a mask is blocks without
an edge, blocks full of edges and causal squares, for which the kernel needs no mask. Blocks of the same queries are
merged by the logarithms of their sums, as in FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135). The
kernel's own operator also takes a bias of keys together with the causal flag, which scaled_dot_product_attention
refuses, and hands out those logarithms, without which no block can be merged or differentiated on its own.

`kernels.chunked` is the slow twin, and serves all other devices, graphs and dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Private operators of torch, and the only ones here: tests/model/variants/test_intervals.py names them.
flash_forward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
flash_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)

_SHARED = "float dropout_p{}, bool is_causal{}, *, Tensor? attn_mask=None, float? scale=None) -> (Tensor"
SCHEMAS = (
    "(Tensor query, Tensor key, Tensor value, " + _SHARED.format("=0.", "=False") + " output, Tensor logsumexp)",
    "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, "
    + _SHARED.format("", "")
    + " grad_query, Tensor grad_key, Tensor grad_value)",
)


def is_supported(*operators: Any) -> bool:
    """Whether the operators are those that are called here; of a torch that changed them, `kernels.chunked` is used."""
    return all(
        operator is not None and str(operator.default._schema).endswith(schema)
        for operator, schema in zip(operators, SCHEMAS, strict=True)
    )


IS_SUPPORTED = is_supported(flash_forward, flash_backward)

SHORT = 64
"""Runs of fewer queries than this share a masked block, as a call of the kernel costs as much as a small block."""
SPLIT = 128
"""Queries from which on two calls without a mask, and merging them, are faster than one with a mask."""
QUERIES_PER_BLOCK = 256
"""The most queries of one masked block."""

FULL, CAUSAL, MASKED = "full", "causal", "masked"
# How low and high move from one query to the next: 2 * (step of low) + (step of high).
STILL, GROWING = 0, 1


class Block(NamedTuple):
    """Keys of a chunk's queries, and which edges of that block there are."""

    keys: slice
    kind: str
    """FULL, CAUSAL (a square, from its diagonal down) or MASKED."""
    band: tuple[int, int, int] | None = None
    """Equal for masked blocks that have the same mask."""


class Chunk(NamedTuple):
    """Queries that are computed together; without blocks they attend to nothing."""

    rows: slice
    """Of the batch."""
    queries: slice
    blocks: tuple[Block, ...]


def attend_intervals(
    query: Tensor, key: Tensor, value: Tensor, low: Tensor, high: Tensor, key_bias: Tensor | None, scale: float
) -> Tensor:
    """The weighted sums of values; query t attends to keys low[t] to high[t] - 1.

    Args:
        query: (B, H, T, D), on the CPU.
        key: (B, H, S, D).
        value: (B, H, S, D).
        low: (B or 1, T) int64, within 0..S.
        high: (B or 1, T) int64, within 0..S; a query whose high is not above its low attends to nothing.
        key_bias: (B or 1, H, S), added to the score of every query with that key.
        scale: of the scores.

    Returns:
        (B, H, T, D), zeros for queries that attend to nothing.
    """
    return _AttendIntervals.apply(query, key, value, key_bias, scale, low, high)


class _AttendIntervals(torch.autograd.Function):
    """The kernel's own gradient is that of one block, whose weights sum to 1."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_bias: Tensor | None,
        scale: float,
        low: Tensor,
        high: Tensor,
    ) -> Tensor:
        chunks, masks = plan(low, high), _Masks(low, high, key_bias, query)
        whole = len(chunks) == 1 and len(chunks[0].blocks) == 1
        if not whole:
            gathered = torch.empty_like(query)
            sums = query.new_empty(query.shape[:-1], dtype=masks.dtype)  # logarithms of the sums of exponentials
        for chunk in chunks:
            queries = (chunk.rows, slice(None), chunk.queries)
            if not chunk.blocks:
                gathered[queries], sums[queries] = 0.0, 0.0
            for n, block in enumerate(chunk.blocks):
                keys = (chunk.rows, slice(None), block.keys)
                part, part_sums = flash_forward(
                    query[queries],
                    key[keys],
                    value[keys],
                    0.0,
                    block.kind == CAUSAL,
                    attn_mask=masks.of(chunk, block),
                    scale=scale,
                )
                if whole:
                    gathered, sums = part, part_sums
                    break
                if n:  # merge: each part weighs as much as its share of the sum of exponentials
                    share = (part_sums - sums[queries]).sigmoid()[..., None].to(part.dtype)
                    part = torch.lerp(gathered[queries], part, share)
                    part_sums = torch.logaddexp(sums[queries], part_sums)
                gathered[queries], sums[queries] = part, part_sums
        ctx.save_for_backward(query, key, value, key_bias, gathered, sums)
        ctx.scale, ctx.chunks, ctx.low, ctx.high = scale, chunks, low, high
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, key_bias, gathered, sums = ctx.saved_tensors
        (*_, S, D), dtype, needs_bias = key.shape, query.dtype, ctx.needs_input_grad[3]
        if gradient.stride(-1) != 1:  # as a sum's
            gradient = gradient.contiguous()
        if needs_bias:
            # The kernel has no gradient for its mask. A channel of ones in the queries and of zeros in the rest changes
            # no score, and in the keys' gradient it is the gradient of the scores, summed over queries.
            query = F.pad(query, (0, 8), value=1.0)
            key, value, gathered, gradient = (F.pad(x, (0, 8)) for x in (key, value, gathered, gradient))
        masks = _Masks(ctx.low, ctx.high, key_bias, query)
        first: tuple[Block, ...] = ctx.chunks[0].blocks if len(ctx.chunks) == 1 else ()
        whole = len(first) == 1 and first[0].keys == slice(0, S)
        if not whole:  # sums of many parts, so in at least float32
            gradients = [torch.zeros_like(x, dtype=masks.dtype) for x in (query, key, value)]
        for chunk in ctx.chunks:
            queries = (chunk.rows, slice(None), chunk.queries)
            for block in chunk.blocks:
                keys = (chunk.rows, slice(None), block.keys)
                # With the sums over all keys, each block's weights are the final ones, and the parts just add up.
                parts = flash_backward(
                    gradient[queries],
                    query[queries],
                    key[keys],
                    value[keys],
                    gathered[queries],
                    sums[queries],
                    0.0,
                    block.kind == CAUSAL,
                    attn_mask=masks.of(chunk, block),
                    scale=ctx.scale,
                )
                if whole:
                    gradients = list(parts)
                else:
                    for total, part, where in zip(gradients, parts, (queries, keys, keys), strict=True):
                        total[where] += part
        of_bias = None
        if needs_bias:
            of_bias = gradients[1][..., D].to(masks.dtype) / ctx.scale  # (B, H, S)
            of_bias = of_bias.sum_to_size(key_bias.shape).to(key_bias.dtype)
        of_query, of_key, of_value = (x[..., :D].to(dtype) for x in gradients)
        return of_query, of_key, of_value, of_bias, None, None, None


class _Masks:
    """The additive masks of blocks: -inf for masked pairs, the keys' bias elsewhere."""

    def __init__(self, low: Tensor, high: Tensor, key_bias: Tensor | None, query: Tensor) -> None:
        self.low, self.high, self.n_rows, self.n_heads = low, high, query.shape[0], query.shape[1]
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.bias = None if key_bias is None else key_bias.to(self.dtype)[:, :, None]  # (B or 1, H, 1, S)
        self.bands: dict[tuple[int, int, int], Tensor] = {}

    def of(self, chunk: Chunk, block: Block) -> Tensor | None:
        """(rows, H, queries, keys), or None where nothing is masked and no key has a bias."""
        bias = self.bias
        if bias is not None:
            bias = bias[chunk.rows if len(bias) > 1 else slice(None), ..., block.keys]
        mask = bias
        if block.kind == MASKED:
            mask = None if block.band is None else self.bands.get(block.band)
            if mask is None:
                mask = self._of_edges(chunk, block)
                if block.band is not None:
                    self.bands[block.band] = mask
            mask = mask if bias is None else mask + bias
        if mask is None:
            return None
        n_rows = len(range(self.n_rows)[chunk.rows])
        return mask.expand(n_rows, self.n_heads, chunk.queries.stop - chunk.queries.start, -1)

    def _of_edges(self, chunk: Chunk, block: Block) -> Tensor:
        rows = chunk.rows if len(self.low) > 1 else slice(None)
        low, high = (x[rows, None, chunk.queries, None] for x in (self.low, self.high))
        keys = torch.arange(block.keys.start, block.keys.stop)
        outside = (keys < low) | (keys >= high)
        return torch.zeros(outside.shape, dtype=self.dtype).masked_fill_(outside, float("-inf"))


def plan(low: Tensor, high: Tensor) -> list[Chunk]:
    """The chunks of all queries, each with the fewest scores that blocks can have at little overhead.

    Args:
        low: (rows, T): rows is 1 where all rows of the batch have the same mask.
        high: (rows, T).
    """
    chunks = []
    for n, (lows, highs) in enumerate(zip(low.numpy(), high.numpy(), strict=True)):
        rows = slice(None) if len(low) == 1 else slice(n, n + 1)
        attends = highs > lows
        lows, highs = np.where(attends, lows, 0), np.where(attends, highs, 0)
        chunks += [Chunk(rows, *rest) for rest in _chunks(lows, highs)]
    return chunks


def _chunks(lows: np.ndarray, highs: np.ndarray) -> Iterator[tuple[slice, tuple[Block, ...]]]:
    short: list[tuple[int, int, int]] = []  # neighbouring runs that share one masked block
    for run in _runs(lows, highs):
        start, stop, _ = run
        is_short = stop - start < SHORT and highs[start] > 0
        if short and (not is_short or stop - short[0][0] > SHORT):
            yield from _together(short, lows, highs)
            short = []
        if is_short:
            short.append(run)
        else:
            yield from _of_run(*run, lows, highs)
    if short:
        yield from _together(short, lows, highs)


def _runs(lows: np.ndarray, highs: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Queries from start to stop along which low and high move in one way: STILL, GROWING or another."""
    T, (step_low, step_high) = len(lows), (np.diff(lows), np.diff(highs))
    regular = (step_low >= 0) & (step_low <= 1) & (step_high >= 0) & (step_high <= 1)
    regular &= (highs[1:] > 0) == (highs[:-1] > 0)
    steps = np.where(regular, 2 * step_low + step_high, -1)
    done = 0
    for first, last in pairwise([0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), T - 1]):
        # These are steps; the query between two runs belongs to the first of them.
        step = int(steps[first]) if first < last else -1
        stop = last + 1 if step >= 0 or last == T - 1 else last
        if step < 0:
            yield from ((t, t + 1, STILL) for t in range(done, stop))
        elif done < stop:
            yield done, stop, step
        done = max(done, stop)


def _together(
    runs: list[tuple[int, int, int]], lows: np.ndarray, highs: np.ndarray
) -> Iterator[tuple[slice, tuple[Block, ...]]]:
    if len(runs) == 1:
        yield from _of_run(*runs[0], lows, highs)
        return
    queries = slice(runs[0][0], runs[-1][1])
    yield queries, (Block(slice(int(lows[queries].min()), int(highs[queries].max())), MASKED),)


def _of_run(
    start: int, stop: int, step: int, lows: np.ndarray, highs: np.ndarray
) -> Iterator[tuple[slice, tuple[Block, ...]]]:
    low, high, n = int(lows[start]), int(highs[start]), stop - start
    if high <= low:
        yield slice(start, stop), ()
    elif step == STILL or n == 1:
        yield slice(start, stop), (Block(slice(low, high), FULL),)
    elif step == GROWING and (n >= SPLIT or high == low + 1):
        square = Block(slice(high - 1, high - 1 + n), CAUSAL)
        yield slice(start, stop), (square,) if high == low + 1 else (Block(slice(low, high - 1), FULL), square)
    else:
        # As many scores as asked for, and a share more: of a band's width, or of a whole chunk.
        rows = min(max((high - low) // 4, SHORT // 2), QUERIES_PER_BLOCK)
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            keys = slice(int(lows[first]), int(highs[last - 1]))
            band = (step, last - first, keys.stop - keys.start)
            yield slice(first, last), (Block(keys, MASKED, band),)
