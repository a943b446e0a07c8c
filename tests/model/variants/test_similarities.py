"""What each similarity says of single queries and keys, and what it learns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.model.attention import Attention
from minigpt.model.gpt import make_norm
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Causal, Full
from minigpt.model.variants.similarities import (
    SIMILARITIES,
    Cosine,
    Gaussian,
    Hard,
    Hopfield,
    Linear,
    ScaledDot,
    Similarity,
    Symmetric,
    Uniform,
)

H, T, D = 4, 6, 5
POSITIONS: dict[str, Any] = {"uniform": {"position": "none"}}
"""Settings that a similarity needs besides."""


def random_heads(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, H, T, D, generator=generator, dtype=torch.float64) for _ in range(3))
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def full_weights(query: Tensor, key: Tensor, similarity: Similarity) -> Tensor:
    return attention_weights(query, key, similarity=similarity.double(), graph=Full())


def score_matrix(query: Tensor, key: Tensor, similarity: Similarity) -> Tensor:
    factors = similarity.double().score_factors(query, key)
    products = factors.query @ factors.key.mT * factors.scale
    return products if factors.key_bias is None else products + factors.key_bias[:, :, None]


def made_from(**settings: Any) -> Any:
    return SIMILARITIES[settings["similarity"]](GPTConfig(n_head=H, n_embd=16 * H, **settings))


def test_the_settings_of_the_config_arrive() -> None:
    assert made_from(similarity="scaled_dot", softmax_temperature=0.5).temperature == 0.5
    assert made_from(similarity="symmetric", softmax_temperature=0.5).temperature == 0.5
    hopfield = made_from(similarity="hopfield", hopfield_beta=2.0, hopfield_steps=3)
    assert (hopfield.beta, hopfield.steps) == (2.0, 3)
    hard = made_from(similarity="hard", softmax_temperature=3.0, hard_choice="sampled")
    assert (hard.temperature, hard.sampled) == (3.0, True)
    assert not made_from(similarity="hard").sampled
    gaussian, cosine = made_from(similarity="gaussian"), made_from(similarity="cosine")
    torch.testing.assert_close(gaussian.log_width.exp(), torch.full((H,), 2.0))  # 16 ** (1 / 4)
    torch.testing.assert_close(cosine.log_temperature.exp(), torch.full((H,), 0.1))


def test_what_is_learned_is_a_number_for_each_head_of_cosine_and_gaussian_and_nothing_else() -> None:
    learned = {
        name: [(n, tuple(p.shape)) for n, p in made_from(similarity=name, **POSITIONS.get(name, {})).named_parameters()]
        for name in SIMILARITIES
    }
    assert {name: shapes for name, shapes in learned.items() if shapes} == {
        "cosine": [("log_temperature", (H,))],
        "gaussian": [("log_width", (H,))],
    }


@pytest.mark.parametrize("similarity", [Cosine(H), Gaussian(H, 1.5)], ids=lambda x: x.name)
def test_every_head_learns_from_its_own_result_alone(similarity: Similarity) -> None:
    similarity = similarity.double()
    query, key, value = random_heads()
    gathered = attend(query, key, value, similarity=similarity, graph=Causal())
    (learned,) = similarity.parameters()
    for head in range(H):
        (gradient,) = torch.autograd.grad(gathered[:, head].square().sum(), learned, retain_graph=True)
        assert gradient[head] != 0
        assert torch.isfinite(gradient).all()
        assert gradient.count_nonzero() == 1


def test_scaled_dot_is_the_product_by_the_root_of_the_width_and_the_temperature() -> None:
    query, key, _ = random_heads()
    expected = (query @ key.mT / math.sqrt(5) / 0.7).softmax(-1)
    torch.testing.assert_close(full_weights(query, key, ScaledDot(0.7)), expected)


def test_a_high_temperature_averages_and_a_low_one_takes_the_best() -> None:
    query, key, value = random_heads()
    torch.testing.assert_close(
        full_weights(query, key, ScaledDot(1e6)), full_weights(query, key, Uniform()), atol=1e-5, rtol=0
    )
    best = attend(query, key, value, similarity=Hard(), graph=Full())
    torch.testing.assert_close(attend(query, key, value, similarity=ScaledDot(1e-4), graph=Full()), best)


def test_uniform_weights_are_one_over_the_number_of_keys_that_are_heard() -> None:
    query, key, _ = random_heads()
    torch.testing.assert_close(full_weights(query, key, Uniform()), torch.full((2, H, T, T), 1 / T).double())
    causal = attention_weights(query, key, similarity=Uniform(), graph=Causal())
    expected = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    torch.testing.assert_close(causal, expected.double().expand(2, H, T, T), atol=1e-7, rtol=1e-6)


def test_symmetric_scores_are_the_same_both_ways() -> None:
    x, other, _ = random_heads()
    scores = score_matrix(x, x, Symmetric())
    torch.testing.assert_close(scores, scores.mT)
    assert not torch.allclose(score_matrix(x, other, Symmetric()), score_matrix(x, other, Symmetric()).mT)


def test_symmetric_attention_has_one_projection_for_queries_and_keys() -> None:
    layer = Attention(GPTConfig(n_head=H, n_embd=32, similarity="symmetric"), make_norm)
    seen: list[tuple[Tensor, Tensor]] = []
    layer.hooks.append(lambda query, key, value, how: seen.append((query, key)))
    layer(torch.randn(2, T, 32), Causal(), None, None)
    ((query, key),) = seen
    assert torch.equal(query, key)
    assert layer.qkv.weight.shape == (2 * 32, 32)


def test_one_step_of_hopfield_is_the_scaled_dot_product() -> None:
    query, key, value = random_heads()
    expected = attend(query, key, value, similarity=ScaledDot(), graph=Causal())
    assert torch.equal(attend(query, key, value, similarity=Hopfield(), graph=Causal()), expected)
    warmer = attend(query, key, value, similarity=ScaledDot(0.5), graph=Causal())
    beta = 1 / (0.5 * math.sqrt(D))
    torch.testing.assert_close(attend(query, key, value, similarity=Hopfield(beta), graph=Causal()), warmer)


def test_more_steps_of_hopfield_ask_with_what_was_found() -> None:
    query, key, value = random_heads()
    once = attend(query, key, key, similarity=Hopfield(0.9), graph=Causal())
    twice = attend(once, key, key, similarity=Hopfield(0.9), graph=Causal())
    expected = attend(twice, key, value, similarity=Hopfield(0.9), graph=Causal())
    torch.testing.assert_close(attend(query, key, value, similarity=Hopfield(0.9, steps=3), graph=Causal()), expected)
    weights = attention_weights(query, key, similarity=Hopfield(0.9, steps=3), graph=Causal())
    torch.testing.assert_close(weights, attention_weights(twice, key, similarity=Hopfield(0.9), graph=Causal()))


def test_gaussian_weights_are_the_kernel_of_the_distance_normalised() -> None:
    query, key, _ = random_heads()
    similarity = Gaussian(H, 1.0).double()
    widths = torch.tensor([0.5, 1.0, 2.0, 4.0]).double()
    with torch.no_grad():
        similarity.log_width.copy_(widths.log())
    distances = (query[:, :, :, None] - key[:, :, None]).norm(dim=-1)
    kernel = torch.exp(-(distances**2) / (2 * widths[:, None, None] ** 2))
    torch.testing.assert_close(full_weights(query, key, similarity), kernel / kernel.sum(-1, keepdim=True))


def test_gaussian_weights_do_not_depend_on_where_the_origin_is() -> None:
    query, key, _ = random_heads()
    origin = torch.linspace(-3, 3, D).double()
    moved = full_weights(query + origin, key + origin, Gaussian(H, 1.5))
    torch.testing.assert_close(moved, full_weights(query, key, Gaussian(H, 1.5)))
    assert not torch.allclose(
        full_weights(query + origin, key + origin, ScaledDot()), full_weights(query, key, ScaledDot())
    )


def test_the_default_width_gives_products_the_scale_of_the_scaled_dot() -> None:
    query, key, _ = random_heads()
    on_sphere = key / key.norm(dim=-1, keepdim=True)  # where the lengths of keys make no difference
    expected = full_weights(query, on_sphere, ScaledDot())
    torch.testing.assert_close(full_weights(query, on_sphere, Gaussian(H, D**0.25)), expected, atol=1e-7, rtol=1e-6)


def test_cosine_weights_ignore_lengths() -> None:
    query, key, _ = random_heads()
    lengths = torch.linspace(0.1, 30, T).double()[:, None]
    expected = full_weights(query, key, Cosine(H))
    torch.testing.assert_close(full_weights(query * lengths, key, Cosine(H)), expected)
    torch.testing.assert_close(full_weights(query, key * lengths, Cosine(H)), expected)


def test_cosine_scores_are_the_cosine_by_the_temperature_which_stays_above_a_hundredth() -> None:
    query, key, _ = random_heads()
    angles = torch.nn.functional.cosine_similarity(query[:, :, :, None], key[:, :, None], dim=-1)
    torch.testing.assert_close(score_matrix(query, key, Cosine(H, 0.25)), angles / 0.25)
    similarity = Cosine(H)
    with torch.no_grad():
        similarity.log_temperature.fill_(math.log(1e-4))
    torch.testing.assert_close(score_matrix(query, key, similarity), angles / 0.01)


def test_linear_features_are_positive_and_those_of_the_paper() -> None:
    x = torch.linspace(-8, 8, 65)
    found = Linear().features(x)
    assert (found > 0).all()
    torch.testing.assert_close(found, torch.nn.functional.elu(x) + 1)
    assert Linear().features(torch.zeros(1)) == 1


def test_linear_features_of_16_bits_are_rounded_once() -> None:
    x = torch.linspace(-8, 8, 65).bfloat16()
    expected = torch.where(x > 0, x.double() + 1, x.double().exp())
    torch.testing.assert_close(Linear().features(x).double(), expected, atol=0, rtol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_vectors_of_zeros_give_finite_results_and_gradients(name: str, dtype: torch.dtype) -> None:
    similarity = made_from(similarity=name, **POSITIONS.get(name, {})).to(dtype)
    query, key, value = (x.detach().to(dtype) for x in random_heads())
    query[:, :, 2], key[:, :, 1], value[:, :, 0] = 0, 0, 0
    query[:, 1], key[:, 3] = 0, 0
    leaves = [x.requires_grad_() for x in (query, key, value)]
    gathered = attend(*leaves, similarity=similarity, graph=Causal())
    learned = (*leaves, *similarity.parameters())
    direction = torch.randn(gathered.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad((gathered * direction).sum(), learned, allow_unused=True, materialize_grads=True)
    assert all(torch.isfinite(x).all() for x in (gathered, *gradients))


@pytest.mark.parametrize("name", ["scaled_dot", "cosine", "hopfield", "symmetric"])
def test_a_query_of_zeros_averages(name: str) -> None:
    query, key, _ = (x.detach() for x in random_heads())
    similarity = Hopfield(0.9) if name == "hopfield" else made_from(similarity=name)
    weights = full_weights(torch.zeros_like(query), key, similarity)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / T))


def test_linear_weights_are_products_of_features_by_their_sum() -> None:
    query, key, _ = random_heads()
    products = (torch.nn.functional.elu(query) + 1) @ (torch.nn.functional.elu(key) + 1).mT
    torch.testing.assert_close(full_weights(query, key, Linear()), products / products.sum(-1, keepdim=True))


def test_hard_weights_are_one_for_the_best_and_zero_elsewhere() -> None:
    query, key, _ = random_heads()
    expected = torch.nn.functional.one_hot((query @ key.mT).argmax(-1), T).double()
    assert torch.equal(full_weights(query, key, Hard()), expected)
    assert torch.equal(full_weights(query, key, Hard(sampled=True).eval()), expected)
    torch.manual_seed(0)
    sampled = full_weights(query, key, Hard(sampled=True).train())
    assert torch.equal(sampled.sum(-1), torch.ones(2, H, T).double())
    assert not torch.equal(sampled, expected)


def test_gaussian_distances_far_from_the_origin_are_told_apart_in_16_bits() -> None:
    """There |k|^2 / 2 is about 50, where 16-bit numbers are 1/4 apart, and q·k as large: only the difference counts."""
    query, key, value = (x.detach().bfloat16() for x in random_heads())
    query, key = query + 4.5, key + 4.5
    exact = attend(*(x.double() for x in (query, key, value)), similarity=Gaussian(H, 1.0), graph=Full())
    found = attend(query, key, value, similarity=Gaussian(H, 1.0), graph=Full())
    torch.testing.assert_close(found.double(), exact, atol=2**-7, rtol=2**-7)
