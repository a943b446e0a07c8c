"""Zero ablation: how much the loss rises without each head. The only score here that measures a causal effect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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
    changes = torch.zeros(model.config.n_layer, model.config.n_head)
    targets = tokens[:, 1:][:, positions]
    with evaluation_mode(model):
        inputs = _block_inputs(model, tokens[:, :-1])
        baseline = _loss_from(model, 0, inputs, targets, positions)
        for layer, block in enumerate(model.blocks):
            attention = block.attn
            assert isinstance(attention, Attention)
            for head in range(attention.n_head):
                with without_head(attention, head):
                    changes[layer, head] = _loss_from(model, layer, inputs, targets, positions) - baseline
    return changes


def _block_inputs(model: GPT, tokens: Tensor) -> list[tuple[Any, ...]]:
    """Arguments of each block in a forward pass: layers before an ablated head need not run again."""
    inputs = list[tuple[Any, ...]]()
    with contextlib.ExitStack() as stack:
        for block in model.blocks:
            handle = block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
            stack.callback(handle.remove)
        model.hidden(tokens)
    return inputs


def _loss_from(model: GPT, layer: int, inputs: list[tuple[Any, ...]], targets: Tensor, positions: slice) -> float:
    """Mean loss at some positions, computed from the input of a layer on."""
    x = inputs[layer][0]
    for block, (_, *others) in zip(model.blocks[layer:], inputs[layer:], strict=True):
        x = block(x, *others)
    each = _cross_entropy(model.logits(model.final_norm(x[:, positions])), targets)
    return float(each.cpu().double().mean())  # on the CPU, since MPS has no float64


def losses(model: GPT, tokens: Tensor) -> Tensor:
    """Cross-entropy of each prediction: (B, T + 1) ids to (B, T) losses in nats."""
    return _cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, T, V) logits and (B, T) targets -> (B, T) nats."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
