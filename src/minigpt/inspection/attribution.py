"""Direct logit attribution: what each head, each MLP and the embedding add to a logit or to a token's loss.

The final residual stream is a sum of updates, and a logit is linear in it once the division of the final norm is
frozen at its value. So each logit is a sum of one number for each component (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework). Only the direct path counts: what a head changes in later layers is
theirs here; see ablation and patching for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.inspection.capture import evaluation_mode
from minigpt.inspection.components import component_hooks
from minigpt.inspection.hooks import hooks, read_activations
from minigpt.inspection.lens import chunks_of
from minigpt.inspection.places import check_position
from minigpt.model.gpt import GPT, Block, PostNormBlock


@dataclass(frozen=True)
class Attribution:
    """The parts of one logit, or of a difference of two."""

    names: tuple[str, ...]
    """Components: embedding, position embedding, heads as 1.0 (layer 1, head 0), attn1 bias, mlp1, final_norm bias."""
    values: Tensor
    """(N,) float32 on the CPU; they sum to the logit, or to the difference."""


@dataclass(frozen=True)
class LossAttribution:
    """The parts of the loss of each token: losses = entropy + values.sum(0)."""

    names: tuple[str, ...]
    """Components, as in `Attribution`."""
    values: Tensor
    """(N, B, T) float32 on the CPU, in nats; a component with a negative value lowers the loss."""
    entropy: Tensor
    """(B, T) nats: entropy of the model's prediction, which belongs to no component."""
    losses: Tensor
    """(B, T) nats: cross-entropy of each token."""


def direct_logit_attribution(
    model: GPT,
    tokens: Tensor,
    token: int,
    minus: int | None = None,
    position: int = -1,
    document_ids: Tensor | None = None,
) -> Attribution:
    """What each component adds to the logit of `token`, or to its lead over `minus`, at one position.

    The norms' divisions are frozen at their values, as in TransformerLens (final norm, and those of post_norm blocks).

    Args:
        model: not modified.
        tokens: (1, T) ids.
        token: id of the token whose logit is taken apart.
        minus: id of a token whose logit is subtracted; a difference leaves out what raises all logits alike.
        position: the position whose next token is predicted, from the end if negative.
        document_ids: (1, T), as for `GPT.forward`.

    Raises:
        UserError: there is no such position.
    """
    position = check_position(position, tokens.shape[1])
    weight = model.head_weight
    row = _wide(weight[token]) - (0.0 if minus is None else _wide(weight[minus]))
    with evaluation_mode(model):
        final = _final_stream(model, tokens, document_ids)  # (1, T, C)
        parts = _contributions(model, tokens, document_ids, final, row.expand_as(final))
    return Attribution(tuple(parts), torch.stack([value[0, position] for value in parts.values()]).float().cpu())


def loss_attribution(model: GPT, tokens: Tensor, document_ids: Tensor | None = None) -> LossAttribution:
    """What each component adds to the loss of each token.

    With the prediction p, loss = H(p) + E_p[logit] - logit of the target, and both logits are sums over components. So
    a component's value is the mean over p of what it adds to a token's logit, minus what it adds to the target's.

    Args:
        model: not modified.
        tokens: (B, T + 1) ids.
        document_ids: (B, T) of the first T tokens, as for `GPT.forward`.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with evaluation_mode(model):
        final = _final_stream(model, inputs, document_ids)  # (B, T, C)
        gap = _prediction_gap(model, final, targets)
        parts = _contributions(model, inputs, document_ids, final, gap.direction)
    values = torch.stack(list(parts.values())).float().cpu()
    return LossAttribution(tuple(parts), values, gap.entropy.cpu(), gap.losses.cpu())


class _Gap(NamedTuple):
    direction: Tensor
    """(B, T, C): the mean over the prediction of the head's rows, minus the target's row."""
    entropy: Tensor
    losses: Tensor


def _prediction_gap(model: GPT, final: Tensor, targets: Tensor) -> _Gap:
    """All of a loss that needs the vocabulary, on some positions at a time."""
    rows = _wide(model.head_weight[: model.config.vocab_size])  # (V, C)
    hidden, flat = model.final_norm(final).flatten(0, 1), targets.flatten()
    chunks = list[tuple[Tensor, Tensor, Tensor]]()
    for where in chunks_of(len(flat), model):
        log_p = _wide(model.logits(hidden[where])).log_softmax(dim=-1)  # (n, V)
        p, target = log_p.exp(), flat[where]
        loss = -log_p.gather(-1, target[:, None])[:, 0]
        chunks.append((p @ rows - rows[target], -(p * log_p).sum(-1), loss))
    direction, entropy, losses = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return _Gap(direction.view_as(final), entropy.view_as(targets), losses.view_as(targets))


def _final_stream(model: GPT, tokens: Tensor, document_ids: Tensor | None) -> Tensor:
    """(B, T, C): the residual stream before the final norm."""
    name = f"blocks.{model.config.n_layer - 1}.resid_post"
    return read_activations(model, [name], tokens, document_ids)[name]


def _contributions(
    model: GPT, tokens: Tensor, document_ids: Tensor | None, final: Tensor, direction: Tensor
) -> dict[str, Tensor]:
    """(B, T) projection of each component on a (B, T, C) direction of the normalised stream, by name.

    A second forward pass projects each update while it is at hand, so none is kept: memory is that of one layer.
    """
    direction, norm_bias = _before_norm(model.final_norm, final, direction)
    parts = dict[str, Tensor]()

    def whole(name: str, update: Tensor) -> None:
        parts[name] = (direction * update).sum(-1)

    def heads(layer: int, block: Block, z: Tensor) -> None:
        toward, bias, proj = direction, None, block.attn.proj
        if isinstance(block, PostNormBlock):
            toward, bias = _before_norm(block.attn_norm, F.linear(z.flatten(-2), proj.weight, proj.bias), direction)
        # A direction in the heads' channels: the (B, T, H, C) outputs of all heads are never written out.
        values = ((toward @ _wide(proj.weight)).view_as(z) * z).sum(-1)  # (B, T, H)
        parts.update({f"{layer}.{head}": values[..., head] for head in range(z.shape[2])})
        if proj.bias is not None:
            bias = (toward * proj.bias).sum(-1) + (0.0 if bias is None else bias)
        if bias is not None:
            parts[f"attn{layer} bias"] = bias

    with hooks(model, component_hooks(model, model.config.n_layer, whole, heads)):
        model.hidden(tokens, document_ids)
    return parts if norm_bias is None else parts | {"final_norm bias": norm_bias}


def _before_norm(norm: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor | None]:
    """(direction', constant) with direction . norm(x) = direction' . x + constant, the division frozen at x.

    Args:
        norm: a LayerNorm or RMSNorm of the last axis.
        x: (B, T, C), what it reads.
        direction: (B, T, C).

    Returns:
        (B, T, C), and (B, T) from the norm's bias, or None where it has none.
    """
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    assert norm.eps is not None
    x, toward = _wide(x), direction * norm.weight
    if isinstance(norm, nn.RMSNorm):
        return toward * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt(), None
    # LayerNorm subtracts the mean of x, so the mean of the direction reads nothing.
    toward = toward - toward.mean(-1, keepdim=True)
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    return toward * scale, None if norm.bias is None else (direction * norm.bias).sum(-1)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: sums of hundreds of parts in 16 bits would not be exact to 1e-4."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
