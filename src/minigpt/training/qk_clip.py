"""QK-clip: scales down the queries and keys of heads whose attention scores exceed a limit (Kimi Team 2025).

Scores that grow without bound saturate the softmax and make training unstable, most of all under Muon. After each step,
the weights of a head whose largest score S in that step exceeded the limit are scaled so that it would have been the
limit: https://arxiv.org/abs/2507.20534. Other heads are left as they are.
"""

from __future__ import annotations

from functools import partial

import lightning as L
import torch
from torch import Tensor

from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import AttentionSpec, attention_scores, query_chunks
from minigpt.training.distributed import all_reduce


class QKClip:
    """Observes the largest score of each head in the forward passes of a step, and clips after it.

    It has no state between steps, so checkpoints need nothing of it.
    """

    def __init__(self, model: GPT, limit: float) -> None:
        self.limit = limit
        self.layers = [module for module in model.modules() if isinstance(module, Attention)]
        self.largest = torch.zeros(len(self.layers), model.config.n_head)

    def attach(self) -> None:
        """Start to observe, once the model is on its device."""
        self.largest = self.largest.to(self.layers[0].qkv.weight.device)
        for number, layer in enumerate(self.layers):
            layer.hooks.append(partial(self.observe, number))

    @torch.no_grad()
    def observe(self, number: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> None:
        """Note the largest scores of a layer in training; validation, samples and probes do not count."""
        if not self.layers[number].training:
            return
        # Without ALiBi's bias and the softcap, which the weights cannot change.
        plain: AttentionSpec = {**spec, "key_bias": None, "softcap": None}
        if query.device.type == "cpu" and self._is_bounded(query, key, plain):
            return
        for queries in query_chunks(query.shape[2]):  # the fused kernel does not tell its largest
            found = attention_scores(query, key, plain, queries).amax(dim=(0, 2, 3)).to(self.largest.dtype)  # (H,)
            self.largest[number].copy_(torch.maximum(self.largest[number], found))

    def _is_bounded(self, query: Tensor, key: Tensor, spec: AttentionSpec) -> bool:
        """Whether |q||k| already keeps all scores below the limit, which saves their computation."""
        factors = spec["similarity"].score_factors(query, key)
        longest = [torch.linalg.vector_norm(each, dim=-1).max() for each in (factors.query, factors.key)]
        return float(longest[0] * longest[1]) * factors.scale <= self.limit

    @torch.no_grad()
    def clip(self, trainer: L.Trainer, *, taken: bool) -> None:
        """Scale the weights by the largest scores of all ranks in this step, unless the step was skipped."""
        largest = self.largest.clone()
        self.largest.zero_()
        if not taken:
            return
        largest = all_reduce(trainer, largest, "max")
        # 1 for heads below the limit: multiplying by 1 changes no bit. NaN-free, as 0 gives inf.
        factors = (self.limit / largest).clamp(max=1.0)  # (n_layer, H)
        for layer, factor in zip(self.layers, factors, strict=True):
            rows = row_factors(layer, factor)
            for weight in (layer.qkv.weight, layer.qkv.bias):
                if weight is not None:
                    weight.mul_(rows.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)))


def row_factors(layer: Attention, factor: Tensor) -> Tensor:
    """The factor of each row of a layer's qkv projection, so that the scores of head h shrink by factor[h].

    Queries and keys take its root each. A key head that several query heads share stays as it is: the queries then
    take all of it, as for the shared rotary key of Kimi's MLA.
    """
    n_query, n_key, n_value = layer.n_projected
    is_shared = n_query > n_key
    query = factor if is_shared else factor.sqrt()
    key = torch.ones_like(factor[:n_key]) if is_shared else factor.sqrt()
    heads = torch.cat([query[:n_query], key, torch.ones_like(factor[:n_value])])
    return heads.repeat_interleave(layer.head_dim)
