"""Relations of a text -> the weight that each head puts on their targets, and the part that distance explains."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minigpt.data.relations import Relation, Span
from minigpt.data.tokenizers.base import Tokenizer
from minigpt.inspection.intervals import student_t
from minigpt.inspection.packing import Weights

Heads = npt.NDArray[np.float64]
"""(n_layer, n_head)."""


@dataclass(frozen=True)
class Link:
    """A relation between tokens: from the last token of its source to all tokens of its target."""

    name: str
    query: int
    keys: tuple[int, ...]
    """Each below the query."""


@dataclass(frozen=True, eq=False)
class RelationScore:
    """Scores of every head for one relation, averaged over its links."""

    n_links: int
    mass: Heads
    """Attention weight from the query to the keys."""
    baseline: Heads
    """The weight expected from distance alone; see `Distances`."""
    deviation: Heads
    """Standard deviation of the lift over the links; NaN for one link."""

    @property
    def lift(self) -> Heads:
        """Weight beyond what distance explains: 0 for a head whose scores depend on distance alone."""
        return self.mass - self.baseline

    @property
    def half_interval(self) -> Heads:
        """Half the 95 % interval of the lift: Student's t over links, as if each was drawn on its own; NaN for one."""
        return self.deviation * (student_t(max(self.n_links - 1, 1)) / math.sqrt(self.n_links))


def token_spans(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Span]:
    """For each token the characters of `decode(tokenizer, tokens)` that it has bytes of; spans may overlap by one."""
    characters = _characters(b"".join(pieces := [tokenizer.decode_bytes([token]) for token in tokens]))
    spans: list[Span] = []
    start = 0
    for piece in pieces:
        stop = start + len(piece)
        # A token without bytes gets the span before it, so that spans stay sorted.
        spans.append((characters[start], characters[stop - 1] + 1) if piece else [(0, 0), *spans[-1:]][-1])
        start = stop
    return spans


def links(relations: Sequence[Relation], spans: Sequence[Span]) -> list[Link]:
    """Map relations between characters to links between tokens; relations outside the tokens are dropped.

    The query is never its own key: where one token holds the end of the source and part of the target, only the other
    tokens of the target are keys, and without any there is no link.

    Args:
        relations: of the text that the tokens decode to, or of a longer text that begins with it.
        spans: of the tokens; see `token_spans`.
    """
    firsts, lasts = [span[0] for span in spans], [span[1] for span in spans]
    found = []
    for relation in relations:
        query = bisect_left(firsts, relation.source[1]) - 1
        if query < 0 or lasts[query] < relation.source[1]:
            continue  # it ends after the last token
        keys = range(bisect_right(lasts, relation.target[0]), min(query, bisect_left(firsts, relation.target[1])))
        if keys:
            found.append(Link(relation.name, query, tuple(keys)))
    return found


def moved(found: Sequence[Link], by: int) -> list[Link]:
    """Links with all positions shifted by `by`."""
    return [Link(link.name, link.query + by, tuple(key + by for key in link.keys)) for link in found]


def within(found: Sequence[Link], start: int, stop: int) -> tuple[Link, ...]:
    """Links whose query and keys are all in start..stop, with positions relative to `start`."""
    return tuple(moved([link for link in found if min(link.keys) >= start and link.query < stop], -start))


class RelationTally:
    """Weights on links, over several texts: `add` each, then `scores`.

    The weight that distance alone explains is that of the softmax with one score per distance that fits a head best, on
    all texts together: a relation at one distance in each text is not explained by distance if texts differ in it.
    """

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.masses: list[Heads] = []
        """Of each link, the weight that each head puts on its keys."""
        self.distances = Distances()

    def add(self, weights: Weights, found: Sequence[Link]) -> None:
        """Add a text: weights of any number of heads, (..., T, T) with the same T for all texts, and its links."""
        if found:
            self.distances.add(weights)
        self.links += found
        self.masses += [weights[..., link.query, link.keys].sum(-1, dtype=np.float64) for link in found]

    def scores(self) -> dict[str, RelationScore]:
        """Means over the links of each relation; every link has equal weight."""
        baselines: list[Heads] = [np.zeros(0)] * len(self.links)
        by_query: dict[int, list[int]] = {}
        for number, link in enumerate(self.links):
            by_query.setdefault(link.query, []).append(number)
        for query, numbers in by_query.items():
            expected = self.distances.expected(query)
            for number in numbers:
                baselines[number] = expected[..., self.links[number].keys].sum(-1)
        scores = {}
        for name in dict.fromkeys(link.name for link in self.links):
            own = [number for number, link in enumerate(self.links) if link.name == name]
            mass, baseline = (np.stack([each[number] for number in own]) for each in (self.masses, baselines))
            spread = (mass - baseline).std(0, ddof=1) if len(own) > 1 else np.full(mass.shape[1:], np.nan)
            scores[name] = RelationScore(len(own), mass.mean(0), baseline.mean(0), spread)
        return scores


def score_relations(weights: Weights, found: Sequence[Link]) -> dict[str, RelationScore]:
    """Score every head on every relation, from (n_layer, n_head, T, T) weights and the links among the T tokens.

    A mean over few links is noisy: see `RelationScore.half_interval`. A relation that always spans the same distance is
    explained by distance alone, so its lift says nothing.
    """
    tally = RelationTally()
    tally.add(weights, found)
    return tally.scores()


def stacked(layers: Sequence[Mapping[str, RelationScore]]) -> dict[str, RelationScore]:
    """Stack the (n_head,) scores of single layers, which are on the same links."""

    def stack(name: str, part: str) -> Heads:
        return np.stack([getattr(layer[name], part) for layer in layers])

    return {
        name: RelationScore(score.n_links, *(stack(name, part) for part in ("mass", "baseline", "deviation")))
        for name, score in layers[0].items()
    }


class Distances:
    """The softmax with one score per distance that fits the weights of a head best.

    The fit has maximum likelihood: summed over queries, it puts as much weight on each distance as the head does. Means
    over diagonals are biased, since early queries have few keys and give each more weight. It is the estimator of
    Lynden-Bell (1971, https://doi.org/10.1093/mnras/155.1.95) for truncated observations.
    """

    # In closed form, because each query has the distances of the query before it and one more: let h_d be the share of
    # distance d in the weight on distances up to d, over the queries that have a key at distance d. Query i then gives
    # distance d the weight h_d (1 - h_{d+1}) ... (1 - h_i).

    def __init__(self) -> None:
        self.on_it: Heads | float = 0.0
        """(..., T): weight on each distance, over all queries that have it."""
        self.up_to_it: Heads | float = 0.0
        """(..., T): of the same queries, weight up to it."""

    def add(self, weights: Weights) -> None:
        """Add (..., T, T) weights of a causal model."""
        T = weights.shape[-1]
        places, distances = np.arange(T)[:, None], np.arange(T)
        on_it = np.where(distances <= places, weights[..., places, places - distances], 0)  # (..., T, distance)
        up_to_it = np.where(distances <= places, on_it.cumsum(-1, dtype=np.float64), 0)
        self.on_it = self.on_it + on_it.sum(-2, dtype=np.float64)
        self.up_to_it = self.up_to_it + up_to_it.sum(-2)

    def expected(self, query: int) -> Heads:
        """The weights of the keys 0..query by distance alone: (..., query + 1)."""
        share: Heads = np.asarray(self.on_it / np.maximum(self.up_to_it, np.finfo(np.float64).tiny))
        row = share[..., query::-1].copy()
        row[..., 1:] *= (1 - share[..., query:0:-1]).cumprod(-1)
        return row


def _characters(data: bytes) -> list[int]:
    """For each byte the index of its character in `data.decode(errors="replace")`."""
    found: list[int] = []
    n = 0
    while data:
        try:
            text, n_broken = data.decode(), 0
        except UnicodeDecodeError as error:  # the invalid bytes become one U+FFFD
            text, n_broken = data[: error.start].decode(), error.end - error.start
        sizes = [len(character.encode()) for character in text] + [n_broken] * bool(n_broken)
        for size in sizes:
            found += [n] * size
            n += 1
        data = data[sum(sizes) :]
    return found
