"""Statistics of heads: what is known on paper comes out, all at once or in chunks of queries."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minigpt.inspection import statistics
from minigpt.inspection.statistics import Statistic

T = 12
R = 5
"""Length of a copy in the probe [first] + r + r, which has 2 R + 1 tokens."""


def uniform(n: int = T) -> Tensor:
    return torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]


def at_distance(distance: int, n: int = T) -> Tensor:
    """Each token looks at the one so far before it, or at the first where there is none."""
    rows = torch.arange(n)
    return torch.eye(n)[(rows - distance).clamp(min=0)]


def first(n: int = T) -> Tensor:
    return torch.eye(n)[[0] * n]


def random_weights(*shape: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    scores = sharpness * torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(shape[-1], shape[-1]).triu(1).bool(), -math.inf).softmax(-1)


def rows_of(statistic: Statistic, weights: Tensor) -> Tensor:
    return statistic(weights, torch.arange(weights.shape[-2]))


STATISTICS: dict[str, Statistic] = {
    "entropy": statistics.entropy,
    "previous_token": statistics.previous_token,
    "current_token": statistics.current_token,
    "first_token": statistics.first_token,
    "mean_distance": statistics.mean_distance,
    "near_zero": statistics.near_zero,
    "keys_for_mass": statistics.keys_for_mass(0.9),
    "duplicate_token": statistics.duplicate_token(R, first=1),
    "induction": statistics.induction(R, first=1),
}
each = pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS.keys())

KNOWN: dict[str, dict[str, Callable[[int], float]]] = {
    "entropy": {"uniform": lambda i: 1, "self": lambda i: 0, "previous": lambda i: 0, "first": lambda i: 0},
    "previous_token": {
        "uniform": lambda i: 1 / (i + 1),
        "self": lambda i: 0,
        "previous": lambda i: 1,
        "first": lambda i: i == 1,
    },
    "current_token": {
        "uniform": lambda i: 1 / (i + 1),
        "self": lambda i: 1,
        "previous": lambda i: 0,
        "first": lambda i: 0,
    },
    "first_token": {
        "uniform": lambda i: 1 / (i + 1),
        "self": lambda i: 0,
        "previous": lambda i: i == 1,
        "first": lambda i: 1,
    },
    "mean_distance": {
        "uniform": lambda i: i / 2,
        "self": lambda i: 0,
        "previous": lambda i: 1,
        "first": lambda i: i,
    },
    "near_zero": {
        "uniform": lambda i: 0,
        "self": lambda i: i / (i + 1),
        "previous": lambda i: i / (i + 1),
        "first": lambda i: i / (i + 1),
    },
    "keys_for_mass": {
        "uniform": lambda i: math.ceil(0.9 * (i + 1) - 1e-9),
        "self": lambda i: 1,
        "previous": lambda i: 1,
        "first": lambda i: 1,
    },
}
"""What each pattern gives for the query at position i > 0."""
PATTERNS = {"uniform": uniform(), "self": at_distance(0), "previous": at_distance(1), "first": first()}


@pytest.mark.parametrize(("name", "pattern"), [(name, pattern) for name in KNOWN for pattern in PATTERNS])
def test_patterns_give_what_is_known_on_paper(name: str, pattern: str) -> None:
    values = rows_of(STATISTICS[name], PATTERNS[pattern])
    assert values[0].isnan(), "the first token has no choice"
    expected = torch.tensor([float(KNOWN[name][pattern](i)) for i in range(1, T)])
    torch.testing.assert_close(values[1:], expected, check_dtype=False)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_perfect_induction_head_scores_1_in_the_second_copy_and_nothing_is_said_of_the_rest(start: int) -> None:
    n = start + 2 * R + 2  # two tokens follow the copies
    induces, repeats = at_distance(R - 1, n), at_distance(R, n)
    of_induction = rows_of(statistics.induction(R, start), torch.stack([induces, repeats]))
    of_duplicates = rows_of(statistics.duplicate_token(R, start), torch.stack([repeats, induces]))
    second = torch.zeros(n, dtype=torch.bool)
    second[start + R : start + 2 * R] = True
    for values in (of_induction, of_duplicates):
        assert (values[0, second] == 1).all()
        assert (values[1, second] == 0).all()
        assert values[:, ~second].isnan().all()


def test_the_induction_score_reads_the_token_that_came_next_in_a_real_repeated_text() -> None:
    tokens = [99, *range(R), *range(R)]
    weights = torch.zeros(len(tokens), len(tokens))
    weights[:, 0] = 1.0
    for i in range(1 + R, len(tokens)):  # looks for its own token among those before, and takes the one behind it
        weights[i] = torch.eye(len(tokens))[tokens.index(tokens[i]) + 1]
    assert rows_of(statistics.induction(R, first=1), weights).nanmean() == 1
    assert rows_of(statistics.duplicate_token(R, first=1), weights).nanmean() == 0


@each
def test_chunks_of_queries_give_what_the_whole_map_gives(statistic: Statistic) -> None:
    weights = random_weights(2, 3, 2 * R + 1)
    whole = rows_of(statistic, weights)
    assert whole.shape == (2, 3, 2 * R + 1)
    for size in (1, 4):
        queries = torch.arange(2 * R + 1).split(size)
        chunks = [statistic(weights[:, :, chunk], chunk) for chunk in queries]
        torch.testing.assert_close(torch.cat(chunks, dim=-1), whole, equal_nan=True)


@each
def test_each_map_of_a_batch_is_judged_by_itself(statistic: Statistic) -> None:
    weights = random_weights(2, 3, 2 * R + 1)
    whole = rows_of(statistic, weights)
    for b in range(2):
        for h in range(3):
            torch.testing.assert_close(rows_of(statistic, weights[b, h]), whole[b, h], equal_nan=True)


@pytest.mark.parametrize("name", STATISTICS)
def test_only_the_first_token_or_all_before_the_second_copy_are_without_a_value(name: str) -> None:
    values = rows_of(STATISTICS[name], random_weights(2, 2 * R + 1))
    without = range(R + 1) if name in {"induction", "duplicate_token"} else range(1)
    assert values.isnan().tolist() == [[i in without for i in range(2 * R + 1)]] * 2


@given(st.integers(2, 20), st.floats(0, 30), st.integers(0, 2**31))
def test_values_stay_in_their_range(n: int, sharpness: float, seed: int) -> None:
    weights = random_weights(2, n, seed=seed, sharpness=sharpness)
    i = torch.arange(1, n)
    upper: dict[str, Tensor | float] = {"mean_distance": i, "keys_for_mass": i + 1, "near_zero": i / (i + 1)}
    for name, statistic in STATISTICS.items():
        values = rows_of(statistic, weights)[:, 1:]
        inside = (values >= -1e-6) & (values <= upper.get(name, 1.0) + 1e-5)
        assert (inside | values.isnan()).all(), name
    keys = rows_of(statistics.keys_for_mass(0.9), weights)[:, 1:]
    assert (keys >= 1).all()
    assert (keys == keys.round()).all()


@given(st.integers(1, 20), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_so_many_keys_hold_the_mass_and_one_fewer_does_not(n: int, mass: float, seed: int) -> None:
    weights = random_weights(n, seed=seed)[-1].double()
    weights /= weights.sum()
    if n == 1:
        return
    n_keys = int(statistics.keys_for_mass(mass)(weights[None], torch.tensor([n - 1])))
    largest = weights.sort(descending=True).values
    assert largest[:n_keys].sum() >= mass - 2e-6
    assert largest[: n_keys - 1].sum() < mass


@pytest.mark.parametrize("n", [10, 1000, 5000])
def test_equal_shares_need_as_many_keys_as_their_share_says(n: int) -> None:
    weights = torch.full((1, n), 1 / n)
    for tenths in range(1, 11):
        assert statistics.keys_for_mass(tenths / 10)(weights, torch.tensor([n - 1])) == tenths * n // 10


def test_a_key_counts_as_near_zero_below_a_hundredth_of_an_even_share() -> None:
    weights = torch.tensor([[0.0099 / 4, 0.0101 / 4, 0.0, 1 - 0.02 / 4, 0.0]])
    assert statistics.near_zero(weights, torch.tensor([3])) == 2 / 4


def test_the_sink_rate_is_the_share_of_heads_above_the_threshold() -> None:
    scores = torch.tensor([[0.1, 0.31, 0.29], [0.9, 0.3, 0.0]])
    assert statistics.sink_rate(scores) == pytest.approx(2 / 6)
    assert statistics.sink_rate(scores, threshold=0.05) == pytest.approx(5 / 6)


def test_heads_are_redundant_as_far_as_another_does_the_same() -> None:
    weights = torch.stack([at_distance(0), at_distance(1), at_distance(0)])[None].repeat(2, 1, 1, 1)
    torch.testing.assert_close(statistics.redundancy(weights), torch.tensor([1.0, 0.0, 1.0]))


def test_redundancy_takes_the_closest_head_and_averages_over_texts() -> None:
    half = (at_distance(0) + at_distance(1)) / 2
    # |p - (p + q) / 2|: the entropies of (3/4, 1/4), (1) and (1/2, 1/2), in bits
    divergence = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    one_text = torch.stack([at_distance(0), half, at_distance(3)])
    other = torch.stack([at_distance(0), at_distance(0), at_distance(3)])
    near = statistics.redundancy(torch.stack([one_text, other]))[:2]
    torch.testing.assert_close(near, torch.full((2,), 1 - divergence / 2))


@given(st.integers(0, 2**31))
def test_redundancy_lies_between_0_and_1(seed: int) -> None:
    values = statistics.redundancy(random_weights(2, 3, 7, seed=seed))
    assert ((values >= 0) & (values <= 1)).all()


def test_a_single_head_and_a_single_token_have_no_redundancy() -> None:
    assert statistics.redundancy(uniform()[None, None]).isnan().all()
    assert statistics.redundancy(torch.ones(1, 2, 1, 1)).isnan().all()
