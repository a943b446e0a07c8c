"""Ablation: how much the loss of a text changes without a head, an MLP or a layer. It measures a causal effect."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inspection.capture import evaluation_mode
from minigpt.inspection.hooks import hooks, read_activations
from minigpt.inspection.lens import chunks_of
from minigpt.model.gpt import GPT

Kind = Literal["zero", "mean", "resample"]
"""What replaces an output: zeros; its mean over the windows and positions of the text; or the output in another window,
at the same position. Mean and resample keep the model closer to what it was trained on (Chan et al. 2022, causal
scrubbing, https://www.alignmentforum.org/posts/JvZhhzycHu2Yd57RN)."""
KINDS: tuple[Kind, ...] = get_args(Kind)
UNKNOWN = -1
"""Id after the end of a text that is shorter than the others in a batch: its losses are NaN, and count nowhere."""
TOKENS = 1024
"""Tokens per forward pass, unless one window is longer."""
_SITE = re.compile(r"(?:(?P<layer>\d{1,6})\.(?P<head>\d{1,6})|(?P<part>mlp|attn|layer)(?P<number>\d{1,6}))", re.ASCII)


@dataclass(frozen=True)
class Part:
    """Heads, MLPs and attentions that are ablated together."""

    name: str
    heads: tuple[tuple[int, int], ...] = ()
    """(layer, head): the head's output before the output projection."""
    attentions: tuple[int, ...] = ()
    """Layers whose attention adds nothing to the residual stream of its own: bias and norm after it included."""
    mlps: tuple[int, ...] = ()
    """The same of MLPs."""

    @property
    def first_layer(self) -> int:
        """The first layer that changes."""
        return min([layer for layer, _ in self.heads] + [*self.attentions, *self.mlps])

    @classmethod
    def of(cls, name: str, n_layer: int, n_head: int) -> Part:
        """`1.0` (layer 1, head 0), `mlp0`, `attn0`, `layer0` (attention and MLP), or several: `1.0,1.3,mlp0`.

        Raises:
            UserError: it is none of these, or the model has no such layer or head.
        """
        heads, attentions, mlps = list[tuple[int, int]](), list[int](), list[int]()
        for word in name.split(","):
            if (match := _SITE.fullmatch(word.strip())) is None:
                raise UserError(f"ablate: {word.strip()!r} is not a head as 1.0, nor mlp0, attn0 or layer0")
            layer = int(match["layer"] or match["number"])
            if layer >= n_layer:
                raise UserError(f"ablate: {word.strip()}: there are layers 0 to {n_layer - 1}")
            if match["head"] is None:
                attentions += [layer] * (match["part"] != "mlp")
                mlps += [layer] * (match["part"] != "attn")
            elif int(match["head"]) >= n_head:
                raise UserError(f"ablate: {word.strip()}: there are heads 0 to {n_head - 1}")
            else:
                heads.append((layer, int(match["head"])))
        name = ",".join(word.strip() for word in name.split(","))
        return cls(name, tuple(heads), tuple(attentions), tuple(mlps))


@dataclass(frozen=True, eq=False)
class Ablation:
    """How the loss of each token changes without each part of a model."""

    parts: tuple[str, ...]
    kind: Kind
    changes: Tensor
    """(n_parts, B, T) float32 on the CPU: loss without the part minus loss with it, in nats. Positive: it helps. NaN
    after the end of a shorter text."""
    losses: Tensor
    """(B, T) losses of the whole model, in nats."""

    @property
    def mean(self) -> Tensor:
        """(n_parts,) float64, nats per token."""
        return self.changes.double().nanmean(dim=(1, 2))

    @property
    def spread(self) -> Tensor:
        """(n_parts,) standard deviation of the windows' means; NaN for one window."""
        windows = self.changes.double().nanmean(dim=2)
        return windows.std(dim=1) if windows.shape[1] > 1 else torch.full_like(windows[:, 0], torch.nan)


def ablation(
    model: GPT,
    tokens: Tensor,
    *,
    kind: Kind = "zero",
    parts: Sequence[str] | None = None,
    positions: slice = slice(None),
) -> Ablation:
    """The loss of each token without each part, minus the loss of the whole model (Michel et al. 2019).

    https://arxiv.org/abs/1905.10650. Other heads may compensate, so a small change does not prove a head unused.

    Args:
        model: not modified.
        tokens: (B, T + 1) ids: B windows of a text; UNKNOWN after the end of a shorter one.
        kind: what replaces the output of a part; see `Kind`. The other window of each is drawn with a fixed seed.
        parts: names as for `Part.of`; every head on its own when not given, in the order of the layers.
        positions: which of the T predictions are returned.

    Raises:
        UserError: a part that the model does not have, or resample ablation of a single window.
    """
    n_layer, n_head = model.config.n_layer, model.config.n_head
    names = [f"{layer}.{head}" for layer in range(n_layer) for head in range(n_head)] if parts is None else parts
    wanted = [Part.of(name, n_layer, n_head) for name in names]
    B, T = tokens.shape[0], tokens.shape[1] - 1
    if kind == "resample" and B < 2:
        raise UserError(
            f"ablation=resample: takes outputs from another window, but the text has one, of {T} tokens: give a longer "
            "text, or take mean"
        )
    other, rows = _other_windows(B), rows_per_pass(T)
    means = _mean_outputs(model, tokens, rows) if kind == "mean" else None
    changes, whole = list[Tensor](), list[Tensor]()
    for start in range(0, B, rows):
        with evaluation_mode(model):
            stand_in = means
            if kind == "resample":
                stand_in = _outputs(model, tokens[other[start : start + rows]])
            found = _changes(model, tokens[start : start + rows], wanted, stand_in, positions)
        changes.append(found[1:] - found[0])
        whole.append(found[0])
    return Ablation(tuple(part.name for part in wanted), kind, torch.cat(changes, dim=1), torch.cat(whole))


def ablation_by_token(model: GPT, tokens: Tensor) -> Tensor:
    """Zero ablation of each head, by token: (B, T + 1) ids to (n_layer, n_head, B, T) nats."""
    changes = ablation(model, tokens).changes
    return changes.unflatten(0, (model.config.n_layer, model.config.n_head))


def losses(model: GPT, tokens: Tensor) -> Tensor:
    """Cross-entropy of each prediction: (B, T + 1) ids to (B, T) losses in nats, NaN for a target of UNKNOWN."""
    return _losses_at(model, model.hidden(_inputs(tokens)), tokens[:, 1:])


def _inputs(tokens: Tensor) -> Tensor:
    # Any id will do after the end of a text: attention is causal.
    return tokens[:, :-1].clamp(min=0)


def _other_windows(n: int) -> Tensor:
    """For each of n windows another one: a random cycle through all, so that none is its own."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order.roll(1)[order.argsort()]


@contextlib.contextmanager
def without_head(model: GPT, layer: int, head: int, instead: Tensor | float = 0.0) -> Iterator[None]:
    """Replace the output of one head before the output projection: zero ablation by default.

    Args:
        model: restored afterwards.
        layer: from 0.
        head: from 0.
        instead: broadcast to (B, T, D).
    """

    def ablate(z: Tensor, _: str) -> Tensor:
        z = z.clone()
        z[..., head, :] = instead
        return z

    with hooks(model, {f"blocks.{layer}.attn.z": ablate}):
        yield


def _outputs(model: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """What parts may take instead of their own output, by the names of `hooks`, in a pass of (B, T + 1) ids."""
    return read_activations(model, ["blocks.*.attn.z", "blocks.*.attn_out", "blocks.*.mlp_out"], _inputs(tokens))


def _mean_outputs(model: GPT, tokens: Tensor, rows: int) -> dict[str, Tensor]:
    """Their means over all windows and positions."""
    sums = dict[str, Tensor]()
    for start in range(0, len(tokens), rows):
        some = tokens[start : start + rows]
        with evaluation_mode(model):
            found = _outputs(model, some)
        is_known = some[:, 1:].flatten() != UNKNOWN
        for name, output in found.items():
            total = output.flatten(0, 1)[is_known].sum(0, dtype=torch.float32)
            sums[name] = sums[name] + total if name in sums else total
    n, dtype = int((tokens[:, 1:] != UNKNOWN).sum()), next(model.parameters()).dtype
    return {name: total.div(n).to(dtype) for name, total in sums.items()}


def _changes(
    model: GPT, tokens: Tensor, parts: Sequence[Part], instead: Mapping[str, Tensor] | None, positions: slice
) -> Tensor:
    """(1 + n_parts, B, T) losses on the CPU: of the whole model, then without each part."""
    targets = tokens[:, 1:][:, positions]
    inputs = _block_inputs(model, _inputs(tokens))
    found = [_losses_from(model, 0, inputs, targets, positions)]
    for part in parts:
        with _ablated(model, part, instead):
            found.append(_losses_from(model, part.first_layer, inputs, targets, positions))
    return torch.stack(found)


@contextlib.contextmanager
def _ablated(model: GPT, part: Part, instead: Mapping[str, Tensor] | None) -> Iterator[None]:
    replaced = [f"blocks.{layer}.attn_out" for layer in part.attentions]
    replaced += [f"blocks.{layer}.mlp_out" for layer in part.mlps]

    def replace(output: Tensor, name: str) -> Tensor:
        return torch.zeros_like(output) if instead is None else instead[name].expand_as(output)

    with contextlib.ExitStack() as stack:
        for layer, head in part.heads:
            value = 0.0 if instead is None else instead[f"blocks.{layer}.attn.z"][..., head, :]
            stack.enter_context(without_head(model, layer, head, value))
        stack.enter_context(hooks(model, dict.fromkeys(replaced, replace)))
        yield


def _block_inputs(model: GPT, tokens: Tensor) -> list[tuple[Any, ...]]:
    """Arguments of each block in a forward pass: layers before an ablated part need not run again."""
    inputs = list[tuple[Any, ...]]()
    with contextlib.ExitStack() as stack:
        for block in model.blocks:
            handle = block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
            stack.callback(handle.remove)
        model.hidden(tokens)
    return inputs


def _losses_from(model: GPT, layer: int, inputs: list[tuple[Any, ...]], targets: Tensor, positions: slice) -> Tensor:
    """(B, T) losses at some positions, computed from the input of a layer on."""
    x = inputs[layer][0]
    for block, (_, *others) in zip(model.blocks[layer:], inputs[layer:], strict=True):
        x = block(x, *others)
    return _losses_at(model, model.final_norm(x[:, positions]), targets).cpu()


def _losses_at(model: GPT, x: Tensor, targets: Tensor) -> Tensor:
    """(B, T, C) of `GPT.hidden` and (B, T) targets -> (B, T) nats, without the logits of all positions at once."""
    hidden, flat = x.flatten(0, 1), targets.flatten()
    each = [_cross_entropy(model.logits(hidden[where]), flat[where]) for where in chunks_of(len(flat), model)]
    return torch.cat(each).view(targets.shape)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(n, V) logits and (n,) targets -> (n,) nats."""
    each = F.cross_entropy(logits.float(), targets.clamp(min=0), reduction="none")
    return each.masked_fill(targets == UNKNOWN, torch.nan)


def rows_per_pass(T: int) -> int:
    """Windows of T tokens in one forward pass."""
    return max(1, TOKENS // max(T, 1))
