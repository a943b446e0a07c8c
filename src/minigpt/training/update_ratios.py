"""Update-to-weight ratio and gradient norm of each part of the model, from a sample of its weights."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from minigpt.model.gpt import GPT
from minigpt.training.distributed import local

SAMPLED = 1024
"""Weights of each matrix that are compared before and after a step: the ratio is then known to a few percent."""


class UpdateRatios:
    """|new - old| / |old| of the matrices of each part: the embeddings, each layer's attention and MLP, the head.

    A step that changes weights by about a thousandth is usual for AdamW on large models; small models and Muon change
    them by a few hundredths. No copy of the weights is made. Of sharded weights, this device's shard is sampled.
    """

    def __init__(self, model: GPT) -> None:
        self.parts: defaultdict[str, list[torch.nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                self.parts[part_of(name)].append(parameter)

    @torch.no_grad()
    def sample(self) -> dict[str, Tensor]:
        """A sample of each part's weights, in one tensor for each."""
        return {
            part: torch.cat([_sampled(local(each.detach())) for each in matrices])
            for part, matrices in self.parts.items()
        }

    @torch.no_grad()
    def ratios_and_gradients(self, before: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        """Each part's ratio for the step since the sample `before`, and its gradient's norm, as in `gradients`."""
        pairs = [(before[part].float(), new.float()) for part, new in self.sample().items()]
        sizes = [norm for old, new in pairs for norm in ((new - old).norm(), old.norm())]
        gradients = self._gradient_norms()
        # One transfer, hence one synchronisation with the device, for all numbers.
        values = torch.stack([*sizes, *gradients.values()]).tolist()
        changes = zip(self.parts, values[: len(sizes) : 2], values[1 : len(sizes) : 2], strict=True)
        ratios = {part: change / size if size else 0.0 for part, change, size in changes}
        return ratios, self._by_part(gradients, values[len(sizes) :])

    @torch.no_grad()
    def gradients(self) -> dict[str, float]:
        """Norm of each part's gradient as it is now, thus clipped; 0 where there is none."""
        norms = self._gradient_norms()
        return self._by_part(norms, torch.stack([*norms.values()]).tolist() if norms else [])

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Norm of each part's gradient, on the device; without parts that have none."""
        found = {
            part: [local(each.grad) for each in matrices if each.grad is not None]
            for part, matrices in self.parts.items()
        }
        return {part: torch.nn.utils.get_total_norm(each).float() for part, each in found.items() if each}

    def _by_part(self, norms: dict[str, Tensor], values: list[float]) -> dict[str, float]:
        return dict.fromkeys(self.parts, 0.0) | dict(zip(norms, values, strict=True))


def part_of(name: str) -> str:
    """blocks.3.attn.qkv.weight -> blocks.3.attn; lm_head.weight -> lm_head."""
    words = name.split(".")
    return ".".join(words[: 3 if words[0] == "blocks" else 1])


def _sampled(weight: Tensor) -> Tensor:
    # An odd stride, so that it does not always meet the same column.
    flat = weight.flatten()
    return flat[:: max(1, flat.numel() // SAMPLED) | 1]
