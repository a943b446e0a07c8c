"""Logits of the next token -> the token drawn.

What narrows the choice is applied in this order, each to what the one before has left: forbidden tokens, the penalty of
repetitions, temperature, top_k, top_p, min_p. It is Hugging Face's order, so the same settings mean the same there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minigpt.config import GenerationConfig

FIRST = 256
"""Likeliest tokens that are sorted for top_p at first: sorting all of a large vocabulary costs more than the model."""


def narrowed(
    logits: Tensor, config: GenerationConfig, seen: Sequence[Sequence[int]] = ()
) -> Iterator[tuple[str, Tensor]]:
    """What each setting that is on leaves of the logits, in their order: -inf for what may not be drawn.

    Args:
        logits: (B, V), left as they are.
        config: which filters; a temperature of 0 narrows nothing more, as the likeliest token is left by all.
        seen: for each row, the tokens that count as repeated.

    Yields:
        The setting's name, and (B, V) float64 on the CPU; first "permitted" and the logits as they came.
    """
    logits = logits.double().cpu()
    yield "permitted", logits
    if config.forbidden_tokens:
        logits = logits.index_fill(1, torch.tensor(config.forbidden_tokens), float("-inf"))
        yield "forbidden_tokens", logits
    if config.repetition_penalty != 1.0:
        logits = _penalised(logits, config.repetition_penalty, seen)
        yield "repetition_penalty", logits
    if config.temperature == 0:
        return
    if config.temperature != 1.0:
        logits = logits / config.temperature
        yield "temperature", logits
    V = logits.shape[1]
    if config.top_k is not None and config.top_k < V:
        logits = _at_least(logits, logits.topk(config.top_k).values[:, -1:])
        yield "top_k", logits
    if config.top_p is not None and config.top_p < 1:
        logits = _at_least(logits, _edge(logits, config.top_p))
        yield "top_p", logits
    if config.min_p:
        logits = _at_least(logits, logits.amax(dim=1, keepdim=True) + torch.tensor(config.min_p).double().log())
        yield "min_p", logits


def draw(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> list[int]:
    """One token a row, each from its row's own random state, so that no row depends on those beside it.

    Args:
        logits: (B, V) as the last of `narrowed`.
        temperature: 0 takes the likeliest.
        generators: on the CPU; one number is taken from each.
    """
    if temperature == 0:
        tokens: list[int] = logits.argmax(dim=1).tolist()
        return tokens
    reached = logits.softmax(dim=1).cumsum(dim=1)  # (B, V), the distribution's quantiles
    heights = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in generators])
    # To the right of equal values and never at the very top: a token of no probability adds nothing and is passed over.
    heights = heights * (1 - 2.0**-52) * reached[:, -1:]
    tokens = torch.searchsorted(reached, heights, right=True)[:, 0].tolist()
    return tokens


def _penalised(logits: Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> Tensor:
    logits = logits.clone()
    for row, tokens in enumerate(seen):
        repeated = torch.tensor(sorted(set(tokens)), dtype=torch.int64)
        values = logits[row, repeated]
        logits[row, repeated] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def _at_least(logits: Tensor, least: Tensor) -> Tensor:
    return logits.masked_fill(logits < least, float("-inf"))


def _edge(logits: Tensor, top_p: float) -> Tensor:
    """(B, 1): the smallest logit among the likeliest tokens whose probabilities reach top_p."""
    total, V, n = logits.logsumexp(dim=1, keepdim=True), logits.shape[1], FIRST
    while True:
        likeliest = logits.topk(min(n, V)).values
        before = (likeliest - total).exp().cumsum(dim=1)
        if n >= V or bool((before[:, -1] >= top_p).all()):
            n_kept = (before < top_p).sum(dim=1, keepdim=True).clamp(max=likeliest.shape[1] - 1)
            return likeliest.gather(1, n_kept)
        n *= 8
