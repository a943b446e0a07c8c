"""FlexAttention on a GPU: one compiled kernel for masks and softcaps, which skips blocks without an edge
(Dong et al. 2024, https://arxiv.org/abs/2412.05496).

`pays` says where it is used. Whatever fails there, one warning is given, and dense masks, chunk by chunk, take its
place for the rest of the process (`kernels.chunked`, its slow twin).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from minigpt.errors import is_out_of_memory
from minigpt.model.compiling import compiled
from minigpt.model.variants.graphs import BlockEnds, Causal, Full, Graph
from minigpt.model.variants.kernels import of_one_width, with_a_key_for_each_head
from minigpt.model.variants.similarities import ScoreFactors

BLOCK = 128
"""Queries and keys of a block of the mask, FlexAttention's own size. Fewer have no block to skip, as in decoding:
a dense mask is faster, and needs no compiler."""
NARROWEST = 16
"""Triton multiplies no narrower matrices."""

_state = {"has failed": False}


class SharedMask(Graph):
    """A graph whose block mask all layers of a forward pass share."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.reflexive = graph, graph.reflexive
        self.made: BlockMask | None = None

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.graph.shape

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.graph.edges(b, h, t, s)

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        return self.graph.reach(start, stop, n_keys)

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        return self.graph.blocks(queries, keys)

    def check(self, B: int, H: int, T: int, S: int) -> None:
        self.graph.check(B, H, T, S)

    def mask(self, queries: range, keys: range, device: torch.device | str = "cpu") -> Tensor:
        return self.graph.mask(queries, keys, device)


def shared(graph: Graph, softcap: float | None) -> Graph:
    """The graph of a forward pass on a GPU, with one block mask for all its layers where one is needed."""
    return graph if _fits_sdpa(graph, softcap) else SharedMask(graph)


def pays(
    graph: Graph,
    softcap: float | None,
    dropout: float,
    *,
    device: str,
    dtype: torch.dtype,
    n_queries: int,
    n_keys: int,
    width: int,
) -> bool:
    """Whether FlexAttention can compute this and is the fastest that can: masks and softcaps of long texts on CUDA.

    Args:
        graph: the mask; full and causal ones without a softcap have a kernel of their own.
        softcap: of the scores.
        dropout: which FlexAttention does not have.
        device: its type.
        dtype: of the values.
        n_queries: T.
        n_keys: S.
        width: the narrower one of queries and values, in channels; any number from 16 on, also no power of two.
    """
    if device != "cuda" or dropout or _fits_sdpa(graph, softcap):
        return False
    is_long = n_queries >= BLOCK and n_keys >= BLOCK
    return is_long and width >= NARROWEST and dtype.itemsize <= 4


def can_run() -> bool:
    """Whether Triton is installed and FlexAttention has not failed in this process."""
    return has_triton() and not _state["has failed"]


def by_blocks(factors: ScoreFactors, value: Tensor, graph: Graph, softcap: float | None) -> Tensor | None:
    """The weighted sums of values, or None if FlexAttention fails: it warns once and is not tried again.

    Inside a compiled model a failure is that of the model's compilation, which then runs uncompiled and comes here.
    """
    if torch.compiler.is_compiling():
        return attend_blocks(factors, value, graph, softcap)
    try:
        return attend_blocks(factors, value, graph, softcap)
    except Exception as error:  # no C compiler, an unsupported shape, a kernel that does not fit this GPU, ...
        if is_out_of_memory(error):
            raise
        _state["has failed"] = True
        reason = next(iter(str(error).strip().splitlines()), "")
        warnings.warn(
            f"FlexAttention failed ({type(error).__name__}: {reason[:200]}); using dense masks, which are slower",
            stacklevel=2,
        )
        return None


def attend_blocks(factors: ScoreFactors, value: Tensor, graph: Graph, softcap: float | None) -> Tensor:
    """FlexAttention itself. Args: as for `kernels.fused`."""
    D_v, n_keys = value.shape[-1], value.shape[2]
    # The gradient of a captured bias would be added up atomically; as a channel of the keys it is a product's.
    if factors.key_bias is not None and factors.key_bias.requires_grad:
        factors, value = with_a_key_for_each_head(factors, value)
        query, key, value = of_one_width(factors, value)
        bias = None
    else:
        query, key, bias = factors.query, factors.key, factors.key_bias
    query, key = query.to(value.dtype), key.to(value.dtype)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if bias is None else score + bias[b % len(bias), h, s]

    block_mask = _block_mask(graph, query.shape[2], n_keys, value.device)

    # Uncompiled, FlexAttention stores the whole matrix. Inside a compiled model the outer compiler fuses it.
    kernel: Callable[..., Tensor] = flex_attention
    if value.is_cuda and not torch.compiler.is_compiling():
        kernel = _compiled_flex_attention()
    found = kernel(
        query,
        key,
        value,
        score_mod=None if softcap is None and bias is None else score_mod,
        block_mask=block_mask,
        scale=factors.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found[..., :D_v]


def _block_mask(graph: Graph, n_queries: int, n_keys: int, device: torch.device) -> BlockMask:
    if isinstance(graph, SharedMask):
        made = graph.made
        if made is None:
            made = graph.made = make_block_mask(graph.graph, n_queries, n_keys, device)
        return made
    return make_block_mask(graph, n_queries, n_keys, device)


def make_block_mask(graph: Graph, n_queries: int, n_keys: int, device: torch.device) -> BlockMask:
    """The block mask of a graph, from its `blocks`: torch's create_block_mask would write out the (T, S) matrix."""

    def edges(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:  # a plain function: torch inspects its type
        return graph.edges(b, h, t, s)

    queries, keys = (BlockEnds.of(n, BLOCK, device) for n in (n_queries, n_keys))
    some, every = graph.blocks(queries, keys)
    # Blocks that are cut off at the end are masked, as torch's own are.
    whole_queries, whole_keys = ((ends.last - ends.first == BLOCK - 1) for ends in (queries, keys))
    every = every & whole_queries[:, None] & whole_keys
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every), *_listed(every), BLOCK, mask_mod=edges, seq_lengths=(n_queries, n_keys)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(..., rows, n) bool -> how many blocks of keys each row has, and which: those come first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.to(torch.int32).contiguous()


def _fits_sdpa(graph: Graph, softcap: float | None) -> bool:
    return softcap is None and isinstance(graph, Full | Causal)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    # Whole or not at all: a part that is left uncompiled would store the matrix.
    return compiled(flex_attention, fullgraph=True)


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether FlexAttention can compile its kernel."""
    return importlib.util.find_spec("triton") is not None
