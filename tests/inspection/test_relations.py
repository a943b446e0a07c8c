"""From characters to tokens by brute force, and from weights to scores; distance alone is no merit."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data.relations import Relation, Span
from minigpt.data.synthetic.texts import references
from minigpt.data.tokenizers.base import BPETokenizer, BytesTokenizer, CharsTokenizer, Tokenizer, decode
from minigpt.inspection.relations import (
    Distances,
    Link,
    RelationTally,
    _characters,
    links,
    score_relations,
    token_spans,
)

TEXT = "the café, the naïve 東京 and 🙂🙂 the e\u0301 the café\r\n" * 2
TOKENIZERS: dict[str, Tokenizer] = {
    "bytes": BytesTokenizer(),
    "chars": CharsTokenizer.of([TEXT]),
    "bpe": BPETokenizer.train([TEXT], 280),
}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def characters_one_by_one(data: bytes) -> list[int]:
    """For each byte, the number of its character: take one from the front, and again. The slow twin."""
    found: list[int] = []
    for n in itertools.count():
        if not data:
            return found
        try:
            whole = data.decode()
        except UnicodeDecodeError as error:
            whole = data[: error.start].decode()
            broken = error.end - error.start
        n_bytes = len(whole[0].encode()) if whole else broken
        found += [n] * n_bytes
        data = data[n_bytes:]
    raise AssertionError


def brute_force_spans(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Span]:
    pieces = [tokenizer.decode_bytes([token]) for token in tokens]
    characters = characters_one_by_one(b"".join(pieces))
    spans = []
    for i, piece in enumerate(pieces):
        start = sum(map(len, pieces[:i]))
        own = set(characters[start : start + len(piece)])
        spans.append((min(own), max(own) + 1))
    return spans


@each_tokenizer
def test_a_token_has_the_characters_that_it_has_bytes_of_wherever_the_text_is_cut(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT)
    split = 0
    for start in range(12, 30):
        for stop in range(start, len(tokens) + 1):
            spans = token_spans(tokenizer, tokens[start:stop])
            assert spans == brute_force_spans(tokenizer, tokens[start:stop])
            text = decode(tokenizer, tokens[start:stop])
            assert (spans[-1][1] if spans else 0) == len(text)
            split += any(one[1] > other[0] for one, other in itertools.pairwise(spans))
    assert bool(split) == (tokenizer is not TOKENIZERS["chars"]), "some characters are split over tokens"


@each_tokenizer
def test_the_spans_of_a_beginning_are_those_of_the_whole_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT)
    spans = token_spans(tokenizer, tokens)
    assert spans[-1][1] == len(TEXT)
    for stop in range(len(tokens)):
        assert token_spans(tokenizer, tokens[:stop]) == spans[:stop]
    for token, (start, end) in zip(tokens, spans, strict=True):
        assert tokenizer.decode_bytes([token]) in TEXT[start:end].encode()


hard_bytes = st.lists(
    st.sampled_from([b"a", "é".encode(), "京".encode(), "🙂".encode(), b"\x80", b"\xc3", b"\xe4\xba", b"\xf0\x9f\x99"])
    | st.sampled_from([b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xe0\x80"])
    | st.binary(max_size=3)
).map(b"".join)


@given(hard_bytes)
@settings(max_examples=150)
def test_bytes_that_are_no_text_belong_to_the_characters_that_replace_them(data: bytes) -> None:
    found = _characters(data)
    assert found == characters_one_by_one(data)
    assert (found[-1] + 1 if found else 0) == len(data.decode(errors="replace"))


def test_no_tokens_have_no_spans_and_no_links() -> None:
    assert token_spans(BytesTokenizer(), []) == []
    assert links([Relation("a", (2, 3), (0, 1))], []) == []


def test_the_end_of_a_text_is_as_many_characters_as_are_shown_for_it() -> None:
    tokenizer = BytesTokenizer()
    tokens = [97, tokenizer.end_of_text, 98]
    assert token_spans(tokenizer, tokens) == [(0, 1), (1, 14), (14, 15)]
    assert decode(tokenizer, tokens)[14] == "b"


def test_a_link_goes_from_the_last_token_of_the_source_to_all_of_the_target() -> None:
    #        0       1       2       3       4        5
    spans = [(0, 2), (2, 5), (5, 6), (5, 6), (6, 10), (10, 11)]
    assert links([Relation("a", (6, 8), (0, 1))], spans) == [Link("a", 4, (0,))]
    assert links([Relation("a", (7, 11), (1, 6))], spans) == [Link("a", 5, (0, 1, 2, 3))]
    assert links([Relation("a", (5, 6), (2, 4))], spans) == [Link("a", 3, (1,))], "the last part of a character"
    assert links([Relation("a", (6, 7), (5, 6))], spans) == [Link("a", 4, (2, 3))]


def test_a_token_is_no_key_of_its_own_and_what_is_behind_the_last_token_is_left_out() -> None:
    spans = [(0, 2), (2, 5), (5, 6)]
    assert links([Relation("a", (4, 5), (2, 3))], spans) == [], "both ends in one token"
    assert links([Relation("a", (4, 5), (1, 3))], spans) == [Link("a", 1, (0,))], "what is meant begins before it"
    assert links([Relation("a", (5, 7), (0, 2))], spans) == [], "cut off"
    assert links([Relation("a", (8, 9), (6, 7))], spans) == []


def brute_force_links(relations: Sequence[Relation], spans: Sequence[Span]) -> list[Link]:
    found = []
    for relation in relations:
        (_, end), (start, stop) = relation.source, relation.target
        holders = [i for i, span in enumerate(spans) if span[0] < end <= span[1]]
        if holders:
            keys = [i for i, span in enumerate(spans) if span[0] < stop and span[1] > start and i < holders[-1]]
            found += [Link(relation.name, holders[-1], tuple(keys))] if keys else []
    return found


@each_tokenizer
def test_links_of_real_texts_are_those_found_by_looking_at_every_token(tokenizer: Tokenizer) -> None:
    for n, (text, relations) in zip(range(10), references(3), strict=False):
        if isinstance(tokenizer, CharsTokenizer):
            tokenizer = CharsTokenizer.of([text])
        tokens = tokenizer.encode(text)
        spans = token_spans(tokenizer, tokens)
        for stop in (len(spans), 20 + n):
            assert links(relations, spans[:stop]) == brute_force_links(relations, spans[:stop])
        for link, relation in zip(links(relations, spans), relations, strict=True):
            assert spans[link.query][0] < relation.source[1] <= spans[link.query][1]
            meant = decode(tokenizer, [tokens[key] for key in link.keys])
            assert text[slice(*relation.target)] in meant


def causal_softmax(scores: np.ndarray) -> np.ndarray:
    T = scores.shape[-1]
    weights = np.where(np.tri(T, dtype=bool), np.exp(scores), 0.0)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def random_links(T: int, n: int, seed: int = 0, **names: Any) -> list[Link]:
    choose = random.Random(seed)
    found = []
    for _ in range(n):
        query = choose.randrange(2, T)
        keys = sorted(choose.sample(range(query), choose.randint(1, min(3, query))))
        found.append(Link(choose.choice(["a", "b"]), query, tuple(keys)))
    return found


def test_scores_are_means_over_links_as_a_plain_loop_gives_them() -> None:
    weights = causal_softmax(np.random.default_rng(0).normal(size=(2, 3, 20, 20)))
    found = random_links(20, 30)
    scores = score_relations(weights, found)
    assert set(scores) == {"a", "b"}
    for name, score in scores.items():
        own = [link for link in found if link.name == name]
        assert score.n_links == len(own)
        for layer in range(2):
            for head in range(3):
                mass = baseline = 0.0
                for link in own:
                    expected = slow_by_distance(weights[layer, head], link.query)
                    mass += sum(float(weights[layer, head, link.query, key]) for key in link.keys)
                    baseline += sum(expected[link.query - key] for key in link.keys)
                assert score.mass[layer, head] == pytest.approx(mass / len(own))
                assert score.baseline[layer, head] == pytest.approx(baseline / len(own))
                assert score.lift[layer, head] == pytest.approx((mass - baseline) / len(own))


def slow_by_distance(weights: np.ndarray, query: int) -> list[float]:
    """The product formula, factor by factor: the slow twin."""
    T = len(weights)

    def share(d: int) -> float:
        on_it = sum(float(weights[i, i - d]) for i in range(d, T))
        return on_it / sum(float(weights[i, i - e]) for i in range(d, T) for e in range(d + 1))

    return [share(d) * math.prod(1 - share(e) for e in range(d + 1, query + 1)) for d in range(query + 1)]


def test_what_distance_explains_puts_as_much_on_each_distance_as_the_head_does() -> None:
    T = 30
    weights = causal_softmax(3 * np.random.default_rng(0).normal(size=(1, 2, T, T)))
    distances = Distances()
    distances.add(weights)
    expected = np.zeros_like(weights, dtype=np.float64)
    for i in range(T):
        expected[..., i, : i + 1] = distances.expected(i)
    np.testing.assert_allclose(expected.sum(-1), 1.0)
    for distance in range(T):
        found, given = (maps.diagonal(-distance, -2, -1).sum(-1) for maps in (expected, weights))
        np.testing.assert_allclose(found, given, rtol=1e-5)


DISTANCE_ONLY = {
    "uniform": np.zeros(40),
    "alibi": -0.3 * np.arange(40),
    "random": np.random.default_rng(0).normal(scale=3, size=40),
    "window": np.where(np.arange(40) < 7, 0.0, -np.inf),
    "previous": np.where(np.arange(40) == 1, 60.0, -np.arange(40.0)),
    "first": 10.0 * np.arange(40),
}


@pytest.mark.parametrize("kind", DISTANCE_ONLY)
def test_a_head_whose_scores_depend_on_distance_alone_has_no_lift(kind: str) -> None:
    i = np.arange(40)
    scores = DISTANCE_ONLY[kind][np.abs(i[:, None] - i)]
    weights = causal_softmax(scores - np.where(np.tri(40, dtype=bool), scores, -np.inf).max(-1, keepdims=True))
    for found in (random_links(40, 25), [Link("a", 39, (0,))], [Link("a", 1, (0,))]):
        for score in score_relations(weights[None, None], found).values():
            np.testing.assert_allclose(score.lift, 0, atol=1e-6)


@pytest.mark.parametrize("rest", ["uniform", "first"])
def test_a_head_that_follows_the_relation_has_a_lift_near_1(rest: str) -> None:
    T = 100
    choose = random.Random(0)
    found = [Link("a", query, (choose.randrange(query - 1),)) for query in range(20, T, 4)]
    weights = np.tri(T) / np.arange(1, T + 1)[:, None] if rest == "uniform" else np.eye(T)[[0] * T]
    for link in found:
        weights[link.query] = np.eye(T)[link.keys[0]]
    score = score_relations(weights[None, None].astype(np.float32), found)["a"]
    assert score.mass == 1
    assert score.lift > 0.9


def test_of_a_relation_at_one_distance_distance_explains_all() -> None:
    weights = np.eye(20, dtype=np.float32)[[max(0, i - 3) for i in range(20)]]
    score = score_relations(weights[None, None], [Link("a", i, (i - 3,)) for i in range(5, 20)])["a"]
    assert score.mass == 1
    assert abs(score.lift) < 1e-9


def test_a_relation_at_one_distance_in_each_text_but_another_in_the_next_is_not_explained_by_distance() -> None:
    tally, T = RelationTally(), 40
    for distance in (3, 7, 12, 18):
        weights = np.eye(T, dtype=np.float32)[[max(0, i - distance) for i in range(T)]]
        tally.add(weights[None, None], [Link("copy", i, (i - distance,)) for i in (20, 25, 30)])
    score = tally.scores()["copy"]
    assert score.n_links == 12
    assert score.mass == 1
    assert score.lift > 0.6


def test_the_interval_is_students_t_over_the_links() -> None:
    weights = causal_softmax(np.random.default_rng(0).normal(size=(1, 1, 20, 20)))
    found = random_links(20, 5)
    found = [Link("a", link.query, link.keys) for link in found]
    each = []
    for link in found:
        expected = slow_by_distance(weights[0, 0], link.query)
        each.append(sum(float(weights[0, 0, link.query, key]) - expected[link.query - key] for key in link.keys))
    score = score_relations(weights, found)["a"]
    assert score.half_interval == pytest.approx(2.7764 * np.std(each, ddof=1) / math.sqrt(5))
    assert np.isnan(score_relations(weights, found[:1])["a"].half_interval).all()


def test_no_links_have_no_scores() -> None:
    assert score_relations(np.ones((1, 1, 1, 1), dtype=np.float32), []) == {}
