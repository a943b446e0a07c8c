"""The optimizer's parameter groups, and the schedules of learning rate and momentum."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config import OptimizerConfig
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT, Block
from minigpt.training.muon import BASE_WIDTH, Muon

EMBEDDING_RATE = 3.0
"""Learning rate of embeddings under `muon`, relative to the others: a row has a gradient only when its token occurs."""
FIRST_MOMENTUM = 0.85
"""Muon's momentum at step 0, before its warm-up (Jordan et al. 2024)."""


def parameter_groups(model: GPT, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups. Weight decay applies to the matrices of linear layers, not to norms, biases and embeddings.

    Under `muon`, the matrices inside blocks are a group of their own, with `rows`. The output head is not in it: each
    of its rows belongs to one token, like an embedding's. One learning rate then serves all widths: the head's is
    divided by the width, because a logit sums that many changes (muP, Yang et al. 2022,
    https://arxiv.org/abs/2203.03466).

    Returns:
        Groups with `weight_decay`, `decays` (whether weight decay applies) and `lr_scale`, a factor of the learning
        rate.
    """
    rows = stacked_rows(model) if config.name == "muon" else {}
    linear = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}

    def lr_scale(parameter: Tensor) -> float:
        if config.name == "adamw":
            return 1.0
        if parameter is model.head_weight:
            return BASE_WIDTH / parameter.shape[1]
        return EMBEDDING_RATE if parameter in embeddings else 1.0

    alike: defaultdict[tuple[bool, float], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter not in rows:
            alike[parameter in linear, lr_scale(parameter)].append(parameter)
    groups: list[dict[str, Any]] = []
    if rows:
        momentum = muon_momentum(config, 0)
        groups = [
            {
                "params": list(rows),
                "rows": list(rows.values()),
                "momentum": momentum,
                "ns_steps": config.ns_steps,
                "decays": True,
                "lr_scale": 1.0,
            }
        ]
    groups += [
        {"params": alike[decays, scale], "decays": decays, "lr_scale": scale}
        for decays, scale in sorted(alike, reverse=True)
    ]
    return [group | {"weight_decay": config.weight_decay if group["decays"] else 0.0} for group in groups]


def stacked_rows(model: GPT) -> dict[Tensor, list[int]]:
    """The weights of linear layers inside blocks, with the row counts of the matrices stacked in each.

    Query, key and value projections share one weight for speed, and so do SwiGLU's two. They are different maps, so
    Muon orthogonalises each on its own. An MLP names its layers of several equal maps in `stacked`.
    """
    inside = [module for block in model.modules() if isinstance(block, Block) for module in block.modules()]
    rows = {module.weight: [module.out_features] for module in inside if isinstance(module, nn.Linear)}
    for module in inside:
        if isinstance(module, Attention):
            rows[module.qkv.weight] = [n * module.head_dim for n in module.n_projected if n]
        for name, n_maps in getattr(module, "stacked", {}).items():
            layer = getattr(module, name)
            rows[layer.weight] = [layer.out_features // n_maps] * n_maps
    return rows


def make_optimizer(model: GPT, config: OptimizerConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) in one fused kernel, or Muon.

    Raises:
        UserError: muon on a model with sharded weights.
    """
    groups, betas = parameter_groups(model, config), (config.beta1, config.beta2)
    if config.name == "muon":
        return Muon(groups, lr=config.learning_rate, betas=betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=fused)


def follow_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, progress: float) -> float:
    """Set learning rates and momentum for optimizer step `step`, counted from 0; returns the learning rate.

    Args: as for `learning_rate`.
    """
    rate = learning_rate(config, step, progress)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        if "momentum" in group:
            group["momentum"] = muon_momentum(config, step)
    return rate


def muon_momentum(config: OptimizerConfig, step: int) -> float:
    """Muon's momentum in step `step`, counted from 0: lower at first, when old gradients go out of date quickly."""
    share = min(1.0, step / config.momentum_warmup_steps) if config.momentum_warmup_steps else 1.0
    return config.momentum - (1.0 - share) * max(0.0, config.momentum - FIRST_MOMENTUM)


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    The decay is a factor of its own, from step 0 on: unlike nanoGPT's it runs during warm-up too. It reaches
    final_lr_fraction when the run is done, so the last step's rate is still slightly above.

    Args:
        config: peak, warm-up and shape of the decay.
        step: finished optimizer steps, for the linear warm-up.
        progress: finished share of the run in [0, 1], by steps or by time, for the decay.
    """
    progress = min(max(progress, 0.0), 1.0)
    match config.schedule:
        case "constant":
            remaining = 1.0
        case "linear":
            remaining = 1.0 - progress
        case "cosine":
            remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "wsd":
            remaining = min(1.0, (1.0 - progress) / config.decay_fraction)
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warmup * (config.final_lr_fraction + (1 - config.final_lr_fraction) * remaining)
