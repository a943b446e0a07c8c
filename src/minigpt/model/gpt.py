"""Token ids -> logits of the next token: the decoder-only transformer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.blocks import Block
from minigpt.model.norms import make_norm
from minigpt.model.positions import rotary_table


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019), in GPT-2's form or a modern one: every choice is a knob."""

    def __init__(self, config: GPTConfig) -> None:
        """Build and initialise the model from torch's global random state.

        Raises:
            ValueError: config.vocab_size is not set.
        """
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("GPTConfig.vocab_size is not set: give it, or take it from the tokenizer")
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = make_norm(config, config.n_embd)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        rotary = None
        if config.position == "rotary":
            rotary = rotary_table(config.context_length, config.width_per_head, config.rotary_base)
        self.register_buffer("rotary", rotary, persistent=False)
        self.rotary: Tensor | None
        self._initialise()

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
        """Exact number of parameters; a tied output head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token that follows each position; position t sees tokens 0..t only.

        Args:
            tokens: (B, T) token ids below vocab_size, T at most context_length.

        Returns:
            (B, T, V) logits.

        Raises:
            ValueError: T is longer than the context.
        """
        _, T = tokens.shape
        if T > self.config.context_length:
            raise ValueError(f"{T} tokens do not fit the context of {self.config.context_length}")
        x = self.token_embedding(tokens)  # (B, T, C)
        if self.config.position == "learned":
            x = x + self.position_embedding.weight[:T]
        x = self.dropout(x)
        rotary = None if self.rotary is None else self.rotary[:, :T]
        for block in self.blocks:
            x = block(x, rotary)
        x = self.final_norm(x)
        # A tied head is not a module of its own, so that the weight is stored and counted once.
        return F.linear(x, self.token_embedding.weight) if self.config.tie_embeddings else self.lm_head(x)
