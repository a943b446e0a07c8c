"""RMSNorm and its gradient against PyTorch's own, which autograd takes apart."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.gpt import RMSNorm, make_norm


def both(x: Tensor, scale: float = 1.0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Result and gradients of ours and of PyTorch's for the same values, weights and gradient from above."""
    found = []
    weight = 1 + scale * torch.randn(x.shape[-1], dtype=x.dtype)
    above = torch.randn_like(x)
    for kind in (RMSNorm, nn.RMSNorm):
        norm = kind(x.shape[-1], eps=1e-6, dtype=x.dtype)
        norm.weight.data.copy_(weight)
        leaf = x.detach().clone().requires_grad_()
        result = norm(leaf)
        result.backward(above)
        found.append((result.detach(), leaf.grad, norm.weight.grad))
    return found


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 5, 16), (2, 3, 5, 8), (1, 1), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_pytorchs_forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, torchs = both(torch.randn(shape, dtype=dtype))
    for own, other in zip(ours, torchs, strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(own, other)


def test_16_bits_with_a_weight_of_32_are_normed_in_their_own_dtype_and_fused() -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(16, eps=1e-6), torch.randn(4, 16, dtype=torch.bfloat16)
    nn.init.normal_(norm.weight, 1, 0.1)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            warnings.simplefilter("error")  # torch's, that it "cannot dispatch to fused implementation"
            result = norm(x)
    finally:
        torch.set_warn_always(before)
    assert result.dtype == torch.bfloat16
    result.sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.float32
    # Two roundings to 8 bits, of the weight and of the result.
    torch.testing.assert_close(result.float(), norm(x.float()), rtol=2**-7, atol=0)


def test_heads_that_lie_across_are_normed_as_those_in_a_row() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    norm = RMSNorm(8, eps=1e-6, dtype=torch.float64)
    torch.testing.assert_close(norm(x.transpose(1, 2)), norm(x).transpose(1, 2), rtol=0, atol=0)
    across = x.transpose(1, 2).detach().requires_grad_()
    assert torch.autograd.gradcheck(norm, (across,))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1e15])
def test_vectors_of_any_length_are_normed_as_by_pytorch(scale: float) -> None:
    torch.manual_seed(0)
    ours, torchs = both(scale * torch.randn(4, 16))
    for own, other in zip(ours, torchs, strict=True):
        assert own.isfinite().all()
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_so() -> None:
    x = torch.ones(3, 4)
    x[1, 2] = torch.nan
    result = RMSNorm(4, eps=1e-6)(x)
    assert result[1].isnan().all()
    assert result[[0, 2]].isfinite().all()


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    (first,) = torch.autograd.grad(RMSNorm(4, eps=1e-6)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_config_chooses() -> None:
    assert isinstance(make_norm(GPTConfig(norm="rmsnorm"), 8), RMSNorm)
    assert isinstance(make_norm(GPTConfig(norm="layernorm"), 8), nn.LayerNorm)
