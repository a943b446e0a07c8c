"""What made each prediction in a text: the logit lens, the loss of each component, and the loss without each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from minigpt.data.tokenizers.base import Tokenizer, decode
from minigpt.inspection.ablation import ablation_by_token
from minigpt.inspection.attribution import loss_attribution
from minigpt.inspection.capture import evaluation_mode
from minigpt.inspection.lens import logit_lens
from minigpt.model.gpt import GPT

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Causes:
    """Causes of the T predictions in a text. Texts of tokens are untrusted: escape them before display."""

    targets: tuple[str, ...]
    """Text of the token that each position predicts."""
    is_open: bool
    """Whether the text ends with its last shown token. The last target is then the token that the model prefers."""
    losses: Floats
    """(T,) cross-entropy of each target, in nats."""
    best: tuple[tuple[str, ...], ...]
    """(n_layer + 1) x T texts: the likeliest next token after the embedding and after each block (logit lens)."""
    best_probabilities: Floats
    """(n_layer + 1, T): their probabilities."""
    target_probabilities: Floats
    """(n_layer + 1, T): the probability of the target in the same layers."""
    components: tuple[str, ...]
    """Names of what writes to the residual stream, heads as LAYER.HEAD; see `loss_attribution`."""
    attribution: Floats
    """(n_components, T) nats: negative where a component lowers the loss of the target."""
    entropy: Floats
    """(T,) nats, of the prediction. The loss is the entropy and the sum of the attribution."""
    ablation: Floats | None
    """(n_layer, n_head, T) nats: loss with a head zeroed, minus the loss; None if not computed."""


def find_causes(
    model: GPT,
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    following: int | None = None,
    *,
    with_ablation: bool = True,
) -> Causes:
    """Run the tools on one text.

    Args:
        model: not modified.
        tokenizer: decodes tokens for display.
        tokens: T ids, at most the model's `context_length`.
        following: id of the token after them, or None where the text ends. The model's likeliest token takes its place,
            so that one can ask why the model would continue like that.
        with_ablation: also ablate each head, which costs about half a forward pass for each.
    """
    device, is_open = next(model.parameters()).device, following is None
    with evaluation_mode(model):
        text = torch.tensor([list(tokens)], device=device)  # (1, T)
        lens = logit_lens(model, text)
        if following is None:
            following = int(model.logits(model.final_norm(lens.stream[-1, :, -1])).argmax())
        whole = torch.cat([text, torch.tensor([[following]], device=device)], dim=1)  # (1, T + 1)
        read = lens.read(whole[:, 1:], 1)
        found = loss_attribution(model, whole)
        without = ablation_by_token(model, whole)[:, :, 0] if with_ablation else None
        return Causes(
            targets=tuple(decode(tokenizer, [token]) for token in whole[0, 1:].tolist()),
            is_open=is_open,
            losses=_array(found.losses[0]),
            best=tuple(tuple(decode(tokenizer, [token]) for token in layer) for layer in read.ids[:, 0, :, 0].tolist()),
            best_probabilities=_array(read.probabilities[:, 0, :, 0]),
            target_probabilities=_array(read.log_probabilities[:, 0].exp()),
            components=tuple(found.names),
            attribution=_array(found.values[:, 0]),
            entropy=_array(found.entropy[0]),
            ablation=None if without is None else _array(without),
        )


def _array(values: torch.Tensor) -> Floats:
    return values.detach().float().cpu().numpy()
