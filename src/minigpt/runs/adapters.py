"""Weights with low-rank adapters (LoRA) -> the plain weights that files hold and readers see, in plain torch.

A layer with an adapter computes W x + SCALE B A x, so its plain weight is W + SCALE B A (Hu et al. 2021,
https://arxiv.org/abs/2106.09685). Only training, in training/lora.py, needs peft.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minigpt.model.gpt import GPT

SCALE = 2.0
"""peft's lora_alpha / rank. Of one size for all ranks, checkpoints need not store it, and one learning rate serves all
ranks (Schulman et al. 2025, https://thinkingmachines.ai/blog/lora); 2 is the usual choice."""
BASE, A, B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
"""What peft puts into the names of the weights of such a layer."""


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with each adapter added to its weight, under the names of a plain GPT; others as they are.

    Raises:
        KeyError: a layer lacks half of its adapter.
        ValueError: an adapter of another shape than its weight.
    """
    plain = dict[str, Tensor]()
    for name, value in state.items():
        layer, base, what = name.partition(BASE)
        if base and what == "weight":
            value = _merged(value, state[layer + A], state[layer + B], layer)
        if not name.endswith((A, B)):
            plain[f"{layer}.{what}" if base else name] = value
    return plain


def without_adapters(model: GPT) -> GPT:
    """The model itself, or, if it has adapters, a copy with them merged: a plain GPT, to read or to save.

    The copy shares all other weights with the model.
    """
    if not any(name.endswith(A) for name, _ in model.named_parameters()):
        return model
    shared = {id(each): each for each in itertools.chain(model.parameters(), model.buffers())}
    plain = copy.deepcopy(model, shared)  # deepcopy takes what is in its memo as copied
    layers = [(name, module) for name, module in plain.named_modules() if hasattr(module, "base_layer")]
    for name, module in layers:
        state, layer = module.state_dict(prefix=f"{name}."), module.base_layer
        assert isinstance(layer, nn.Linear)
        weight = merged_state(state)[f"{name}.weight"]
        layer.weight = nn.Parameter(weight, requires_grad=False)
        plain.set_submodule(name, layer)
    return plain


@torch.no_grad()
def _merged(weight: Tensor, a: Tensor, b: Tensor, layer: str) -> Tensor:
    """(out, in) weight, (rank, in) a and (out, rank) b -> (out, in), in the weight's dtype; summed in float32."""
    # Before the product: of a damaged file it could be of any size.
    if a.ndim != 2 or b.ndim != 2 or weight.shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
        raise ValueError(f"{layer}: an adapter of {tuple(b.shape)} x {tuple(a.shape)} on {tuple(weight.shape)}")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(dtype), b.to(dtype), a.to(dtype), alpha=SCALE).to(weight.dtype)
