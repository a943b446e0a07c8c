"""Signs of trouble in a model on a text: heads without output, massive activations, positions without effect."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minigpt.inspection.ablation import UNKNOWN, losses
from minigpt.inspection.capture import attention_hooks, evaluation_mode
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import AttentionSpec, attention_scores

REPEATED = 16
"""Times that one token is repeated to see whether scores depend on positions."""
PARTS = 8
"""Equal parts of the context whose losses are compared."""


@dataclass(frozen=True)
class Diagnostics:
    """Measurements of a model on one window of text, as plain numbers."""

    head_outputs: list[list[float]]
    """By layer and head: mean length of what the head adds to the residual stream."""
    largest_activations: list[float]
    """Largest absolute value in the residual stream after each block."""
    median_activations: list[float]
    """Median absolute value there."""
    position_effect: float | None
    """How far the scores of equal tokens at different positions differ, relative to their size: 0 if positions have no
    effect. None for a model that has none by its config."""
    losses: list[tuple[int, int, float, float]]
    """Of parts of the context: first and last position from 1, mean loss in nats, and its standard error."""


@torch.no_grad()
def diagnose_model(model: GPT, windows: Tensor) -> Diagnostics:
    """Run the model on windows of text, of which the first is looked into, and on a repeated token.

    Args:
        model: not modified.
        windows: (B, T + 1) ids; UNKNOWN after the end of a shorter one. Losses by position need several.
    """
    outputs: list[Tensor] = []
    stream: list[Tensor] = []

    def outputs_of(attention: Attention, _: object, arguments: tuple[Tensor, ...]) -> None:
        # |z W_O| of each head without the (T, H, C) products: z (W^T W) z.
        z = arguments[0].unflatten(-1, (attention.n_head, attention.head_dim)).transpose(1, 2)  # (B, H, T, D)
        projections = attention.proj.weight.unflatten(1, (attention.n_head, -1)).transpose(0, 1)  # (H, C, D)
        gram = (projections.mT @ projections).to(z.dtype)  # (H, D, D)
        outputs.append(((z @ gram) * z).sum(-1).clamp(min=0).sqrt().mean(dim=(0, 2)).float())

    def activations_of(_: object, __: object, x: Tensor) -> None:
        size = x.abs().float()
        stream.append(torch.stack([size.max(), size.median()]))

    windows = windows.to(next(model.parameters()).device)
    with contextlib.ExitStack() as held, evaluation_mode(model):
        for block in model.blocks:
            attention: Any = block.attn
            held.callback(attention.proj.register_forward_pre_hook(partial(outputs_of, attention)).remove)
            held.callback(block.register_forward_hook(activations_of).remove)
        first = windows[0][windows[0] != UNKNOWN]
        model.hidden(first[None, :-1])
    largest, median = torch.stack(stream).T.tolist()
    effect, by_position = position_effect(model, int(windows[0, 0])), losses_by_position(model, windows)
    return Diagnostics(torch.stack(outputs).tolist(), largest, median, effect, by_position)


def losses_by_position(model: GPT, windows: Tensor) -> list[tuple[int, int, float, float]]:
    """`Diagnostics.losses` of (B, T + 1) ids; empty for one window, which tells more of its text than of the model."""
    if len(windows) < 2:
        return []
    with evaluation_mode(model):
        each = torch.cat([losses(model, window[None]).cpu() for window in windows])  # (B, T)
    found, end = [], 0
    for part in each.double().tensor_split(min(PARTS, each.shape[1]), dim=1):
        begin, end = end + 1, end + part.shape[1]
        known = part[~part.isnan()]
        if len(known) > 1:  # few texts are that long
            found.append((begin, end, float(known.mean()), float(known.std() / len(known) ** 0.5)))
    return found


def position_effect(model: GPT, token: int) -> float | None:
    """Largest difference between the scores of one query with equal tokens, as a share of their size.

    Without positions, equal tokens have equal queries and keys in every layer, so the difference is rounding.
    None for models with `position: none` or without scores.

    Args:
        model: not modified.
        token: the one that is repeated; another one is taken where it begins a document.
    """
    config = model.config
    T = min(REPEATED, config.context_length)
    if config.position == "none" or config.similarity == "uniform" or T < 2:
        return None
    if token == config.end_of_text:
        token = 0 if token else 1
    effects = []

    def hook(layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> None:
        scores = attention_scores(query, key, spec, range(T - 1, T))  # (1, H, 1, T)
        edges = ~scores.isneginf()
        highest = scores.amax(-1)
        lowest = scores.masked_fill(~edges, torch.inf).amin(-1)
        effects.append(((highest - lowest) / (1 + highest.abs())).max().float())

    with evaluation_mode(model), attention_hooks(model, hook):
        model.hidden(torch.full((1, T), token, device=next(model.parameters()).device))
    return float(torch.stack(effects).max())
