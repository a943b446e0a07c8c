"""One draw: from the right distribution, and from nothing else."""

import numpy as np
import pytest
import torch

from minigpt.generation.sampling import next_token

LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.0, -3.0])


def draws(n: int, logits: torch.Tensor = LOGITS, **options: object) -> np.ndarray:
    """How often each token is drawn in n draws."""
    generator = torch.Generator().manual_seed(0)
    settings = {"temperature": 1.0, "top_k": None, "generator": generator} | options
    return np.bincount([next_token(logits, **settings) for _ in range(n)], minlength=len(logits))  # type: ignore[arg-type]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_of_logits_over_temperature(temperature: float) -> None:
    n = 4000
    expected = n * softmax(LOGITS.numpy() / temperature)
    chi_squared = np.sum((draws(n, temperature=temperature) - expected) ** 2 / expected)
    assert chi_squared < 20.5  # one in a thousand for 5 degrees of freedom


def test_temperature_zero_takes_the_likeliest_token_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert next_token(LOGITS, temperature=0, top_k=None, generator=generator) == 1
    assert torch.equal(generator.get_state(), before)


def test_a_very_low_temperature_takes_the_likeliest_token_without_overflow() -> None:
    assert draws(50, temperature=1e-30)[1] == 50


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_top_k_draws_among_the_k_likeliest_and_all_of_them(top_k: int) -> None:
    drawn = set(np.flatnonzero(draws(2000, top_k=top_k, temperature=3.0)))
    assert drawn == set(np.argsort(-LOGITS.numpy())[:top_k])


def test_top_k_keeps_the_proportions_of_what_is_left() -> None:
    n = 4000
    kept = softmax(LOGITS.numpy()[[1, 3]])
    counts = draws(n, top_k=2)[[1, 3]]
    assert np.sum((counts - n * kept) ** 2 / (n * kept)) < 10.8  # one in a thousand for 1 degree of freedom


@pytest.mark.parametrize("top_k", [6, 7, 1000, None])
def test_a_top_k_beyond_the_vocabulary_keeps_all(top_k: int | None) -> None:
    assert draws(300, top_k=top_k).tolist() == draws(300).tolist()


def test_equal_logits_at_the_edge_of_top_k_are_all_kept() -> None:
    drawn = np.flatnonzero(draws(300, torch.tensor([1.0, 1.0, 1.0, 0.0]), top_k=2))
    assert drawn.tolist() == [0, 1, 2]


def test_a_token_of_no_probability_is_never_drawn() -> None:
    assert draws(300, torch.tensor([0.0, float("-inf"), 0.0]))[1] == 0


def test_the_logits_are_left_as_they_were() -> None:
    logits = LOGITS.clone()
    draws(1, logits, top_k=2, temperature=0.5)
    assert torch.equal(logits, LOGITS)


def test_half_precision_logits_are_drawn_from_as_they_are() -> None:
    assert draws(50, LOGITS.bfloat16(), top_k=1)[1] == 50
