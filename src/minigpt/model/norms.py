"""Vectors of any scale -> vectors of one scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minigpt.config import GPTConfig


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """The config's norm over the last axis: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=1e-5, bias=config.bias)
    return RMSNorm(width, eps=1e-6)


class RMSNorm(nn.RMSNorm):
    """PyTorch's, which has a kernel of its own on GPUs alone: on a CPU, ours takes less than half its time."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), each vector with a mean square of 1, times the weight."""
        # A compiler makes one kernel of PyTorch's; and in half precision, squares are to be added up in float32.
        is_ours = x.device.type == "cpu" and x.dtype in {torch.float32, torch.float64} and x.ndim > 1
        if not is_ours or torch.compiler.is_compiling():
            return super().forward(x)
        result: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
        return result


class _RMSNorm(torch.autograd.Function):
    """Few passes over x, forward and backward, where autograd would take the formula apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        scaled = gradient * scale
        product = scaled * x
        of_weight = product.sum(tuple(range(x.ndim - 1)))
        # What changes x along itself changes nothing: that part is taken out.
        along = product.mul_(weight).sum(-1, keepdim=True).mul_(scale.square()).div_(-x.shape[-1])
        return scaled.mul_(weight).addcmul_(x, along), of_weight, None
