"""A model, a text and a repeated sequence -> the scores of every head, and a few numbers of the whole.

The model computes as in training, through the fused kernel. Its queries and keys are tapped, and the weights worked out
beside it, some queries at a time: the whole context is measured without a (T, T) matrix for all heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.data.tokenizer import Tokenizer, decode
from minigpt.inspection import capture, statistics
from minigpt.inspection.ablation import ablation, losses
from minigpt.inspection.capture import tapped, undisturbed
from minigpt.inspection.circuits import copying, symmetry
from minigpt.inspection.packing import Weights
from minigpt.inspection.python_relations import python_relations
from minigpt.inspection.relations import (
    Heads,
    Link,
    RelationScore,
    links,
    merged,
    score_relations,
    token_spans,
    within,
)
from minigpt.inspection.snapshot import Snapshot
from minigpt.inspection.statistics import Statistic
from minigpt.model.attention import How, attention_scores, weights_of
from minigpt.model.gpt import GPT

ROWS = 256
"""Queries whose weights are held at a time."""
PROBE_TOKENS = 512
"""Tokens of text that are measured at each validation: so many windows of the whole context, or one."""
MOST_REPEATED, N_REPEATED = 64, 4
"""Tokens of a random sequence that is repeated, at most, and number of such sequences."""

TEXT_STATISTICS: Mapping[str, Statistic] = {
    "entropy": statistics.entropy,
    "previous_token": statistics.previous_token,
    "current_token": statistics.current_token,
    "first_token": statistics.first_token,
    "mean_distance": statistics.mean_distance,
    "near_zero": statistics.near_zero,
    "keys_for_90": statistics.keys_for_mass(0.90),
    "keys_for_99": statistics.keys_for_mass(0.99),
}
LABELS: Mapping[str, float] = {
    "induction": 0.3,
    "duplicate_token": 0.3,
    "previous_token": 0.4,
    "current_token": 0.5,
    "first_token": 0.5,
}
"""Score -> what a head must reach to be called by it; where it reaches several, the one that it exceeds by most."""
RELATION = "relation: "
"""What the names of relations' scores begin with; their value is the lift over what distance alone explains."""
RELATION_LABEL = 0.2
FEWEST_LINKS = 5
"""Of a relation that occurs less often, a head's score says nothing."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What a model is asked about, the same at every step."""

    tokens: tuple[int, ...]
    """Whose maps are shown."""
    windows: Tensor
    """(B, T + 1) ids on which heads are measured."""
    links: tuple[Link, ...]
    """Relations between `tokens`."""
    window_links: tuple[tuple[Link, ...], ...]
    """Relations within each window."""

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        tokens: Sequence[int],
        context_length: int,
        most_shown: int,
        most_measured: int = PROBE_TOKENS,
    ) -> Probe:
        """A text's beginning, and as much of it as is measured.

        Args:
            tokenizer: that made the tokens.
            tokens: one or more.
            context_length: of the model.
            most_shown: tokens whose maps are shown, at most.
            most_measured: tokens in the windows, at most, if those are more than one.
        """
        shown = tuple(tokens[: min(most_shown, context_length)])
        T = min(context_length, len(tokens) - 1)
        n_windows = max(1, min(most_measured, len(tokens) - 1) // T) if T else 0
        used = tokens[: max(n_windows * T + 1, len(shown))]
        windows = torch.tensor(used[: n_windows * T + 1]).unfold(0, T + 1, T) if T else torch.zeros(0, 1).long()
        found = links_of_documents(tokenizer, used)
        return cls(
            shown,
            windows,
            within(found, 0, len(shown)),
            tuple(within(found, i * T, i * T + T) for i in range(n_windows)),
        )


def look(
    model: GPT, tokenizer: Tokenizer, probe: Probe, step: int, *, everything: bool = False
) -> tuple[Snapshot, dict[str, float]]:
    """Maps and scores of every head at one step, and the numbers that are logged as curves.

    Args:
        model: read only.
        tokenizer: that made the probe.
        probe: what is looked at.
        step: training step that the weights belong to.
        everything: also the scores of `costly_scores`.
    """
    snapshot = capture.probe(model, tokenizer, probe.tokens, step)
    device = next(model.parameters()).device
    scores, numbers = measure_repeated(model, tokenizer.end_of_text)
    if len(probe.windows):
        found = measure(model, probe.windows.to(device), TEXT_STATISTICS)
        scores |= found.scores
        score = in_context_score(found.losses)
        numbers |= {} if score is None else {"icl_score": score}
    scores |= relation_scores(score_relations(snapshot.weights, probe.links))
    numbers |= summary(scores)
    if everything:
        scores |= costly_scores(model, tokenizer.end_of_text, snapshot.weights)
    return replace(snapshot, scores={name: score.astype(np.float32) for name, score in scores.items()}), numbers


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass of a model over some tokens says."""

    scores: dict[str, Heads]
    """(n_layer, n_head) each; NaN where a score has no meaning."""
    losses: Tensor
    """(B, T) nats of each prediction."""


def measure(model: GPT, tokens: Tensor, wanted: Mapping[str, Statistic]) -> Measured:
    """The mean of some statistics over all queries of a batch, and `largest_score`, the greatest before the softmax.

    Scores that grow without bound are how training becomes unstable (Dehghani et al. 2023, arXiv:2302.05442).

    Args:
        model: read only; see `undisturbed`.
        tokens: (B, T + 1) ids.
        wanted: name -> statistic.
    """
    shape = model.config.n_layer, model.config.n_head
    sums = {name: torch.zeros(*shape, dtype=torch.float64) for name in wanted}
    counts = {name: torch.zeros(*shape, dtype=torch.float64) for name in wanted}
    largest = torch.full(shape, -torch.inf, dtype=torch.float64)

    def look(layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> None:
        T = query.shape[2]
        for start in range(0, T, ROWS):
            queries = range(start, min(T, start + ROWS))
            scores = attention_scores(query, key, how, queries)
            weights = weights_of(scores, how["similarity"])
            places = torch.arange(queries.start, queries.stop, device=weights.device)
            largest[layer] = torch.maximum(largest[layer], scores.amax(dim=(0, 2, 3)).cpu())
            for name, statistic in wanted.items():
                values = statistic(weights, places)  # (B, H, R)
                sums[name][layer] += values.nansum(dim=(0, 2)).cpu()
                counts[name][layer] += (~values.isnan()).sum(dim=(0, 2)).cpu()

    with undisturbed(model), tapped(model, look):
        each = losses(model, tokens).cpu()
    means = {name: (sums[name] / counts[name]).numpy() for name in wanted}
    return Measured(means | {"largest_score": largest.numpy()}, each)


def measure_repeated(model: GPT, end_of_text: int) -> tuple[dict[str, Heads], dict[str, float]]:
    """What heads do on random tokens that are then repeated, where nothing but looking back helps.

    Returns:
        Scores `induction` and `duplicate_token`; numbers `second_copy_loss` and, for comparison, `first_copy_loss`, in
        nats. Nothing where the context holds no two copies of two tokens.
    """
    period = repeated_period(model)
    if not period:
        return {}, {}
    wanted = {"induction": statistics.induction(period, 1), "duplicate_token": statistics.duplicate_token(period, 1)}
    found = measure(model, repeated_tokens(model, end_of_text, period), wanted)
    # The first token of the second copy is as random as any of the first.
    copies = {"first_copy_loss": found.losses[:, 1:period], "second_copy_loss": found.losses[:, period + 1 :]}
    return {name: found.scores[name] for name in wanted}, {name: float(each.mean()) for name, each in copies.items()}


def repeated_period(model: GPT) -> int:
    """Tokens of a sequence that fits the context twice behind end_of_text; 0 where not even two do."""
    period = min(MOST_REPEATED, model.config.context_length // 2)
    return period if period >= 2 else 0


def repeated_tokens(model: GPT, end_of_text: int, period: int) -> Tensor:
    """(N_REPEATED, 1 + 2 period) ids: end_of_text, random tokens, and the same again."""
    choices = torch.tensor([token for token in range(model.config.vocab_size or 0) if token != end_of_text])
    drawn = torch.randint(len(choices), (N_REPEATED, period), generator=torch.Generator().manual_seed(0))
    copy = choices[drawn]
    first = torch.full((N_REPEATED, 1), end_of_text)
    return torch.cat([first, copy, copy], dim=1).to(next(model.parameters()).device)


def in_context_score(each: Tensor) -> float | None:
    """How much lower the loss is late in the context than early: the last tenth's mean less the second tenth's.

    More negative is better (Olsson et al. 2022, who take the 500th token less the 50th). None of fewer than 20 tokens.

    Args:
        each: (B, T) losses.
    """
    tenth = each.shape[1] // 10
    if tenth < 2:
        return None
    return float(each[:, -tenth:].double().mean() - each[:, tenth : 2 * tenth].double().mean())


def costly_scores(model: GPT, end_of_text: int, weights: Weights) -> dict[str, Heads]:
    """`copying` and `symmetry` from the model's matrices, `redundancy`, and `ablation`, which runs the model per head.

    Args:
        model: read only.
        end_of_text: its id.
        weights: (n_layer, n_head, T, T) of any text.
    """
    layers = torch.from_numpy(weights)[:, None]
    scores = {"copying": copying(model), "symmetry": symmetry(model)}
    scores["redundancy"] = torch.stack([statistics.redundancy(layer) for layer in layers])
    if period := repeated_period(model):
        # On the second copy, where a head that looks back is missed.
        tokens = repeated_tokens(model, end_of_text, period)
        scores["ablation"] = ablation(model, tokens, slice(period + 1, None))
    return {name: score.double().numpy() for name, score in scores.items()}


def summary(scores: Mapping[str, Heads]) -> dict[str, float]:
    """A few numbers, however many heads there are: what is logged as curves."""
    numbers = {
        f"max/{name.removeprefix(RELATION).replace(' ', '_')}": scores[name].max()
        for name in scores
        if name in LABELS or name.startswith(RELATION)
    }
    if "entropy" in scores:
        numbers["entropy_mean"], numbers["entropy_min"] = scores["entropy"].mean(), scores["entropy"].min()
        numbers["largest_score"] = scores["largest_score"].max()
        numbers["sink_rate"] = statistics.sink_rate(torch.from_numpy(scores["first_token"]))
    return {name: float(number) for name, number in numbers.items() if np.isfinite(number)}


def links_of_documents(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Link]:
    """The relations of Python in each document of some tokens."""
    found: list[Link] = []
    start = 0
    while start < len(tokens):
        stop = next((i for i in range(start, len(tokens)) if tokens[i] == tokenizer.end_of_text), len(tokens))
        document = tokens[start:stop]
        own = links(python_relations(decode(tokenizer, document)), token_spans(tokenizer, document))
        found += [Link(link.name, start + link.query, tuple(start + key for key in link.keys)) for link in own]
        start = stop + 1
    return found


def relations_of_windows(model: GPT, probe: Probe) -> dict[str, RelationScore]:
    """What heads do with relations in all that is measured of a text, not only in what is shown."""
    found = []
    for window, own in zip(probe.windows[:, :-1].tolist(), probe.window_links, strict=True):
        if own:
            found.append(score_relations(capture.maps_of(model, window), own))
    return merged(found)


def relation_scores(found: Mapping[str, RelationScore]) -> dict[str, Heads]:
    """The lifts of relations with enough links to say something."""
    return {RELATION + name: score.lift for name, score in found.items() if score.n_links >= FEWEST_LINKS}


def label_heads(scores: Mapping[str, npt.NDArray[np.floating]]) -> list[list[str | None]]:
    """For each layer and head, what it is best described as, or None."""
    thresholds = dict(LABELS) | {name: RELATION_LABEL for name in scores if name.startswith(RELATION)}
    known = [name for name in thresholds if name in scores]
    if not known:
        return []
    excess = np.stack([np.nan_to_num(scores[name] / thresholds[name]) for name in known])  # (names, L, H)
    best, reached = excess.argmax(axis=0), excess.max(axis=0) >= 1
    return [
        [known[i].removeprefix(RELATION).replace("_", " ") if ok else None for i, ok in zip(row, oks, strict=True)]
        for row, oks in zip(best, reached, strict=True)
    ]


def head_table(scores: Mapping[str, npt.NDArray[np.floating]]) -> tuple[list[str], list[list[object]]]:
    """Columns and a row for each head: layer, head, label, and every score, None where it has no meaning."""
    columns = ["layer", "head", "label", *scores]
    labels = label_heads(scores)
    rows: list[list[object]] = []
    for layer, names in enumerate(labels):
        for head, name in enumerate(names):
            values = [float(score[layer, head]) for score in scores.values()]
            rows.append([layer, head, name, *(value if np.isfinite(value) else None for value in values)])
    return columns, rows
