"""Signs of trouble in a model on a text: heads without output, massive activations, positions without effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minigpt.inspection.ablation import UNKNOWN, losses
from minigpt.inspection.capture import attention_hooks, evaluation_mode, written_norms
from minigpt.inspection.hooks import HookFunction, hooks
from minigpt.model.gpt import GPT, Block
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
    windows = windows.to(next(model.parameters()).device)
    first = windows[0][windows[0] != UNKNOWN]
    outputs, stream = list[Tensor](), list[Tensor]()

    def outputs_of(block: Block, z: Tensor, name: str) -> None:
        outputs.append(written_norms(block.attn, z.transpose(1, 2)).mean(dim=(0, 2)).float())

    def activations_of(x: Tensor, name: str) -> None:
        size = x.abs().float()
        stream.append(torch.stack([size.max(), size.median()]))

    functions: dict[str, HookFunction] = {"blocks.*.resid_post": activations_of}
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        functions[f"blocks.{layer}.attn.z"] = partial(outputs_of, block)
    with evaluation_mode(model), hooks(model, functions):
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
