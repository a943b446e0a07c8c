"""Orders worked out on the spot: each item once, by chance to any test's eye; and mixtures of exactly their shares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data.order import MIXTURE_BLOCK, Mixture, hashed, shuffled
from minigpt.errors import UserError


def surprise(counts: np.ndarray, expected: float) -> float:
    """Chi-square of counts that should be equal, as a standard normal number (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * (counts.size - 1))
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return float(((chi_square / (counts.size - 1)) ** (1 / 3) - (1 - spread)) / spread**0.5)


def orders(n: int, n_orders: int) -> np.ndarray:
    """(n_orders, n): whole orders of as many keys."""
    keys = hashed(5, np.arange(n_orders))
    return shuffled(np.tile(np.arange(n), n_orders), n, np.repeat(keys, n)).reshape(n_orders, n)


def mixture(*weights: float, seed: int = 1) -> Mixture:
    return Mixture([f"source {i}" for i in range(len(weights))], weights, hashed(seed))


def test_mixed_numbers_are_those_of_splitmix64() -> None:
    assert hashed(0).tolist() == [0xE220A8397B1DCDAF]  # the published generator's first output for seed 0


def test_mixed_numbers_depend_on_every_number_and_on_their_order() -> None:
    keys = [hashed(*numbers) for numbers in [(1, 2), (2, 1), (1, 3), (0, 1, 2), (1, 2, 0), (1,), (2**31, 2)]]
    assert len({int(key[0]) for key in keys}) == len(keys)
    assert hashed(1, np.arange(5))[3] == hashed(1, 3)[0]


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**31))
def test_a_shuffled_order_has_each_item_once(n: int, seed: int) -> None:
    assert np.array_equal(np.sort(shuffled(np.arange(n), n, hashed(seed))), np.arange(n))


@pytest.mark.parametrize("n", [2**20 + 1, 2**32, 2**49 - 1, (2**25 - 1) ** 2 + 1, 2**50])
def test_an_order_of_very_many_items_repeats_none_and_stays_in_range(n: int) -> None:
    positions = np.concatenate([np.arange(20_000), np.arange(n - 20_000, n)])
    items = shuffled(positions, n, hashed(3))
    assert len(np.unique(items)) == len(items)
    assert 0 <= items.min() < n // 1000
    assert n - n // 1000 < items.max() < n


def test_lengths_and_keys_may_differ_from_place_to_place() -> None:
    n, keys = np.array([1, 5, 1000, 7, 10**12]), hashed(2, np.arange(5))
    alone = [int(shuffled(np.array([i % n[i]]), int(n[i]), keys[i : i + 1])[0]) for i in range(5)]
    assert shuffled(np.arange(5) % n, n, keys).tolist() == alone


def test_every_key_gives_another_order() -> None:
    assert len({tuple(order) for order in orders(30, 1000)}) == 1000


def test_an_order_stays_what_it_was() -> None:
    """A run that was stopped goes on with the same batches under any version of numpy."""
    assert shuffled(np.arange(10), 10, hashed(1)).tolist() == [9, 6, 7, 1, 0, 5, 8, 4, 3, 2]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 10, 16, 17, 30, 100])
def test_each_item_is_equally_likely_at_each_place(n: int) -> None:
    counts = np.stack([np.bincount(column, minlength=n) for column in orders(n, 20_000).T])
    assert surprise(counts[0], 20_000 / n) < 4
    assert surprise(counts, 20_000 / n) < 4


@pytest.mark.parametrize("n", [3, 4, 5, 7, 10, 16, 17, 30])
def test_any_two_items_are_equally_likely_at_any_two_places(n: int) -> None:
    order = orders(n, 20_000)
    for place, other in [(0, 1), (0, n - 1), (n // 2, n // 2 + 1), (0, -(-n // 4))]:
        pairs = np.bincount(order[:, place] * n + order[:, other], minlength=n * n)
        different = np.delete(pairs, np.arange(n) * (n + 1))
        assert different.sum() == 20_000
        assert surprise(different, 20_000 / different.size) < 4


@pytest.mark.parametrize("n", [16, 17, 30, 100])  # in shorter orders one step tells too much of the next
def test_the_step_from_place_to_place_is_equally_likely_to_be_any(n: int) -> None:
    order = orders(n, 20_000)
    for lag in (1, 2, 4, 5, 6, 10):
        steps = (order[:, lag:] - order[:, :-lag]).ravel() % n
        assert surprise(np.bincount(steps, minlength=n)[1:], steps.size / (n - 1)) < 4


@pytest.mark.parametrize("lag", [1, 2, 3, 999, 1000, 1001])  # 1000 is the width of the square behind the order
def test_neighbours_in_a_long_order_know_nothing_of_each_other(lag: int) -> None:
    n = 10**6
    order = shuffled(np.arange(n), n, hashed(11))
    assert abs(np.corrcoef(order[lag:], order[:-lag])[0, 1]) < 4 / n**0.5
    differences = (order[lag:] - order[:-lag]) % n
    assert surprise(np.bincount(differences // 1000, minlength=1000), len(differences) / 1000) < 4
    pairs = order[lag:] // 20_000 * 50 + order[:-lag] // 20_000
    assert surprise(np.bincount(pairs, minlength=2500), len(pairs) / 2500) < 4


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=9), seed=st.integers(0, 2**31))
def test_every_block_has_exactly_the_shares_rounded_to_a_thousandth(weights: list[float], seed: int) -> None:
    mix = mixture(*weights, seed=seed)
    assert np.abs(mix.quotas / MIXTURE_BLOCK - np.array(weights) / sum(weights)).max() < 1 / MIXTURE_BLOCK
    for block in (0, 1, 10**9):
        sources, _ = mix.pick(block * MIXTURE_BLOCK, (block + 1) * MIXTURE_BLOCK)
        assert np.bincount(sources, minlength=len(weights)).tolist() == mix.quotas.tolist()


def test_the_largest_remainders_are_rounded_up() -> None:
    assert mixture(1, 1, 1).quotas.tolist() == [334, 333, 333]
    assert mixture(0.2, 0.7, 0.1).quotas.tolist() == [200, 700, 100]
    assert mixture(99.84, 0.16).quotas.tolist() == [998, 2]
    assert mixture(5).quotas.tolist() == [1000]


def test_an_item_knows_how_many_of_its_source_came_before() -> None:
    sources, counts = mixture(5, 3, 2).pick(0, 3 * MIXTURE_BLOCK)
    for source in range(3):
        assert np.array_equal(counts[sources == source], np.arange((sources == source).sum()))


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 5000), length=st.integers(1, 2500))
def test_any_part_of_a_mixture_is_the_same_alone(start: int, length: int) -> None:
    whole, part = mixture(2, 1).pick(0, 8000), mixture(2, 1).pick(start, start + length)
    for column, chunk in zip(whole, part, strict=True):
        assert np.array_equal(chunk, column[start : start + length])


def test_sources_are_mixed_within_a_block_and_in_another_order_in_the_next_and_for_another_seed() -> None:
    sources, _ = mixture(1, 1).pick(0, 2 * MIXTURE_BLOCK)
    changes = (np.diff(sources[:MIXTURE_BLOCK]) != 0).sum()
    assert abs(changes - MIXTURE_BLOCK / 2) < 4 * MIXTURE_BLOCK**0.5 / 2
    assert not np.array_equal(sources[:MIXTURE_BLOCK], sources[MIXTURE_BLOCK:])
    assert not np.array_equal(sources, mixture(1, 1, seed=2).pick(0, 2 * MIXTURE_BLOCK)[0])


def test_a_share_below_a_thousandth_is_refused_by_name() -> None:
    assert mixture(999, 1).quotas.tolist() == [999, 1]
    with pytest.raises(UserError, match=r"source 1 would be 0\.0001 of the whole, and the smallest .* is 1/1000"):
        mixture(0.9999, 0.0001)
