"""Sampling on the device: the filters and the draw of `sampling`, for all rows at once and without waiting for a GPU.

`sampling` draws one row at a time in numpy; this is its fast twin, with the same uniform numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import GenerationConfig


class DeviceSampler:
    """Draws a token for each row; its tensors stay where they are, so a CUDA graph can replay `draw`."""

    def __init__(
        self, config: GenerationConfig, V: int, texts: Sequence[Sequence[int]], device: torch.device | str
    ) -> None:
        """Args: texts: the tokens of each row so far, for repetition_penalty; V: size of the vocabulary."""
        self.config, self._V = config, V
        self._forbidden: Tensor | None = None
        """(V,) bool."""
        self._seen: Tensor | None = None
        """(B, V) bool: the tokens of each row."""
        if config.forbidden_tokens:
            self._forbidden = _among([config.forbidden_tokens], V)[0].to(device)
        if config.repetition_penalty != 1.0:
            self._seen = _among(texts, V).to(device)

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token for each row.

        Args:
            logits: (B, V) float32, under which the log-probabilities are.
            uniform: (B,) float64 in [0, 1), from each row's own generator; not read at temperature 0.

        Returns:
            (3, B) float64: the token, its log-probability in nats before any filter, and the logarithm of the sum of
            exponentiated logits, which is NaN or inf where the logits are.
        """
        total = logits.logsumexp(dim=-1)
        left = self._filtered(logits.double())  # float64 for the reasons given in `sampling`
        if self.config.temperature == 0:
            token = left.argmax(dim=-1, keepdim=True)
        else:
            cumulative = (left - left.amax(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
            point = uniform[:, None] * (1 - 2.0**-52) * cumulative[:, -1:]
            # The number of sums at or below the point: searchsorted(side="right"). Clamped for NaN, which compares with
            # nothing: the caller finds it in `total`.
            token = (cumulative <= point).sum(dim=-1, keepdim=True).clamp(max=self._V - 1)
        if self._seen is not None:
            self._seen.scatter_(1, token, True)
        chance = logits.gather(1, token)[:, 0] - total
        return torch.stack([token[:, 0].double(), chance.double(), total.double()])

    def _filtered(self, logits: Tensor) -> Tensor:
        """(B, V) logits, -inf for what cannot be drawn; each step as in `sampling.apply_filters`."""
        config, removed = self.config, -math.inf
        if self._forbidden is not None:
            logits = logits.masked_fill(self._forbidden, removed)
        if self._seen is not None:
            penalty = config.repetition_penalty
            penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._seen, penalised, logits)
        if config.temperature == 0:
            return logits
        if config.temperature != 1.0:
            logits = logits / config.temperature
        if config.top_k is not None and config.top_k < self._V:
            least = logits.topk(config.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, removed)
        if config.top_p is not None and config.top_p < 1:
            likeliest = logits.sort(dim=-1, descending=True).values
            cumulative = (likeliest - likeliest[:, :1]).exp().cumsum(dim=-1)
            n_before = (cumulative < config.top_p * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
            logits = logits.masked_fill(logits < likeliest.gather(1, n_before.clamp(max=self._V - 1)), removed)
        if config.min_p:
            least = logits.amax(dim=-1, keepdim=True) + math.log(config.min_p)
            logits = logits.masked_fill(logits < least, removed)
        return logits


def _among(texts: Sequence[Sequence[int]], V: int) -> Tensor:
    """(B, V) mask of the tokens of each text."""
    mask = torch.zeros(len(texts), V, dtype=torch.bool)
    for row, tokens in zip(mask, texts, strict=True):
        row[list(tokens)] = True
    return mask
