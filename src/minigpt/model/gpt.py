"""Token ids -> logits of the next token: the decoder-only transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.blocks import Block
from minigpt.model.cache import KVCache
from minigpt.model.norms import make_norm
from minigpt.model.variants.graphs import Adjacency, Causal, Documents, Full, Graph, Window
from minigpt.model.variants.positions import alibi_bias, alibi_slopes, rotary_table, sinusoidal_table

VOCABULARY_MULTIPLE = 64
"""Tables of the vocabulary have a multiple of this many rows: matrix products of odd sizes are slow on GPUs."""


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019), in GPT-2's form or a modern one: every choice is a knob.

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
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = make_norm(config, config.n_embd)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # Worked out from the config, so they are no part of a checkpoint.
        T, D = config.context_length, config.width_per_head
        tables = {
            "rotary": rotary_table(T, D, config.rotary_base) if config.position == "rotary" else None,
            "sinusoidal": sinusoidal_table(T, config.n_embd) if config.position == "sinusoidal" else None,
            "slopes": alibi_slopes(config.n_head) if config.position == "alibi" else None,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.rotary: Tensor | None
        self.sinusoidal: Tensor | None
        self.slopes: Tensor | None
        self._initialise()
        # Last, so that the real rows are drawn as they would be without padding.
        _pad_rows(self.token_embedding)
        if not config.tie_embeddings:
            _pad_rows(self.lm_head)

    def _initialise(self) -> None:
        """GPT-2's: normal(0.02); what is added to the residual stream is scaled down by its number of additions."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layer) ** 0.5)

    @property
    def n_parameters(self) -> int:
        """Exact number of parameters; a tied output head counts once.

        Rows that only pad the vocabulary are never used and not counted: GPT-2 small has 124,439,808.
        """
        tables = 1 if self.config.tie_embeddings else 2
        padding = (self.token_embedding.num_embeddings - (self.config.vocab_size or 0)) * self.config.n_embd
        return sum(parameter.numel() for parameter in self.parameters()) - tables * padding

    def forward(self, tokens: Tensor, texts: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits of the token that follows each position; position t sees tokens 0..t only, and those of its own text.

        Args:
            tokens: (B, T) token ids below vocab_size, T at most context_length.
            texts: (B, T) number of the text that each token belongs to; -1 is padding, which no token sees and whose
                own logits mean nothing. Tokens of one text stand side by side, and absolute positions count from its
                start. When not given, a row is one text, or with document_mask a new one begins at each end_of_text.
            cache: the tokens go on from those that it holds, and are kept in it; its position is left to the caller.
                Gradients flow back through what it holds.

        Returns:
            (B, T, V) logits, V being config.vocab_size: rows that pad the vocabulary have none.

        Raises:
            ValueError: tokens is not (B, T), T is longer than the context or what is left of the cache, the cache has
                another number of rows, or texts another shape.
        """
        return self.logits(self.hidden(tokens, texts, cache))

    def hidden(self, tokens: Tensor, texts: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """What `logits` makes logits of: (B, T, C), arguments and errors as for `forward`.

        Apart, since a prompt's logits are wanted of its last token only.
        """
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: give (B, T), as in tokens[None] for one text")
        B, T = tokens.shape
        if cache is not None and cache.n_rows != B:
            raise ValueError(f"tokens has {B} rows, but the cache {cache.n_rows}: give KVCache as many")
        start = 0 if cache is None else cache.position
        if start + T > (limit := self.config.context_length if cache is None else cache.n_tokens):
            raise ValueError(f"{start + T} tokens do not fit the {'context' if cache is None else 'cache'} of {limit}")
        before = None if cache is None or cache.texts is None or not start else cache.texts[:, start - 1 : start]
        if texts is None and self.config.document_mask:
            texts = tokens.eq(self.config.end_of_text or 0).cumsum(dim=1) + (0 if before is None else before)
        elif texts is None and before is not None:
            texts = before.expand_as(tokens)
        if texts is not None and texts.shape != tokens.shape:
            raise ValueError(f"texts has shape {tuple(texts.shape)}, tokens {tuple(tokens.shape)}: give one for each")
        if texts is not None and cache is not None:
            texts = cache.number_texts(texts)
        x = self.token_embedding(tokens)  # (B, T, C)
        absolute = self.position_embedding.weight if self.config.position == "learned" else self.sinusoidal
        positions = slice(start, start + T) if texts is None else _positions(texts)[:, start:]
        if absolute is not None:
            x = x + absolute[positions]
        x = self.dropout(x)
        rotary = None if self.rotary is None else self.rotary[:, positions]
        # ALiBi needs to know nothing of texts: a distance is the same from wherever positions are counted.
        key_bias = None if self.slopes is None else alibi_bias(self.slopes, start + T)
        graphs = {window: _graph(texts, window, start, T, x.device) for window in set(self.config.windows)}
        layers = [None] * len(self.blocks) if cache is None else cache.layers
        for block, window, layer in zip(self.blocks, self.config.windows, layers, strict=True):
            x = block(x, graphs[window], rotary, key_bias, layer)
        hidden: Tensor = self.final_norm(x)
        return hidden

    @property
    def head_weight(self) -> Tensor:
        """(rows, C): what `logits` multiplies by, with the rows that pad the vocabulary."""
        # A tied head is not a module of its own, so that the weight is stored and counted once.
        return (self.token_embedding if self.config.tie_embeddings else self.lm_head).weight

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, C) of `hidden` -> (B, T, V)."""
        weight, V = self.head_weight, self.config.vocab_size
        # A GPU multiplies aligned matrices faster, so there the padding takes part and its logits are cut off. A CPU
        # gains nothing from it, and would copy all logits to cut them, forward and backward.
        return F.linear(x, weight[:V]) if x.device.type == "cpu" else F.linear(x, weight)[..., :V]


def _graph(texts: Tensor | None, window: int | None, start: int, T: int, device: torch.device) -> Graph:
    """Who hears whom, for the T tokens behind `start` others."""
    if start and T == 1 and texts is None and (window is None or start < window):
        return Full()  # the newest hears all
    graph: Graph = Causal() if texts is None else Causal() & Documents(texts)
    if window is not None:
        graph = graph & Window(window)
    return Adjacency(graph.mask(range(start, start + T), range(start + T), device)) if start else graph


def _pad_rows(table: nn.Embedding | nn.Linear) -> None:
    """Append rows of zeros up to a multiple of VOCABULARY_MULTIPLE."""
    weight = table.weight.detach()
    table.weight = nn.Parameter(F.pad(weight, (0, 0, 0, -len(weight) % VOCABULARY_MULTIPLE)))
    if isinstance(table, nn.Embedding):
        table.num_embeddings = len(table.weight)
    else:
        table.out_features = len(table.weight)


def _positions(texts: Tensor) -> Tensor:
    """(B, T) numbers of texts -> (B, T) positions, each counted from where its text begins."""
    index = torch.arange(texts.shape[1], device=texts.device).expand_as(texts)
    begins = F.pad(texts[:, 1:] != texts[:, :-1], (1, 0), value=True)
    return index - torch.where(begins, index, 0).cummax(dim=1).values
