"""Windows of text -> statistics of every head, relation scores and losses, in bounded memory.

The model runs through the fused kernel, as in training. Hooks compute the weights beside it, for one layer and a chunk
of windows and queries at a time, so the (T, T) matrices of all heads are never in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.inspection.ablation import UNKNOWN, losses, rows_per_pass
from minigpt.inspection.capture import attention_hooks, evaluation_mode
from minigpt.inspection.relations import Heads, Link, RelationScore, RelationTally, stacked
from minigpt.inspection.statistics import Statistic
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import AttentionSpec, attention_scores, query_chunks, weights_of


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements of a model on a batch of tokens."""

    scores: dict[str, Heads]
    """(n_layer, n_head) each; NaN where a score is undefined."""
    losses: Tensor
    """(B, T), in nats."""
    relations: dict[str, RelationScore]
    """Scores of every head for each relation."""


def measure(
    model: GPT, tokens: Tensor, wanted: Mapping[str, Statistic], links: Sequence[Sequence[Link]] = ()
) -> Measured:
    """Mean of each statistic over all queries of a batch, and `largest_score`, the maximum before the softmax.

    Attention scores that grow without bound make training unstable (Dehghani et al. 2023, arXiv:2302.05442).

    Args:
        model: not modified.
        tokens: (B, T + 1) ids, one or more rows; UNKNOWN after the end of a shorter one, where nothing counts.
        wanted: name -> statistic.
        links: links of each row.
    """
    B, T = tokens.shape[0], tokens.shape[1] - 1
    tally = _Tally(model.config.n_layer, model.config.n_head, wanted)
    each = []
    rows = rows_per_pass(T)
    for start in range(0, B, rows):
        tally.links, tally.counted = links[start : start + rows], tokens[start : start + rows, 1:] != UNKNOWN
        with evaluation_mode(model), attention_hooks(model, tally.add):
            each.append(losses(model, tokens[start : start + rows]).cpu())
    return Measured(tally.scores(), torch.cat(each), tally.relations())


class _Tally:
    """Accumulates statistics from the hooks of each forward pass."""

    def __init__(self, n_layer: int, n_head: int, wanted: Mapping[str, Statistic]) -> None:
        self.wanted = wanted
        self.sums = {name: torch.zeros(n_layer, n_head, dtype=torch.float64) for name in wanted}
        self.counts = {name: torch.zeros(n_layer, n_head, dtype=torch.float64) for name in wanted}
        self.largest = torch.full((n_layer, n_head), -torch.inf, dtype=torch.float64)
        self.links: Sequence[Sequence[Link]] = ()
        """Of each row in the current forward pass."""
        self.counted = torch.ones(1, 1, dtype=torch.bool)
        """(B, T): its queries that count."""
        self.linked = [RelationTally() for _ in range(n_layer)]
        """For each layer, the weights on links."""

    def add(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> None:
        parts = []
        for queries in query_chunks(query.shape[2]):
            scores = attention_scores(query, key, spec, queries)
            weights = weights_of(scores, spec["similarity"])
            places = torch.arange(queries.start, queries.stop, device=weights.device)
            out = ~self.counted[:, None, queries.start : queries.stop].to(weights.device)  # (B, 1, R)
            largest = scores.amax(dim=3).masked_fill(out, -torch.inf).amax(dim=(0, 2))
            self.largest[layer] = torch.maximum(self.largest[layer], largest.cpu())
            for name, statistic in self.wanted.items():
                values = statistic(weights, places).masked_fill(out, torch.nan)  # (B, H, R)
                self.sums[name][layer] += values.nansum(dim=(0, 2)).cpu()
                self.counts[name][layer] += (~values.isnan()).sum(dim=(0, 2)).cpu()
            if any(self.links):
                parts.append(weights.masked_fill(out[..., None], 0.0).float().cpu())
        for row, own in enumerate(self.links):
            if own:
                self.linked[layer].add(torch.cat([part[row] for part in parts], dim=1).numpy(), own)  # (H, T, T)

    def scores(self) -> dict[str, Heads]:
        means = {name: (self.sums[name] / self.counts[name]).numpy() for name in self.wanted}
        return means | {"largest_score": self.largest.numpy()}

    def relations(self) -> dict[str, RelationScore]:
        return stacked([tally.scores() for tally in self.linked])
