"""The fused kernel against the written-out softmax, and what makes attention causal."""

import pytest
import torch

from minigpt.model.attention import attend, attention_weights
from minigpt.model.graphs import Causal
from minigpt.model.similarities import ScaledDot


def random_heads(B: int, H: int, H_kv: int, T: int, D: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    query = torch.randn(B, H, T, D, dtype=dtype, requires_grad=True)
    key = torch.randn(B, H_kv, T, D, dtype=dtype, requires_grad=True)
    value = torch.randn(B, H_kv, T, D, dtype=dtype, requires_grad=True)
    return query, key, value


@pytest.mark.parametrize(("H", "H_kv"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("T", [1, 2, 33])
def test_fused_attention_equals_the_explicit_weights_times_the_values(H: int, H_kv: int, T: int) -> None:
    query, key, value = random_heads(2, H, H_kv, T, 16, torch.float32)
    fused = attend(query, key, value, similarity=ScaledDot(), graph=Causal())
    weights = attention_weights(query, key, similarity=ScaledDot(), graph=Causal())
    explicit = weights @ value.repeat_interleave(H // H_kv, dim=1)
    torch.testing.assert_close(fused, explicit, atol=2e-6, rtol=1e-5)
    direction = torch.randn_like(fused)
    from_fused = torch.autograd.grad((fused * direction).sum(), (query, key, value))
    from_explicit = torch.autograd.grad((explicit * direction).sum(), (query, key, value))
    torch.testing.assert_close(from_fused, from_explicit, atol=1e-5, rtol=1e-4)


def test_the_explicit_weights_equal_a_loop_over_tokens_and_their_in_neighbours() -> None:
    query, key, _ = random_heads(1, 2, 1, 7, 4, torch.float64)
    weights = attention_weights(query, key, similarity=ScaledDot(), graph=Causal())
    for head in range(2):
        for t in range(7):
            scores = torch.stack([query[0, head, t] @ key[0, 0, s] / 4**0.5 for s in range(t + 1)])
            torch.testing.assert_close(weights[0, head, t, : t + 1], scores.exp() / scores.exp().sum())
            assert (weights[0, head, t, t + 1 :] == 0).all()


def test_rows_sum_to_one_and_nothing_comes_from_the_future() -> None:
    query, key, _ = random_heads(2, 4, 2, 20, 8, torch.float32)
    weights = attention_weights(query, key, similarity=ScaledDot(), graph=Causal())
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20))
    assert (weights.triu(1) == 0).all()


def test_huge_scores_do_not_overflow() -> None:
    query, key, _ = random_heads(1, 1, 1, 8, 4, torch.float32)
    weights = attention_weights(query * 1e4, key * 1e4, similarity=ScaledDot(), graph=Causal())
    assert torch.isfinite(weights).all()
