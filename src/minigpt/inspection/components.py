"""The components whose updates sum to the residual stream, by the names that all attributions give them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from minigpt.inspection.hooks import HookFunction
from minigpt.model.gpt import GPT, Block


def component_hooks(
    model: GPT, n_layer: int, whole: Callable[[str, Tensor], None], heads: Callable[[int, Block, Tensor], None]
) -> dict[str, HookFunction]:
    """Functions for `hooks` that call one of two functions on each component, in the order of the forward pass.

    Args:
        model: not modified.
        n_layer: number of layers that are visited, from the first on.
        whole: gets the name `embedding`, `position embedding` or `mlp1`, and the (B, T, C) update.
        heads: gets a layer, its block, and (B, T, H, D) outputs of its heads before the output projection.
    """
    functions: dict[str, HookFunction] = {"embed": lambda update, _: whole("embedding", update)}
    if model.config.position in {"learned", "sinusoidal"}:
        functions["pos_embed"] = lambda update, _: whole("position embedding", update)
    for layer, block in enumerate(model.blocks[:n_layer]):
        assert isinstance(block, Block)
        functions[f"blocks.{layer}.attn.z"] = partial(_heads, heads, layer, block)
        functions[f"blocks.{layer}.mlp_out"] = partial(_whole, whole, f"mlp{layer}")
    return functions


def _heads(heads: Callable[[int, Block, Tensor], None], layer: int, block: Block, z: Tensor, _: str) -> None:
    heads(layer, block, z)


def _whole(whole: Callable[[str, Tensor], None], name: str, update: Tensor, _: str) -> None:
    whole(name, update)
