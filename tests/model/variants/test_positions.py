"""Rotations, vectors and biases against their formulas, and what they let a score depend on."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.model import tables
from minigpt.model.attention import rotate
from minigpt.model.variants.attend import attention_weights
from minigpt.model.variants.graphs import Causal
from minigpt.model.variants.positions import alibi_bias
from minigpt.model.variants.similarities import ScaledDot


def as_tensors(table: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    return lambda *sizes, **how: torch.from_numpy(table(*sizes, **how))


rotary_table, sinusoidal_table = as_tensors(tables.rotary_table), as_tensors(tables.sinusoidal_table)
alibi_slopes = as_tensors(tables.alibi_slopes)


def test_rotation_keeps_the_norm_and_leaves_position_zero_as_it_is() -> None:
    x = torch.randn(1, 2, 16, 8)
    rotated = rotate(x, rotary_table(16, 8, 10_000.0))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[:, :, 0], x[:, :, 0])


def test_the_score_of_two_rotated_vectors_depends_on_their_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    table = rotary_table(64, 8, 10_000.0)
    queries = rotate(q.expand(1, 1, 64, 8), table)[0, 0]
    keys = rotate(k.expand(1, 1, 64, 8), table)[0, 0]
    scores = queries @ keys.T
    for distance in (0, 1, 5, 30):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[0].expand_as(along), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores[1, 0], scores[5, 0])


def test_each_pair_of_channels_turns_at_its_own_speed() -> None:
    cosines, sines = rotary_table(5, 4, 100.0)
    assert cosines.shape == sines.shape == (5, 4)
    for t in range(5):
        for channel, (speed, sign) in enumerate([(1.0, -1), (0.1, -1), (1.0, 1), (0.1, 1)]):
            assert cosines[t, channel].item() == pytest.approx(math.cos(t * speed), abs=1e-6)
            assert sines[t, channel].item() == pytest.approx(sign * math.sin(t * speed), abs=1e-6)


def test_rotation_turns_channel_i_with_channel_i_plus_half() -> None:
    x = torch.tensor([3.0, 5.0, 0.0, 0.0]).expand(1, 1, 2, 4)
    turned = rotate(x, rotary_table(2, 4, 100.0))[0, 0, 1]
    expected = [3 * math.cos(1), 5 * math.cos(0.1), 3 * math.sin(1), 5 * math.sin(0.1)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_a_fraction_of_the_pairs_turns_as_a_head_of_that_width_and_the_rest_stands_still() -> None:
    table, small = rotary_table(7, 16, 100.0, fraction=0.25), rotary_table(7, 4, 100.0)
    torch.testing.assert_close(table.unflatten(-1, (2, 8))[..., :2], small.unflatten(-1, (2, 2)))
    x = torch.randn(1, 1, 7, 16)
    still = [i for i in range(16) if i % 8 >= 2]
    torch.testing.assert_close(rotate(x, table)[..., still], x[..., still])


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "truncate": False,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5},
    ],
    ids=lambda scaling: f"{scaling['rope_type']}-{len(scaling)}",
)
def test_frequencies_for_longer_contexts_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters=scaling | {"rope_theta": 10_000.0},
    )
    expected, length = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    plain, _ = tables.rotary_frequencies(32, 10_000.0)
    scaled, found = tables.scaled_frequencies(plain, 10_000.0, scaling)
    frequencies = torch.from_numpy(scaled)
    torch.testing.assert_close(frequencies.float(), expected.float())
    assert found == pytest.approx(length)
    GPTConfig(rotary_scaling=scaling)
    cosines, _ = rotary_table(300, 32, 10_000.0, scaling=scaling)
    torch.testing.assert_close(cosines[299, :16].double(), length * (299 * frequencies).cos())


def test_rows_may_count_their_positions_each_on_its_own() -> None:
    torch.manual_seed(0)
    x, table = torch.randn(2, 3, 4, 8), rotary_table(10, 8, 10_000.0)
    positions = torch.tensor([[0, 1, 2, 3], [5, 6, 0, 1]])
    rotated = rotate(x, table[:, positions])
    for row in range(2):
        one = rotate(x[row : row + 1], table[:, positions[row]])
        torch.testing.assert_close(rotated[row : row + 1], one)


def test_sinusoidal_vectors_are_sines_and_cosines_of_wavelengths_from_2_pi_to_20000_pi() -> None:
    table = sinusoidal_table(50, 8)
    assert table.shape == (50, 8)
    assert table.dtype == torch.float32
    size = 0.02 * math.sqrt(2)
    for t, i in ((0, 0), (1, 0), (7, 1), (30, 2), (49, 3)):
        angle = t / 10_000 ** (2 * i / 8)
        assert table[t, 2 * i].item() == pytest.approx(size * math.sin(angle), abs=1e-8)
        assert table[t, 2 * i + 1].item() == pytest.approx(size * math.cos(angle), abs=1e-8)


def test_sinusoidal_vectors_are_as_large_as_a_token_embedding_when_it_is_initialised() -> None:
    sizes = sinusoidal_table(500, 64).square().mean(dim=-1).sqrt()
    torch.testing.assert_close(sizes, torch.full((500,), 0.02))


def test_an_odd_width_ends_with_a_sine() -> None:
    table = sinusoidal_table(6, 7)
    assert table.shape == (6, 7)
    angles = torch.arange(6) / 10_000 ** (6 / 7)
    torch.testing.assert_close(table[:, 6], 0.02 * 2**0.5 * angles.sin())
    assert sinusoidal_table(6, 1).shape == (6, 1)


def test_the_product_of_two_sinusoidal_vectors_depends_on_their_distance_alone() -> None:
    products = sinusoidal_table(40, 16).double() @ sinusoidal_table(40, 16).double().T
    for distance in (0, 1, 9):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[0].expand_as(along), atol=1e-9, rtol=1e-6)


def test_the_slopes_of_eight_heads_are_halved_from_head_to_head() -> None:
    assert alibi_slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(1).tolist() == [1 / 256]
    assert alibi_slopes(2).tolist() == [1 / 16, 1 / 256]
    torch.testing.assert_close(alibi_slopes(16)[:2], torch.tensor([0.5**0.5, 0.5]))


def test_the_slopes_of_twelve_heads_are_those_of_the_authors_code() -> None:
    """get_slopes(12) of https://github.com/ofirpress/attention_with_linear_biases: 8 heads', then every other of 16."""
    published = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
    published += [0.7071067811865476, 0.35355339059327384, 0.17677669529663692, 0.08838834764831849]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(published))


@pytest.mark.parametrize("n_head", range(1, 20))
def test_any_number_of_heads_has_as_many_different_slopes_below_one(n_head: int) -> None:
    slopes = alibi_slopes(n_head)
    assert slopes.shape == (n_head,)
    assert slopes.dtype == torch.float32
    assert len(slopes.unique()) == n_head
    assert ((slopes > 0) & (slopes < 1)).all()


def test_the_bias_of_a_key_lowers_causal_scores_by_slope_times_distance() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 3, 9, 4).double()
    slopes = alibi_slopes(3).double()
    bias = alibi_bias(slopes, 9)
    assert bias.shape == (1, 3, 9)
    weights = attention_weights(query, key, similarity=ScaledDot(), graph=Causal(), key_bias=bias)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    scores = query @ key.mT / 2 - slopes[:, None, None] * distance
    torch.testing.assert_close(weights, scores.masked_fill(distance < 0, -math.inf).softmax(-1))
