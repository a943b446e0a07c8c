"""Logits of the next token -> the token drawn."""

from __future__ import annotations

import torch
from torch import Tensor


def next_token(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Draw one token: divide by the temperature, keep the top_k likeliest, draw from the softmax of what is left.

    Args:
        logits: (V,), of the ids that may be drawn.
        temperature: 0 takes the likeliest token and draws nothing.
        top_k: None keeps all; of equal logits at the edge all are kept.
        generator: the row's own random state, on the CPU.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.double().cpu() / temperature
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))
