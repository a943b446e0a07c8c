"""Taps inside attention, between the projections and the heads' outputs.

The fused kernel never stores scores and weights. A hook on `Attention` writes them out beside it, and attends in its
place once one of them is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inspection.taps import Remove, Tap, run_taps
from minigpt.model.attention import Attention
from minigpt.model.cache import LayerCache
from minigpt.model.gpt import GPT, Block
from minigpt.model.variants.attend import AttentionSpec, attend, attention_scores, weights_of
from minigpt.model.variants.kernels import repeat_heads
from minigpt.model.variants.similarities import Linear


class AttentionTaps:
    """The one hook of a layer for everything inside attention, so that several taps build on one another."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.taps: dict[str, list[Tap]] = {"rot_q": [], "rot_k": [], "attn_scores": [], "pattern": [], "used": []}
        """By the activation; `used` are the weights after all replacements, and only read."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor | None:
        """Attention from the first replaced activation on, (B, H, T, D); None if all were only read."""
        query, new_query = self._run_by_token("rot_q", query)
        key, new_key = self._run_by_token("rot_k", key)
        dropout = self.attention.dropout if self.attention.training else 0.0
        # What is only shown needs no gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.taps["attn_scores"] or self.taps["pattern"])):
            replaced = None
            if any(self.taps[name] for name in ("attn_scores", "pattern", "used")):
                scores, new_scores = self._run("attn_scores", attention_scores(query, key, spec))
                weights, new_weights = self._run("pattern", weights_of(scores, spec["similarity"]))
                self._run("used", weights.detach())
                if new_scores or new_weights:
                    weights = F.dropout(weights, dropout).to(value.dtype)
                    replaced = weights @ repeat_heads(value, query.shape[1])
        if replaced is not None:
            return replaced
        return attend(query, key, value, **spec, dropout=dropout) if new_query or new_key else None

    def _run(self, name: str, x: Tensor) -> tuple[Tensor, bool]:
        return run_taps(self.taps[name], x)

    def _run_by_token(self, name: str, x: Tensor) -> tuple[Tensor, bool]:
        """The same for taps that see (B, T, H, D), as all but the kernels do."""
        x, is_new = run_taps(self.taps[name], x.transpose(1, 2))
        return x.transpose(1, 2), is_new


def on_attention(attention: Attention, name: str, tap: Tap) -> Remove:
    """Tap rot_q, rot_k, attn_scores, pattern or used."""
    shared = next((hook for hook in attention.hooks if isinstance(hook, AttentionTaps)), None)
    if shared is None:
        shared = AttentionTaps(attention)
        attention.hooks.append(shared)
    shared.taps[name].append(tap)
    refusing = attention.register_forward_pre_hook(partial(_refuse_sums, name))

    def remove() -> None:
        refusing.remove()
        shared.taps[name].remove(tap)
        if not any(shared.taps.values()):
            attention.hooks.remove(shared)

    return remove


def _refuse_sums(name: str, attention: Attention, arguments: tuple[Any, ...]) -> None:
    cache = arguments[-1]
    if isinstance(attention.similarity, Linear) and isinstance(cache, LayerCache) and cache.summed:
        what = "attention weights" if name == "used" else f"attn.{name}"
        raise UserError(
            f"{what}: linear attention keeps sums instead of keys while it generates: read them in one pass over "
            "the whole text, as by run_with_cache"
        )


def used_weights(model: GPT, layer: int, read: Callable[[Tensor], None]) -> Remove:
    """Call `read` with a layer's (B, H, T, S) weights as attention uses them, after all replacements."""
    block = model.blocks[layer]
    assert isinstance(block, Block)
    return on_attention(block.attn, "used", read)
