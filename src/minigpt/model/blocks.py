"""(B, T, C) -> (B, T, C): one transformer block, attention between tokens and then an MLP within each token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.attention import Attention
from minigpt.model.cache import LayerCache
from minigpt.model.norms import make_norm
from minigpt.model.variants.graphs import Graph


class GELU(nn.Module):
    """GPT-2's MLP: widen, GELU in its tanh approximation (Hendrycks and Gimpel 2016), narrow."""

    approximate = "tanh"

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        result: Tensor = self.proj(F.gelu(self.up(x), approximate=self.approximate))
        return result


class ExactGELU(GELU):
    """The same with GELU itself, as nanoGPT has it: on a CPU in a third of the time."""

    approximate = "none"


class SwiGLU(nn.Module):
    """Gated MLP: silu(x G) * (x U), then narrow (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.n_embd, 2 * config.mlp_width, bias=config.bias)
        self.proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        result: Tensor = self.proj(F.silu(gate) * up)
        return result


MLPS: dict[str, type[nn.Module]] = {"gelu": GELU, "gelu_exact": ExactGELU, "swiglu": SwiGLU}


class Block(nn.Module):
    """Pre-norm: each half reads a normalised copy of the residual stream and adds its update to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn_norm = make_norm(config, config.n_embd)
        self.attn = Attention(config)
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
        """(B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attn(self.attn_norm(x), graph, rotary, key_bias, cache))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x
