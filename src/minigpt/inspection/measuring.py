"""A model and some windows of text -> statistics of every head, what it does with relations, and the losses.

The model computes as in training, through the fused kernel. Its queries and keys are tapped, and the weights worked out
beside it: some windows, one layer and some queries at a time, so that no (T, T) matrix is held for all heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.inspection.ablation import losses
from minigpt.inspection.capture import tapped, undisturbed
from minigpt.inspection.relations import Heads, Link, RelationScore, merged, score_relations, stacked
from minigpt.inspection.statistics import Statistic
from minigpt.model.attention import How, attention_scores, weights_of
from minigpt.model.gpt import GPT

ROWS = 256
"""Queries whose statistics are worked out at a time."""
TOKENS = 1024
"""Tokens that the model reads at a time, if those are more than one window."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What a model did with some tokens."""

    scores: dict[str, Heads]
    """(n_layer, n_head) each; NaN where a score has no meaning."""
    losses: Tensor
    """(B, T) nats of each prediction."""
    relations: dict[str, RelationScore]
    """What heads do with each kind of link."""


def measure(
    model: GPT, tokens: Tensor, wanted: Mapping[str, Statistic], links: Sequence[Sequence[Link]] = ()
) -> Measured:
    """The mean of some statistics over all queries of a batch, and `largest_score`, the greatest before the softmax.

    Scores that grow without bound are how training becomes unstable (Dehghani et al. 2023, arXiv:2302.05442).

    Args:
        model: read only; see `undisturbed`.
        tokens: (B, T + 1) ids, one or more rows.
        wanted: name -> statistic.
        links: within each row; none when not given.
    """
    B, T = tokens.shape[0], tokens.shape[1] - 1
    tally = _Tally(model.config.n_layer, model.config.n_head, wanted)
    each = []
    rows = max(1, TOKENS // max(T, 1))
    for start in range(0, B, rows):
        tally.links = links[start : start + rows]
        with undisturbed(model), tapped(model, tally.add):
            each.append(losses(model, tokens[start : start + rows]).cpu())
    return Measured(tally.scores(), torch.cat(each), tally.relations())


class _Tally:
    """Sums over what is tapped."""

    def __init__(self, n_layer: int, n_head: int, wanted: Mapping[str, Statistic]) -> None:
        self.wanted = wanted
        self.sums = {name: torch.zeros(n_layer, n_head, dtype=torch.float64) for name in wanted}
        self.counts = {name: torch.zeros(n_layer, n_head, dtype=torch.float64) for name in wanted}
        self.largest = torch.full((n_layer, n_head), -torch.inf, dtype=torch.float64)
        self.links: Sequence[Sequence[Link]] = ()
        """Within each row of the batch that is read now."""
        self.linked: list[list[dict[str, RelationScore]]] = [[] for _ in range(n_layer)]
        """For each layer, of each row with links."""

    def add(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> None:
        T = query.shape[2]
        parts = []
        for start in range(0, T, ROWS):
            queries = range(start, min(T, start + ROWS))
            scores = attention_scores(query, key, how, queries)
            weights = weights_of(scores, how["similarity"])
            places = torch.arange(queries.start, queries.stop, device=weights.device)
            self.largest[layer] = torch.maximum(self.largest[layer], scores.amax(dim=(0, 2, 3)).cpu())
            for name, statistic in self.wanted.items():
                values = statistic(weights, places)  # (B, H, R)
                self.sums[name][layer] += values.nansum(dim=(0, 2)).cpu()
                self.counts[name][layer] += (~values.isnan()).sum(dim=(0, 2)).cpu()
            if any(self.links):
                parts.append(weights.float().cpu())
        for row, own in enumerate(self.links):
            if own:
                whole = torch.cat([part[row] for part in parts], dim=1)  # (H, T, T)
                self.linked[layer].append(score_relations(whole[None].numpy(), own))

    def scores(self) -> dict[str, Heads]:
        means = {name: (self.sums[name] / self.counts[name]).numpy() for name in self.wanted}
        return means | {"largest_score": self.largest.numpy()}

    def relations(self) -> dict[str, RelationScore]:
        return merged([stacked(layers) for layers in zip(*self.linked, strict=True)])
