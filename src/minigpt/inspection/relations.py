"""Relations of a text -> the weight that each head puts on their targets, and the part that distance explains."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minigpt.data.relations import Relation, Span
from minigpt.data.tokenizers.base import Tokenizer
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
    """The weight expected from distance alone; see `by_distance`."""

    @property
    def lift(self) -> Heads:
        """Weight beyond what distance explains: 0 for a head whose scores depend on distance alone."""
        return self.mass - self.baseline


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


def score_relations(weights: Weights, found: Sequence[Link]) -> dict[str, RelationScore]:
    """Score every head on every relation, from (n_layer, n_head, T, T) weights and the links among the T tokens.

    A mean over few links is noisy: check `n_links`. A relation that always spans the same distance is explained by
    distance alone, so its lift says nothing.
    """
    expected = by_distance(weights, {link.query for link in found})
    scores = {}
    for name in dict.fromkeys(link.name for link in found):
        own = [link for link in found if link.name == name]
        mass, baseline = np.zeros(weights.shape[:2]), np.zeros(weights.shape[:2])
        for link in own:
            mass += weights[..., link.query, link.keys].sum(-1, dtype=np.float64)
            baseline += expected[link.query][..., link.keys].sum(-1)
        scores[name] = RelationScore(len(own), mass / len(own), baseline / len(own))
    return scores


def stacked(layers: Sequence[Mapping[str, RelationScore]]) -> dict[str, RelationScore]:
    """Concatenate the scores of single layers, which are on the same links."""
    return {
        name: RelationScore(
            score.n_links,
            np.concatenate([layer[name].mass for layer in layers]),
            np.concatenate([layer[name].baseline for layer in layers]),
        )
        for name, score in layers[0].items()
    }


def merged(found: Sequence[Mapping[str, RelationScore]]) -> dict[str, RelationScore]:
    """Combine the scores of several texts; every link has equal weight."""
    scores = {}
    for name in dict.fromkeys(name for each in found for name in each):
        own = [each[name] for each in found if name in each]
        n_links = sum(score.n_links for score in own)
        shares = np.array([score.n_links / n_links for score in own])
        mass, baseline = (np.stack([getattr(score, part) for score in own]) for part in ("mass", "baseline"))
        scores[name] = RelationScore(n_links, np.tensordot(shares, mass, 1), np.tensordot(shares, baseline, 1))
    return scores


def by_distance(weights: Weights, queries: set[int]) -> dict[int, npt.NDArray[np.float64]]:
    """Weights of the softmax with one score per distance that fits a head best.

    The fit has maximum likelihood: summed over queries, it puts as much weight on each distance as the head does. Means
    over diagonals are biased, since early queries have few keys and give each more weight. It is the estimator of
    Lynden-Bell (1971, https://doi.org/10.1093/mnras/155.1.95) for truncated observations.

    Args:
        weights: (n_layer, n_head, T, T) of a causal model.
        queries: positions whose weights are returned.

    Returns:
        For each query i (n_layer, n_head, i + 1), the weights of the keys 0..i.
    """
    # In closed form, because each query has the distances of the query before it and one more: let h_d be the share of
    # distance d in the weight on distances up to d, over the queries that have a key at distance d. Query i then gives
    # distance d the weight h_d (1 - h_{d+1}) ... (1 - h_i).
    T = weights.shape[-1]
    places, distances = np.arange(T)[:, None], np.arange(T)
    on_it = np.where(distances <= places, weights[..., places, places - distances], 0)  # (..., T, distance)
    up_to_it = np.where(distances <= places, on_it.cumsum(-1, dtype=np.float64), 0)
    on_it, up_to_it = on_it.sum(-2, dtype=np.float64), up_to_it.sum(-2)
    share = on_it / np.maximum(up_to_it, np.finfo(np.float64).tiny)  # of each distance
    rows = {}
    for query in queries:
        rows[query] = share[..., query::-1].copy()
        rows[query][..., 1:] *= (1 - share[..., query:0:-1]).cumprod(-1)
    return rows


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
