"""Kernel regression, Hopfield networks and lookups, as the textbooks and papers state them, got from attention."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from study_files import study_file
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model.variants.similarities import Gaussian, Hard, Linear, ScaledDot, Similarity, Uniform

REGRESSION, HOPFIELD, LOOKUP = study_file("kernel-regression"), study_file("hopfield"), study_file("soft-lookup")
regress, leave_one_out_error, fit_width = REGRESSION.regress, REGRESSION.leave_one_out_error, REGRESSION.fit_width
gaussian, noisy_samples, error_of_the_curve = REGRESSION.gaussian, REGRESSION.samples, REGRESSION.error_of_the_curve
retrieve, spins, hopfield_energy = HOPFIELD.retrieve, HOPFIELD.spins, HOPFIELD.hopfield_energy
random_patterns = HOPFIELD.random_patterns


def share_right(similarity: Similarity, **settings: int) -> float:
    """Of look-ups, after learning to look up."""
    return LOOKUP.train_lookup(similarity, **settings)[0]


@pytest.mark.parametrize("width", [0.05, 0.3, 1.0, 10.0])
def test_a_prediction_is_the_average_of_the_values_weighted_by_a_gaussian_of_the_distance(width: float) -> None:
    x_train, y_train = noisy_samples(0)
    kernel = gaussian(width)
    exact = kernel.log_width.double().exp().item()  # the width as its parameter, of 32 bits, holds it
    for x in (0.0, 1.7, 5.0):
        weights = [math.exp(-((x - x_s) ** 2) / (2 * exact**2)) for x_s in x_train.tolist()]
        expected = sum(w * y for w, y in zip(weights, y_train.tolist(), strict=True)) / sum(weights)
        assert regress(torch.tensor([x]), x_train, y_train, kernel).item() == pytest.approx(expected, rel=1e-5)


def test_average_pooling_predicts_the_mean_of_the_values_everywhere() -> None:
    x_train, y_train = noisy_samples(0)
    torch.testing.assert_close(regress(torch.arange(7.0), x_train, y_train, Uniform()), y_train.mean().expand(7))


def test_a_very_narrow_kernel_predicts_the_value_of_the_nearest_point() -> None:
    x_train, y_train = noisy_samples(0)
    x = torch.linspace(0, 5, 40, dtype=torch.float64)
    nearest = (x[:, None] - x_train).abs().argmin(dim=1)
    torch.testing.assert_close(regress(x, x_train, y_train, gaussian(1e-4)), y_train[nearest])


def test_predictions_do_not_depend_on_where_zero_is() -> None:
    x_train, y_train = noisy_samples(0)
    x = torch.linspace(0, 5, 40, dtype=torch.float64)
    here = regress(x, x_train, y_train, gaussian(0.3))
    torch.testing.assert_close(regress(x + 2000, x_train + 2000, y_train, gaussian(0.3)), here, atol=1e-6, rtol=0)


def test_leaving_one_out_is_predicting_each_point_from_a_training_set_without_it() -> None:
    x_train, y_train = noisy_samples(0, n=12)
    rest = [torch.arange(12) != s for s in range(12)]
    predicted = [regress(x_train[s : s + 1], x_train[rest[s]], y_train[rest[s]], gaussian(0.3)) for s in range(12)]
    expected = (torch.cat(predicted) - y_train).square().mean()
    torch.testing.assert_close(leave_one_out_error(x_train, y_train, gaussian(0.3)), expected)


@pytest.mark.parametrize("seed", range(10))
def test_a_fixed_kernel_beats_the_average_and_a_learned_width_beats_both(seed: int) -> None:
    x_train, y_train = noisy_samples(seed)
    kernels = Uniform(), gaussian(1.0), fit_width(x_train, y_train)
    average, fixed, learned = (error_of_the_curve(kernel, x_train, y_train) for kernel in kernels)
    assert learned < fixed < average


@pytest.mark.parametrize("seed", range(10))
def test_no_width_near_the_learned_one_has_a_smaller_leave_one_out_error(seed: int) -> None:
    x_train, y_train = noisy_samples(seed)
    learned = fit_width(x_train, y_train)
    width, error = learned.log_width.exp().item(), leave_one_out_error(x_train, y_train, learned)
    assert error <= leave_one_out_error(x_train, y_train, gaussian(width * 0.99))
    assert error <= leave_one_out_error(x_train, y_train, gaussian(width * 1.01))


def test_the_learned_width_has_the_unit_of_the_points() -> None:
    metres, y_train = noisy_samples(0)
    in_millimetres = fit_width(1000 * metres, y_train).log_width.exp()
    torch.testing.assert_close(in_millimetres, 1000 * fit_width(metres, y_train).log_width.exp(), rtol=1e-3, atol=0)


def test_points_that_are_all_the_same_have_no_width() -> None:
    with pytest.raises(UserError, match="width=0.0: must be above 0"):
        fit_width(torch.ones(5), torch.arange(5.0))


def masked(patterns: Tensor) -> Tensor:
    """The patterns with their second half unknown."""
    half = patterns.shape[1] // 2
    return torch.cat([patterns[:, :half], torch.zeros_like(patterns[:, half:])], dim=1)


def share_of_wrong_bits(retrieved: Tensor, patterns: Tensor) -> float:
    return (retrieved.sign() != patterns).double().mean().item()


def retrieval_error(patterns: Tensor, beta: float) -> float:
    """Mean squared error of one step from half a pattern, per entry: 1 for knowing nothing, 0 for the pattern."""
    return (retrieve(masked(patterns), patterns, beta) - patterns).square().mean().item()


@pytest.mark.parametrize("seed", range(3))
def test_500_patterns_in_64_dimensions_are_retrieved_from_their_halves_in_one_step(seed: int) -> None:
    patterns = random_patterns(500, 64, seed)
    torch.testing.assert_close(retrieve(masked(patterns), patterns, beta=2.0), patterns, atol=1e-3, rtol=0)


def test_patterns_are_retrieved_from_noise_as_large_as_themselves() -> None:
    patterns = random_patterns(500, 64)
    noise = torch.randn(500, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    retrieved = retrieve(patterns + noise, patterns, beta=2.0)
    assert share_of_wrong_bits(patterns + noise, patterns) > 0.1
    assert share_of_wrong_bits(retrieved, patterns) < 0.001


def test_the_classical_network_holds_0_138_patterns_per_dimension_and_this_one_far_more() -> None:
    few, many = random_patterns(4, 64), random_patterns(500, 64)  # 0.138 * 64 = 8.8
    assert share_of_wrong_bits(spins(masked(few), few), few) < 0.05
    assert share_of_wrong_bits(spins(masked(many), many), many) > 0.2
    assert share_of_wrong_bits(retrieve(masked(many), many, beta=2.0), many) == 0


def test_the_error_of_retrieval_falls_with_beta_from_the_average_of_all_patterns_to_the_pattern() -> None:
    patterns = random_patterns(500, 64)
    errors = [retrieval_error(patterns, 2.0**exponent) for exponent in range(-10, 5)]
    assert all(later <= earlier for earlier, later in pairwise(errors))
    assert errors[0] > 0.95
    assert errors[-1] < 1e-6
    average = patterns.mean(dim=0).expand_as(patterns)
    torch.testing.assert_close(retrieve(masked(patterns), patterns, beta=1e-9), average)


def test_between_them_similar_patterns_are_averaged() -> None:
    """The three fixed points of Ramsauer et al. (2021, section 2): of all patterns, of a group, and of one."""
    groups = torch.eye(3, 32, dtype=torch.float64).repeat_interleave(4, dim=0) * 4  # 3 groups of 4
    patterns = groups + torch.eye(12, 32, dtype=torch.float64).roll(3, dims=1)  # who differ in one entry each
    mean_of_group = patterns.view(3, 4, 32).mean(dim=1).repeat_interleave(4, dim=0)
    mean_of_all = patterns.mean(dim=0).expand_as(patterns)
    for beta, expected in ((0.01, mean_of_all), (1.0, mean_of_group), (50.0, patterns)):
        torch.testing.assert_close(retrieve(patterns, patterns, beta, steps=100), expected, atol=1e-3, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    S=st.integers(1, 40),
    D=st.integers(1, 20),
    log_beta=st.floats(math.log(0.01), math.log(30)),
)
def test_no_step_raises_the_energy(seed: int, S: int, D: int, log_beta: float) -> None:
    beta, generator = math.exp(log_beta), torch.Generator().manual_seed(seed)
    patterns = torch.randn(S, D, generator=generator, dtype=torch.float64)
    path = [3 * torch.randn(5, D, generator=generator, dtype=torch.float64)]
    for _ in range(6):
        path.append(retrieve(path[-1], patterns, beta))
    energies = torch.stack([hopfield_energy(query, patterns, beta) for query in path])
    rounding = 1e-13 * (energies.max().item() + 1 / beta)
    assert (energies.diff(dim=0) <= rounding).all()
    assert (energies >= -rounding).all()
    longest = patterns.norm(dim=1).max()  # after a step the query is an average of patterns, so no longer than these
    assert (energies[1:] <= 2 * longest**2 + rounding).all()
    torch.testing.assert_close(path[-1], retrieve(path[0], patterns, beta, steps=6))


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_attention_is_a_step_down_the_gradient_of_the_energy(beta: float) -> None:
    patterns = random_patterns(20, 8)
    query = torch.randn(6, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(hopfield_energy(query, patterns, beta).sum(), query)
    torch.testing.assert_close(query - gradient, retrieve(query, patterns, beta))


def test_the_energy_of_one_pattern_is_half_its_squared_distance() -> None:
    pattern, query = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0], [1.0, 2.0]])
    torch.testing.assert_close(hopfield_energy(query, pattern, beta=3.0), torch.tensor([12.5, 0.0]))


@pytest.mark.parametrize(
    "similarity", [ScaledDot(), Hard(), Hard(sampled=True)], ids=["soft", "hard best", "hard sampled"]
)
def test_soft_and_hard_attention_both_learn_to_look_up(similarity: Similarity) -> None:
    assert share_right(similarity, steps=0) < 0.4
    assert share_right(similarity) > 0.99


def test_a_hard_choice_without_straight_through_learns_nothing() -> None:
    class Honest(Hard):
        def choose(self, scores: Tensor) -> Tensor:
            return super().choose(scores).detach()

    assert share_right(Honest()) < 0.3


def test_without_a_softmax_attention_looks_up_worse_and_without_a_similarity_not_at_all() -> None:
    assert 0.6 < share_right(Linear()) < 0.9
    assert share_right(Uniform()) < 0.4


def test_a_lookup_leaves_the_similarity_and_the_random_numbers_as_they_were() -> None:
    kernel, state = Gaussian(1, 1.0), torch.get_rng_state()
    assert share_right(kernel, steps=20) == share_right(kernel, steps=20)
    assert kernel.log_width.item() == 0.0
    assert torch.equal(torch.get_rng_state(), state)
