"""The decoder-only transformer, bottom up: norms, MLPs, the block, and the whole model from token ids to logits.

To change the MLP, add a class to `MLPS`; to change the norm, see `make_norm`; to rewire a layer, `Block.forward`. Each
choice is also a name in `GPTConfig` (config/model.py). Attention is in attention.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from minigpt.config import GPTConfig
from minigpt.model import tables
from minigpt.model.attention import Attention
from minigpt.model.cache import KVCache, LayerCache
from minigpt.model.tables import VOCABULARY_MULTIPLE
from minigpt.model.variants.flex import shared
from minigpt.model.variants.graphs import Adjacency, Causal, Documents, Full, Graph, Window
from minigpt.model.variants.positions import alibi_bias


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """The config's norm over the last axis: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""
    # RMSNorm is the default: it neither subtracts the mean nor adds a bias, and trains as well (arXiv:1910.07467).
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=config.eps, bias=config.bias)
    return RMSNorm(width, eps=config.eps)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + eps) * weight. PyTorch fuses it on GPUs only; a CPU runs `_RMSNorm` in half the time."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C) in x's dtype, each vector with a mean square of 1, times the weight."""
        if x.dtype.itemsize < 4:
            # The weight in x's dtype, or PyTorch does not fuse; it sums the squares in float32 all the same. Without
            # autocast, which from torch 2.12 on would copy x to float32 (github.com/pytorch/pytorch/issues/188955).
            with torch.autocast(x.device.type, enabled=False):
                return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        # torch.compile fuses PyTorch's own.
        fits = x.device.type == "cpu" and x.dtype in {torch.float32, torch.float64}
        fits = fits and x.ndim > 1  # without other axes, sum(()) in the backward pass would sum the only one
        if not fits or torch.compiler.is_compiling():
            return super().forward(x)
        return _RMSNorm.apply(x, self.weight, self.eps)


class GELUMLP(nn.Module):
    """GPT-2's MLP: widen, GELU (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415), narrow."""

    approximate = "tanh"  # GPT-2's weights were trained with this approximation

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.proj(F.gelu(self.up(x), approximate=self.approximate))


class ExactGELUMLP(GELUMLP):
    """The same with the exact GELU, as in nanoGPT: on a CPU it takes a third of the time of the approximation."""

    approximate = "none"


class SwiGLUMLP(nn.Module):
    """Gated MLP: silu(x G) * (x U), then narrow (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    The product lets one half decide how much of the other passes; at an equal number of parameters it reaches a lower
    loss than GELU. Hence 8/3 C as its width by default: three matrices instead of two, and as many parameters as 4 C.
    """

    stacked: ClassVar = {"gate_up": 2}  # layers of several maps: Muon orthogonalises each map on its own

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # Both maps in one weight: one large matrix product is faster than two.
        self.gate_up = nn.Linear(config.n_embd, 2 * config.mlp_width, bias=config.bias)
        self.proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, mlp_width) each
        return self.proj(F.silu(gate) * up)


MLPS: dict[str, type[nn.Module]] = {"gelu": GELUMLP, "gelu_exact": ExactGELUMLP, "swiglu": SwiGLUMLP}
"""The MLPs by their names in GPTConfig.mlp. Each is built from the config, maps (B, T, C) to (B, T, C), and names its
output layer `proj`, for `GPT._initialise`. A layer that stacks several maps must be named in
`stacked`, as SwiGLU's is, or Muon orthogonalises them as one matrix."""


class Block(nn.Module):
    """Attention between tokens, then an MLP within each token.

    Pre-norm: each half reads a normalised copy of the residual stream and adds its update to it, so gradients reach
    every layer along the sum without passing a norm (Xiong et al. 2020, https://arxiv.org/abs/2002.04745).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # A norm of its own for each half: attention and MLP may read the stream's channels at different scales.
        self.attn_norm = make_norm(config, config.n_embd)
        self.attn = Attention(config, make_norm)
        self.mlp_norm = make_norm(config, config.n_embd)
        self.mlp = MLPS[config.mlp](config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        rotary: Tensor | None,
        key_bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C). Args: as for `Attention.forward`."""
        # Dropout falls on each half's update; what earlier layers have added to the stream passes untouched.
        x = x + self.dropout(self.attn(self.attn_norm(x), graph, rotary, key_bias, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class PostNormBlock(Block):
    """Attention and MLP read the stream as it is, and their updates are normalised (OLMo 2, arXiv:2501.00656)."""

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        rotary: Tensor | None,
        key_bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """As `Block.forward`."""
        x = x + self.dropout(self.attn_norm(self.attn(x, graph, rotary, key_bias, cache)))
        return x + self.dropout(self.mlp_norm(self.mlp(x)))


class ParallelBlock(Block):
    """Attention and MLP read the same stream, each through its own norm (GPT-NeoX, arXiv:2204.06745)."""

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        rotary: Tensor | None,
        key_bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """As `Block.forward`."""
        update = self.attn(self.attn_norm(x), graph, rotary, key_bias, cache)
        return x + self.dropout(update) + self.dropout(self.mlp(self.mlp_norm(x)))


BLOCKS: dict[str, type[Block]] = {"pre_norm": Block, "post_norm": PostNormBlock, "parallel": ParallelBlock}
"""The blocks by their names in GPTConfig.block."""


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019), in GPT-2's form or a modern one; see `GPTConfig`.

    The token embedding and the output head have rows that pad the vocabulary to a multiple of VOCABULARY_MULTIPLE.
    They never reach the logits, so they get no gradient and are never sampled.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Build and initialise the model from torch's global random state.

        Raises:
            ValueError: config.vocab_size is not set, or end_of_text is not and is needed.
        """
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("GPTConfig.vocab_size is not set: give it, or take it from the tokenizer")
        if config.document_mask and config.end_of_text is None:
            raise ValueError("GPTConfig.end_of_text is not set: document_mask needs it; take it from the tokenizer")
        self.config, self.windows = config, config.windows
        self.recomputes_blocks = False
        """Activation checkpointing: of each block keep the input alone, and compute the rest again for its gradient."""
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":  # GPT-2's; the default, rotary, has no weights: it turns queries and keys
            self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config) for _ in range(config.n_layer))
        # The stream has grown with every update; normalised, the head's logits start at the same size at any depth.
        self.final_norm = make_norm(config, config.n_embd)
        # Tied to the embedding (Press and Wolf 2017, arXiv:1608.05859), as in GPT-2, the head saves V C parameters.
        # Apart by default, as in Llama: one matrix need not serve both to read tokens and to predict them.
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # Buffers move to the device with the model. Computed from the config, so checkpoints do not store them.
        self.rotary: Tensor | None
        self.sinusoidal: Tensor | None
        self.slopes: Tensor | None  # the bits of float32, see `position_tables`
        for name, table in position_tables(config).items():
            self.register_buffer(name, table, persistent=False)
        self._initialise()
        # After the initialisation, so that padding does not change the random numbers of any weight.
        _pad_rows(self.token_embedding)
        if not config.tie_embeddings:
            _pad_rows(self.lm_head)

    def _initialise(self) -> None:
        """GPT-2's: normal(0.02), biases zero, and smaller for the projections that write to the residual stream."""
        # The stream is normalised, so at 0.02 the head's logits have a standard deviation of 0.02 sqrt(C). At these
        # widths that is small, 0.3 at the default, so the first loss is close to ln(vocab_size): every token is about
        # equally likely.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Each layer adds two updates to the stream. Divided by the root of their number, they do not make its variance
        # grow with depth.
        for name, parameter in self.named_parameters():
            if name.endswith(".proj.weight"):
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layer) ** 0.5)

    @property
    def n_parameters(self) -> int:
        """Number of parameters; a tied output head counts once, rows that pad the vocabulary do not.

        So GPT-2 small has its published 124,439,808.
        """
        assert self.config.vocab_size is not None  # `__init__` refuses that
        tables = 1 if self.config.tie_embeddings else 2
        padding = (self.token_embedding.num_embeddings - self.config.vocab_size) * self.config.n_embd
        return sum(parameter.numel() for parameter in self.parameters()) - tables * padding

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits of the next token at each position, which attends to itself and to earlier tokens of its own document.

        Args:
            tokens: (B, T) token ids below vocab_size, T at most context_length.
            document_ids: (B, T) id of the document that each token belongs to, or -1 for padding, to which no token
                attends and whose logits are meaningless. The tokens of a document are contiguous; absolute positions
                count from its start. When not given, a row is one document, or with document_mask a new one begins at
                each end_of_text.
            cache: keys and values of earlier tokens. The new ones are added; the caller moves cache.position. Gradients
                flow through it.

        Returns:
            (B, T, V) logits, V = config.vocab_size, without the rows that pad the vocabulary.

        Raises:
            ValueError: tokens is not (B, T), T exceeds the context or, with a cache, the room left in it, the cache has
                another number of rows, or document_ids another shape or no whole numbers.
        """
        return self.logits(self.hidden(tokens, document_ids, cache))

    def hidden(self, tokens: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """The residual stream after the final norm, (B, T, C), for `logits`; arguments and errors of `forward`.

        A function of its own, because a prompt needs the logits of its last token only.
        """
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: give (B, T), as in tokens[None] for one text")
        B, T = tokens.shape
        if cache is not None and cache.n_rows != B:
            raise ValueError(f"tokens has {B} rows, but the cache was made for {cache.n_rows}: give KVCache n_rows={B}")
        start = 0 if cache is None else cache.position
        if start + T > (limit := self.config.context_length if cache is None else cache.n_tokens):
            raise ValueError(f"{start + T} tokens do not fit the {'context' if cache is None else 'cache'} of {limit}")
        if document_ids is not None or cache is not None or self.config.document_mask:
            document_ids = self._document_ids(tokens, document_ids, cache)
        # A packed or padded document counts its positions from its own start, so it reads the same anywhere in a row.
        positions = slice(start, start + T) if document_ids is None else _positions(document_ids)[:, start:]
        # ALiBi can ignore document_ids: a distance is the same wherever positions count from.
        key_bias = None if self.slopes is None else self.key_bias(start + T)
        graphs = _graphs(self, document_ids, start, T, tokens.device)
        layers = [None] * len(self.blocks) if cache is None else cache.layers
        return self.through_blocks(tokens, positions, graphs, key_bias, layers)

    def key_bias(self, n_keys: int) -> Tensor:
        """ALiBi's (1, H, S) bias of the scores, in float32 or float64."""
        assert self.slopes is not None
        dtype = torch.promote_types(self.token_embedding.weight.dtype, torch.float32)
        return alibi_bias(self.slopes.view(torch.float32).to(dtype), n_keys)

    def through_blocks(
        self,
        tokens: Tensor,
        positions: slice | Tensor,
        graphs: Mapping[int | None, Graph],
        key_bias: Tensor | None,
        layers: Sequence[LayerCache | None],
    ) -> Tensor:
        """Embedding, blocks and the final norm: (B, T) tokens -> (B, T, C).

        Args:
            tokens: (B, T).
            positions: of the tokens, a slice for all rows or (B, T).
            graphs: the attention mask of each window in the config.
            key_bias: ALiBi's (1, H, S), or None.
            layers: the cache of each block, or None.
        """
        x = self.token_embedding(tokens)  # (B, T, C)
        absolute = self.position_embedding.weight if self.config.position == "learned" else self.sinusoidal
        if absolute is not None:
            x = x + absolute[positions]
        x = self.dropout(x)
        rotary = None if self.rotary is None else self.rotary[:, positions]  # (2, T, D) or (2, B, T, D)
        for block, window, layer in zip(self.blocks, self.windows, layers, strict=True):
            if self.recomputes_blocks and torch.is_grad_enabled():
                given = (x, graphs[window], rotary, key_bias, layer)
                # Recomputing needs the same dropout mask, hence the same random state; without dropout, none.
                x = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=self.config.dropout > 0)
            else:
                x = block(x, graphs[window], rotary, key_bias, layer)
        return self.final_norm(x)

    @property
    def head_weight(self) -> Tensor:
        """(rows, C): the weight of the output head, with the rows that pad the vocabulary."""
        # A tied head is not a module of its own, so that the weight is stored and counted once.
        return (self.token_embedding if self.config.tie_embeddings else self.lm_head).weight

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, C) of `hidden` -> (B, T, V)."""
        weight, V = self.head_weight, self.config.vocab_size
        # A GPU multiplies aligned matrices faster, so it computes the padding's logits and drops them. A CPU gains
        # nothing by that, and would copy all logits to drop some, forward and backward.
        return F.linear(x, weight[:V]) if x.device.type == "cpu" else F.linear(x, weight)[..., :V]

    def _document_ids(self, tokens: Tensor, document_ids: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """(B, S) document ids of the cached tokens and the new ones; None where each row is one document."""
        last = None
        if cache is not None and cache.document_ids is not None and cache.position:
            last = cache.document_ids[:, cache.position - 1 : cache.position]  # (B, 1): the new tokens go on from it
        if document_ids is None and self.config.document_mask:
            # An end-of-text token begins the document after it: every document then has one token before its first to
            # attend to, and the model learns how documents begin.
            assert self.config.end_of_text is not None  # `__init__` refuses that
            document_ids = tokens.eq(self.config.end_of_text).cumsum(dim=1) + (0 if last is None else last)
        elif document_ids is None and last is not None:
            document_ids = last.expand_as(tokens)
        if document_ids is None:
            return None
        if document_ids.shape != tokens.shape:
            raise ValueError(
                f"document_ids has shape {tuple(document_ids.shape)}, tokens {tuple(tokens.shape)}: give one for each"
            )
        # Checked here, once for all layers: attention itself checks nothing.
        if document_ids.is_floating_point() or document_ids.dtype == torch.bool:
            raise ValueError(f"document_ids is {document_ids.dtype}: give whole numbers, as torch.int64")
        return document_ids if cache is None else cache.extend_document_ids(document_ids)


def position_tables(config: GPTConfig) -> dict[str, Tensor | None]:
    """`tables.position_tables` as tensors, on the default device; slopes as the int32 that have their bits."""
    found = {
        name: None if table is None else torch.tensor(table) for name, table in tables.position_tables(config).items()
    }
    # bf16-true casts every floating-point buffer. It may round the other tables, as it rounds what they are added to
    # or multiplied by; but a slope is multiplied by a position, and one of 8 bits misses distant tokens by several.
    slopes = found["slopes"]
    return found | {"slopes": None if slopes is None else slopes.view(torch.int32)}


def _graphs(
    model: GPT, document_ids: Tensor | None, start: int, T: int, device: torch.device
) -> dict[int | None, Graph]:
    """Window -> the attention mask of T tokens after `start` cached ones, in the simplest form.

    Causal and Full run fastest. Layers with the same window share a graph, so its mask is built once.
    """
    found: dict[int | None, Graph] = {}
    for window in set(model.windows):
        graph: Graph = Causal() if document_ids is None else Causal() & Documents(document_ids)
        if window is not None:
            graph = (graph & Window(window)).reduced(T, start + T)  # a window longer than the row is none
        if start and T == 1 and document_ids is None and (window is None or start < window):
            graph = Full()  # the newest token attends to all
        elif start:
            # A causal rule counts queries from 0, so those that begin later need their rows of the mask written out.
            graph = Adjacency(graph.mask(range(start, start + T), range(start + T), device))
        found[window] = shared(graph, model.config.logit_softcap) if device.type == "cuda" else graph
    return found


def _pad_rows(table: nn.Embedding | nn.Linear) -> None:
    """Append rows of zeros up to a multiple of VOCABULARY_MULTIPLE."""
    # Here rather than in the config: the vocabulary stays the tokenizer's, and no setting has to name both sizes.
    weight = table.weight.detach()
    table.weight = nn.Parameter(F.pad(weight, (0, 0, 0, -len(weight) % VOCABULARY_MULTIPLE)))
    if isinstance(table, nn.Embedding):
        table.num_embeddings = len(table.weight)
    else:
        table.out_features = len(table.weight)


def _positions(document_ids: Tensor) -> Tensor:
    """(B, T) document ids -> (B, T) positions, counted from where each document begins."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    begins = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(begins, index, 0).cummax(dim=1).values


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written out: autograd would save and traverse x once for each operation.

    It changes no result, and is here for its speed on a CPU alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., 1); x * x would be a tensor of x's size
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        scaled = gradient * scale
        product = scaled * x
        weight_gradient = product.sum(tuple(range(x.ndim - 1)))
        # The output does not depend on the length of x (but for eps), so the gradient has no part along x: subtract it.
        along = product.mul_(weight).sum(-1, keepdim=True).mul_(scale.square()).div_(-x.shape[-1])
        return scaled.mul_(weight).addcmul_(x, along), weight_gradient, None
