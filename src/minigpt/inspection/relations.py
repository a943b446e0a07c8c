"""Relations of a text -> how much weight each head puts on what is meant, and how much of it distance explains."""

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
    """A relation between tokens: the last token of what refers, and all tokens of what is meant."""

    name: str
    query: int
    keys: tuple[int, ...]
    """Each below the query."""


@dataclass(frozen=True, eq=False)
class RelationScore:
    """What the heads do with one kind of relation, on the average over its links."""

    n_links: int
    mass: Heads
    """The weight that goes from the query to the keys."""
    baseline: Heads
    """What it would be if the head knew nothing but distances; see `by_distance`."""

    @property
    def lift(self) -> Heads:
        """How much more than distance explains: 0 of a head whose scores depend on the distance alone."""
        return self.mass - self.baseline


def token_spans(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Span]:
    """The characters of `decode(tokenizer, tokens)` that each token has a byte of; tokens of one character share it."""
    characters = _characters(b"".join(pieces := [tokenizer.decode_bytes([token]) for token in tokens]))
    spans: list[Span] = []
    start = 0
    for piece in pieces:
        stop = start + len(piece)
        # A token without a byte is like the one before it, so that spans stay in order.
        spans.append((characters[start], characters[stop - 1] + 1) if piece else [(0, 0), *spans[-1:]][-1])
        start = stop
    return spans


def links(relations: Sequence[Relation], spans: Sequence[Span]) -> list[Link]:
    """The relations that lie within the tokens.

    A token that holds the end of what refers and some of what is meant cannot be its own key; where nothing else is
    meant, there is no link.

    Args:
        relations: of the text that the tokens decode to, or of one that it is the beginning of.
        spans: of the tokens; see `token_spans`.
    """
    firsts, lasts = [span[0] for span in spans], [span[1] for span in spans]
    found = []
    for relation in relations:
        query = bisect_left(firsts, relation.source[1]) - 1
        if query < 0 or lasts[query] < relation.source[1]:
            continue  # it ends behind the last token
        keys = range(bisect_right(lasts, relation.target[0]), min(query, bisect_left(firsts, relation.target[1])))
        if keys:
            found.append(Link(relation.name, query, tuple(keys)))
    return found


def moved(found: Sequence[Link], by: int) -> list[Link]:
    """The same links among tokens that stand so many places later."""
    return [Link(link.name, link.query + by, tuple(key + by for key in link.keys)) for link in found]


def within(found: Sequence[Link], start: int, stop: int) -> tuple[Link, ...]:
    """The links between tokens start..stop alone, counted from `start`."""
    return tuple(moved([link for link in found if min(link.keys) >= start and link.query < stop], -start))


def score_relations(weights: Weights, found: Sequence[Link]) -> dict[str, RelationScore]:
    """Every head on every kind of relation.

    A mean over few links says little: `n_links` says how many there were. Of a relation that always lies at the same
    distance, distance explains all that a head does with it.

    Args:
        weights: (n_layer, n_head, T, T) of a causal model.
        found: links among the T tokens.
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
    """The scores of single layers on the same links as those of all layers."""
    return {
        name: RelationScore(
            score.n_links,
            np.concatenate([layer[name].mass for layer in layers]),
            np.concatenate([layer[name].baseline for layer in layers]),
        )
        for name, score in layers[0].items()
    }


def merged(found: Sequence[Mapping[str, RelationScore]]) -> dict[str, RelationScore]:
    """The scores of several texts as those of one: each link counts the same."""
    scores = {}
    for name in dict.fromkeys(name for each in found for name in each):
        own = [each[name] for each in found if name in each]
        n_links = sum(score.n_links for score in own)
        shares = np.array([score.n_links / n_links for score in own])
        mass, baseline = (np.stack([getattr(score, part) for score in own]) for part in ("mass", "baseline"))
        scores[name] = RelationScore(n_links, np.tensordot(shares, mass, 1), np.tensordot(shares, baseline, 1))
    return scores


def by_distance(weights: Weights, queries: set[int]) -> dict[int, npt.NDArray[np.float64]]:
    """The weights of the softmax over distances alone, a score for each, that explains a head best.

    That is, of greatest likelihood: over all queries it puts as much on each distance as the head does. Means over a
    diagonal would not do, since early queries have few keys and give each more. The scores need not be found, as each
    query has the keys of the one before and one more: with h_d the share of distance d in the weight up to d, over the
    queries that reach so far, query i gives distance d the weight h_d (1 - h_{d+1}) ... (1 - h_i). This is the
    estimator of Lynden-Bell (1971, https://doi.org/10.1093/mnras/155.1.95) for observations with an upper limit each.

    Args:
        weights: (n_layer, n_head, T, T) of a causal model.
        queries: those whose weights are asked for.

    Returns:
        For each query i (n_layer, n_head, i + 1), the weights of the keys 0..i.
    """
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
    """For each byte, which character of `data.decode(errors="replace")` it belongs to."""
    found: list[int] = []
    n = 0
    while data:
        try:
            text, n_broken = data.decode(), 0
        except UnicodeDecodeError as error:  # what stands there becomes one U+FFFD
            text, n_broken = data[: error.start].decode(), error.end - error.start
        sizes = [len(character.encode()) for character in text] + [n_broken] * bool(n_broken)
        for size in sizes:
            found += [n] * size
            n += 1
        data = data[sum(sizes) :]
    return found
