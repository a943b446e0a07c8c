"""One draw: from the right distribution whatever the filters, and from nothing else."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import GenerationConfig
from minigpt.generation import sampling
from minigpt.generation.sampling import Candidates, Generator, apply_filters, draw

LOGITS = np.array([0.3, 2.0, -1.0, 1.1, 0.0, -3.0, 1.6, 0.9], dtype=np.float32)
SEEN = [6, 2, 6]
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": None}


def kept(logits: np.ndarray = LOGITS, seen: Sequence[int] = (), **changes: Any) -> Candidates:
    return list(apply_filters(logits, GenerationConfig(**PLAIN | changes), seen))[-1][1]


def drawn(choice: Candidates, temperature: float, n: int) -> np.ndarray:
    """How often each token is drawn in n draws of one random state."""
    generator = Generator(0)
    return np.bincount([draw(choice, temperature, generator) for _ in range(n)], minlength=len(LOGITS))


def slowly(logits: list[float], config: GenerationConfig, seen: list[int]) -> np.ndarray:
    """The exact probabilities, filter by filter, as their definitions read."""
    values = np.array(logits, dtype=np.float64)
    values[config.forbidden_tokens] = -np.inf
    for token in set(seen):
        values[token] *= 1 / config.repetition_penalty if values[token] > 0 else config.repetition_penalty
    values /= config.temperature
    shares = np.exp(values - values.max())
    if config.top_k is not None:
        shares[shares < np.sort(shares)[::-1][: config.top_k][-1]] = 0
    shares /= shares.sum()
    if config.top_p is not None:
        order = np.argsort(-shares, kind="stable")
        n = int(np.searchsorted(shares[order].cumsum(), config.top_p - 1e-12)) + 1
        shares[shares < shares[order[: min(n, len(order))]][-1]] = 0
    if config.min_p is not None:
        shares[shares < config.min_p * shares.max() * (1 - 1e-12)] = 0
    return shares / shares.sum()


COMBINATIONS = [
    dict(itertools.chain(*(part.items() for part in parts)))
    for parts in itertools.product(
        ({"temperature": 1.0}, {"temperature": 0.6}, {"temperature": 1.7}),
        ({"top_k": None}, {"top_k": 5}),
        ({}, {"top_p": 0.8}),
        ({}, {"min_p": 0.1}),
        ({}, {"repetition_penalty": 1.5, "forbidden_tokens": [3]}),
    )
]


@pytest.mark.parametrize("changes", COMBINATIONS, ids=str)
def test_draws_follow_the_exact_probabilities_of_the_filters_together(changes: dict[str, Any]) -> None:
    config, n = GenerationConfig(**PLAIN | changes), 3000
    expected = slowly(LOGITS.tolist(), config, SEEN)
    counts = drawn(kept(seen=SEEN, **changes), config.temperature, n)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_squared = np.sum((counts[possible] - n * expected[possible]) ** 2 / (n * expected[possible]))
    freedom = torch.tensor(max(1, possible.sum() - 1) / 2)
    chance = torch.special.gammaincc(freedom, torch.tensor(chi_squared / 2, dtype=freedom.dtype))
    assert chance > 1e-4


@settings(max_examples=300, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40),
    top_k=st.none() | st.integers(1, 50),
    top_p=st.none() | st.floats(0.05, 1),
    min_p=st.none() | st.floats(0, 1),
    first=st.sampled_from([1, 4, 256]),
)
def test_what_is_kept_has_the_exact_probabilities(
    logits: list[float], top_k: int | None, top_p: float | None, min_p: float | None, first: int
) -> None:
    config = GenerationConfig(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p)
    before, sampling.FIRST_SORTED = sampling.FIRST_SORTED, first
    try:
        *_, (_, left) = apply_filters(np.array(logits, dtype=np.float32), config)
    finally:
        sampling.FIRST_SORTED = before
    found = np.zeros(len(logits))
    found[left.tokens] = np.exp(left.logits - left.logits.max())
    found /= found.sum()
    expected = slowly([float(np.float32(x)) for x in logits], config, [])
    # Where rounding decides whether a token is in, what is left may differ by that token.
    if ((found > 0) == (expected > 0)).all():
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    else:
        n_equal = len(logits) - len({np.exp(x - max(logits)) for x in logits})
        assert abs((found > 0).sum() - (expected > 0).sum()) <= n_equal + 1


def test_temperature_zero_takes_the_likeliest_token_and_draws_nothing() -> None:
    generator = Generator(0)
    assert draw(kept(temperature=0.0), 0.0, generator) == 1
    assert draw(kept(temperature=0.0, forbidden_tokens=[1]), 0.0, generator) == 6
    assert generator.uniform() == Generator(0).uniform()


@pytest.mark.parametrize(
    "seed", [0, 1, 1337, 5489, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63 - 1, -1, -(2**63)]
)
def test_a_seed_gives_the_numbers_of_torchs_generator(seed: int) -> None:
    ours, theirs = Generator(seed), torch.Generator().manual_seed(seed)
    for _ in range(700):  # more than the 624 words of its state
        assert ours.uniform() == torch.rand(1, generator=theirs, dtype=torch.float64).item()


def test_a_very_low_temperature_takes_the_likeliest_token_without_overflow() -> None:
    assert drawn(kept(temperature=1e-30), 1e-30, 50)[1] == 50


def test_repetitions_are_avoided_once_however_often_they_came() -> None:
    found = kept(seen=[1, 1, 2, 4], repetition_penalty=2.0)
    assert found.logits.tolist() == pytest.approx([0.3, 1.0, -2.0, 1.1, 0.0, -3.0, 1.6, 0.9])


@pytest.mark.parametrize("top_k", [8, 9, 1000])
def test_a_top_k_beyond_the_vocabulary_keeps_all(top_k: int) -> None:
    assert kept(top_k=top_k).tokens.tolist() == list(range(8))


@pytest.mark.parametrize("digits", [0, 6])  # with many equal logits, and with few
@pytest.mark.parametrize(("V", "top_k"), [(1280, 10), (1281, 10), (9999, 50), (128, 1)])
def test_top_k_keeps_the_same_of_a_large_vocabulary_whether_or_not_it_is_sifted_first(
    V: int, top_k: int, digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(V).normal(size=V).round(digits)
    sifted = kept(logits, top_k=top_k)
    monkeypatch.setattr(sampling, "SIFTED_FROM", V + 1)
    assert sifted.tokens.tolist() == kept(logits, top_k=top_k).tokens.tolist()
    assert len(sifted.tokens) >= top_k


def test_equal_logits_at_the_edge_of_top_k_are_all_kept() -> None:
    assert kept(np.array([1.0, 1.0, 1.0, 0.0]), top_k=2).tokens.tolist() == [0, 1, 2]


def test_only_permitted_tokens_are_left_to_the_filters() -> None:
    permitted = np.arange(8) > 3
    stages = dict(apply_filters(LOGITS, GenerationConfig(**PLAIN | {"top_k": 2}), permitted=permitted))
    assert [choice.tokens.tolist() for choice in stages.values()] == [[4, 5, 6, 7], [6, 7]]


def test_a_token_of_no_probability_is_never_drawn() -> None:
    for place in range(3):
        logits = np.zeros(3)
        logits[place] = -np.inf
        assert drawn(Candidates(np.arange(3), logits), 1.0, 300)[place] == 0


@pytest.mark.parametrize("height", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("place", [0, 2])
def test_the_ends_of_the_unit_interval_are_tokens_that_may_be_drawn(
    height: float, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.array([0.1, 0.2, 0.3])
    logits[place] = -np.inf
    monkeypatch.setattr(Generator, "uniform", lambda self: height)
    assert draw(Candidates(np.arange(3), logits), 1.0, Generator(0)) in {0, 1, 2} - {place}


def test_the_logits_are_left_as_they_were() -> None:
    logits = LOGITS.copy()
    settings: dict[str, Any] = {"top_k": 2, "top_p": 0.5, "repetition_penalty": 2.0, "forbidden_tokens": [1]}
    list(apply_filters(logits, GenerationConfig(**settings), [1, 2]))
    assert np.array_equal(logits, LOGITS)
