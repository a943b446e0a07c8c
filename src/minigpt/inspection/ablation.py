"""A model and a text -> how much worse it predicts without each head: the one score that says what a head causes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.inspection.capture import undisturbed
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT


@contextlib.contextmanager
def without_head(attention: Attention, head: int) -> Iterator[None]:
    """Let a layer compute as if one head had gathered zeros."""

    def silence(_: object, arguments: tuple[Tensor]) -> tuple[Tensor]:
        gathered = arguments[0].unflatten(-1, (attention.n_head, attention.head_dim)).clone()
        gathered[..., head, :] = 0.0
        return (gathered.flatten(-2),)

    handle = attention.proj.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def ablation(model: GPT, tokens: Tensor, positions: slice = slice(None)) -> Tensor:
    """The loss without each head less the loss with all: positive where the head helps (Michel et al. 2019).

    https://arxiv.org/abs/1905.10650. Zeros replace what the head gathers; other heads may take over part of its work,
    so a small change does not show that a head does nothing.

    Args:
        model: read only; see `undisturbed`.
        tokens: (B, T + 1) ids.
        positions: of the T predictions, those whose loss counts.

    Returns:
        (n_layer, n_head) float32 on the CPU, nats per token.
    """
    with undisturbed(model):
        whole = _loss(model, tokens, positions)
        layers = [module for module in model.modules() if isinstance(module, Attention)]
        changes = torch.zeros(len(layers), model.config.n_head)
        for layer, attention in enumerate(layers):
            for head in range(attention.n_head):
                with without_head(attention, head):
                    changes[layer, head] = _loss(model, tokens, positions) - whole
    return changes


def losses(model: GPT, tokens: Tensor) -> Tensor:
    """(B, T) nats of each prediction of (B, T + 1) ids."""
    logits = model(tokens[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(tokens[:, 1:].shape)


def _loss(model: GPT, tokens: Tensor, positions: slice) -> float:
    return float(losses(model, tokens)[:, positions].cpu().double().mean())  # not every accelerator has float64
