"""Zero ablation: how much the loss rises without each head. The only score here that measures a causal effect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.inspection.capture import evaluation_mode
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT


@contextlib.contextmanager
def without_head(attention: Attention, head: int) -> Iterator[None]:
    """Zero ablation of one head: its output is zeros before the output projection."""

    def ablate(_: object, arguments: tuple[Tensor]) -> tuple[Tensor]:
        gathered = arguments[0].unflatten(-1, (attention.n_head, attention.head_dim)).clone()
        gathered[..., head, :] = 0.0
        return (gathered.flatten(-2),)

    handle = attention.proj.register_forward_pre_hook(ablate)
    try:
        yield
    finally:
        handle.remove()


def ablation(model: GPT, tokens: Tensor, positions: slice = slice(None)) -> Tensor:
    """Loss with a head zeroed minus the full model's loss: positive where the head helps (Michel et al. 2019).

    https://arxiv.org/abs/1905.10650. Other heads may compensate, so a small change does not prove a head unused.

    Args:
        model: not modified.
        tokens: (B, T + 1) ids.
        positions: which of the T predictions are averaged.

    Returns:
        (n_layer, n_head) float32 on the CPU, nats per token.
    """
    with evaluation_mode(model):
        baseline = _loss(model, tokens, positions)
        layers = [module for module in model.modules() if isinstance(module, Attention)]
        changes = torch.zeros(len(layers), model.config.n_head)
        for layer, attention in enumerate(layers):
            for head in range(attention.n_head):
                with without_head(attention, head):
                    changes[layer, head] = _loss(model, tokens, positions) - baseline
    return changes


def losses(model: GPT, tokens: Tensor) -> Tensor:
    """Cross-entropy of each prediction: (B, T + 1) ids to (B, T) losses in nats."""
    logits = model(tokens[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(tokens[:, 1:].shape)


def _loss(model: GPT, tokens: Tensor, positions: slice) -> float:
    return float(losses(model, tokens)[:, positions].cpu().double().mean())  # on the CPU, since MPS has no float64
