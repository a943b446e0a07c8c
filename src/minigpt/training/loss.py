"""Cross-entropy of the next token, in chunks where all logits would not fit in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.data.batches import IGNORED
from minigpt.model.compiling import CompiledWithFallback
from minigpt.model.gpt import GPT

CHUNK_LOGITS = 2**26
"""Logits computed at a time when a batch has more: 256 MB in float32, about 1 GB with the softmax and its gradient.
Smaller chunks save memory, larger ones are faster on a GPU: benchmarks/loss.py."""
BYTES_PER_LOGIT, SHARE_OF_MEMORY = 16, 1 / 16
"""What a chunk's logit takes with its softmax and gradient, and the part of a GPU's memory that chunks may take."""


def chunk_logits(device: torch.device) -> int:
    """Logits to compute at a time on the device: on an NVIDIA GPU a power of two by its memory, 2**28 with 80 GB.

    Each chunk reads and writes the gradient of the whole output head, 150 MB for GPT-2: the fewer chunks the better.
    """
    if device.type != "cuda":
        return CHUNK_LOGITS
    return chunk_logits_in(torch.cuda.get_device_properties(device).total_memory)


def chunk_logits_in(memory_bytes: int) -> int:
    """`chunk_logits` of an NVIDIA GPU with so much memory."""
    fitting = int(memory_bytes * SHARE_OF_MEMORY / BYTES_PER_LOGIT)
    return max(CHUNK_LOGITS, 1 << fitting.bit_length() - 1)


def model_loss(
    model: GPT, tokens: Tensor, targets: Tensor, reduction: str = "mean", *, at_a_time: int | None = None
) -> Tensor:
    """`next_token_loss` of the model's logits, which are computed in chunks where there are many.

    Args: tokens and targets are (B, T); reduction as for `next_token_loss`; at_a_time: logits of a chunk, CHUNK_LOGITS
    by default.
    """
    hidden, V = model.hidden(tokens), model.config.vocab_size or 0
    at_a_time = CHUNK_LOGITS if at_a_time is None else at_a_time
    if targets.numel() * V <= at_a_time:
        return next_token_loss(model.logits(hidden), targets, reduction)
    compiles = torch.compiler.is_compiling()
    return chunked_loss(hidden, model.head_weight, targets, V, reduction, compile=compiles, at_a_time=at_a_time)


def next_token_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats per token, computed in at least float32.

    Args:
        logits: (B, T, V).
        targets: (B, T) ids of the next tokens; IGNORED ones have no loss.
        reduction: mean over the targets that are not IGNORED, or sum.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


# Dynamo would unroll the loop: minutes of compiling, and all chunks in memory at once.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    V: int,
    reduction: str = "mean",
    *,
    compile: bool = False,
    at_a_time: int | None = None,
) -> Tensor:
    """`next_token_loss` of hidden times weight, some logits at a time.

    Gradients are computed in the forward pass, while a chunk's logits are in memory: nothing is computed twice, and
    only the gradients of hidden and weight are kept (Liger-Kernel's idea, Hsu et al. 2024,
    https://arxiv.org/abs/2410.10989). torch's linear_cross_entropy does the same from 2.13 on, but handles neither
    autocast nor padding, and older versions lack its chunks.

    Args:
        hidden: (B, T, C).
        weight: (at least V, C); rows from V on pad the vocabulary.
        targets: (B, T), as for `next_token_loss`.
        V: size of the vocabulary.
        reduction: mean over the targets that are not IGNORED, or sum.
        compile: run the softmax and its gradient through torch.compile.
        at_a_time: logits of a chunk; CHUNK_LOGITS by default.
    """
    flat = targets.flatten()
    # A power of two: chunks of one size compile to one program, and a GPU multiplies them faster.
    n = 1 << max((CHUNK_LOGITS if at_a_time is None else at_a_time) // V, 1).bit_length() - 1
    total = _ChunkedSum.apply(hidden.flatten(0, 1), weight, flat, V, n, torch.is_grad_enabled(), compile)
    if reduction == "sum":
        return total
    n_targets = (flat != IGNORED).sum()
    # Without targets the mean is NaN and its gradient zero, as in cross_entropy.
    return torch.where(n_targets > 0, total / n_targets.clamp(min=1), torch.nan)


class _ChunkedSum(torch.autograd.Function):
    """The sum of all losses; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, V: int, n: int, backward: bool, compile: bool
    ) -> Tensor:
        """(N, C), (rows, C) and (N,) -> a scalar; n rows at a time; backward: whether gradients are wanted."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        cast_weight = weight.to(dtype)
        # A sum of many small terms, which half precision would lose.
        total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if backward else hidden
        grad_weight = torch.zeros_like(weight, dtype=total.dtype) if backward else weight
        sum_of_losses = _compiled_sum() if compile else _sum
        for rows, wanted, grad_rows in zip(hidden.split(n), targets.split(n), grad_hidden.split(n), strict=True):
            rows = rows.to(dtype)
            logits = F.linear(rows, cast_weight)
            logits[:, V:] = float("-inf")  # in place; slicing would copy
            with torch.set_grad_enabled(backward):
                loss = sum_of_losses(logits.requires_grad_(backward), wanted)
            total += loss.detach()
            if not backward:
                continue
            (slope,) = torch.autograd.grad(loss, logits)
            del logits, loss  # before the next chunk's are allocated
            grad_rows.copy_(slope @ cast_weight)
            if slope.dtype == grad_weight.dtype:
                grad_weight.addmm_(slope.T, rows)
            else:
                grad_weight += slope.T @ rows
            del slope
        if backward:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The incoming gradient (of the mean, of a loss scale) is a scalar factor."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None, None, None, None


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    return next_token_loss(logits[None], targets[None], "sum")


@functools.cache
def _compiled_sum() -> Callable[..., Tensor]:
    return CompiledWithFallback(_sum)
