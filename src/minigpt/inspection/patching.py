"""Patching: which activations of a clean prompt restore its answer in a corrupted one.

Activation patching (Meng et al. 2022, https://arxiv.org/abs/2202.05262; Heimersheim and Nanda 2024,
https://arxiv.org/abs/2404.15255) copies one activation of the clean prompt into the corrupted one and runs the rest of
the model. Attribution patching estimates all such patches from gradients (Nanda 2023,
https://www.neelnanda.io/mechanistic-interpretability/attribution-patching). Path patching copies what one head adds
into the input of one later head only (Wang et al. 2022, https://arxiv.org/abs/2211.00593; Goldowsky-Dill et al. 2023,
https://arxiv.org/abs/2304.05969).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inspection.capture import evaluation_mode
from minigpt.inspection.hooks import HookFunction, hook_names, hooks, read_activations
from minigpt.inspection.places import check_head, check_position
from minigpt.model.gpt import GPT

MOST_TOKENS = 8192
"""Maximum number of tokens in a forward pass, of all patched copies of the prompt together."""
MOST_NUMBERS = 2**25
"""Maximum number of logits, and of attention weights of a layer that is patched, in a forward pass: 128 MiB."""


class Site(NamedTuple):
    """A kind of activation, patched in each layer."""

    hook: str
    """Name of the hook within a block."""
    axes: Mapping[str, int]
    """What each patch takes from the layer, one head or one position: its name -> axis of the hooked tensor."""


SITES: Mapping[str, Site] = {
    "resid_pre": Site("resid_pre", {"position": 1}),
    "attn_out": Site("attn_out", {"position": 1}),
    "mlp_out": Site("mlp_out", {"position": 1}),
    "head": Site("attn.z", {"head": 2}),
    "head_position": Site("attn.z", {"head": 2, "position": 1}),
    "pattern": Site("attn.pattern", {"head": 1}),
}
"""What is patched: the residual stream, or the output of attention or MLP, at one position; the output of a head at all
positions or at one; the attention weights of a head."""
RECEIVERS: Mapping[str, Site] = {
    "q": Site("attn.rot_q", {"head": 2}),
    "k": Site("attn.rot_k", {"head": 2}),
    "v": Site("attn.v", {"head": 2}),
}
"""Where a path can end, besides the logits. Queries and keys as the scores use them, after the QK-norm: one over all
heads would carry a patch of one head into the others."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """A clean and a corrupted prompt of equal length, and the metric: how much the model prefers the clean answer.

    Raises:
        UserError: the prompts have unequal numbers of tokens, or have no such position.
    """

    clean: Tensor
    """(1, T) ids, after which the model predicts the answer."""
    corrupted: Tensor
    """(1, T) ids, changed so that it does not."""
    answer: int
    """Token id. The metric is its logit, less that of `minus`."""
    minus: int | None = None
    """Token id, such as the answer to the corrupted prompt."""
    position: int = -1
    """Where the logits are read; the last position by default."""

    def __post_init__(self) -> None:
        n_clean, n_corrupted = (prompt.shape[-1] for prompt in (self.clean, self.corrupted))
        if n_clean != n_corrupted:
            raise UserError(
                f"the clean prompt has {n_clean} token{'s' * (n_clean != 1)} and the corrupted one {n_corrupted}: "
                "patching needs as many in both; replace words by words of as many tokens"
            )
        check_position(self.position, n_clean)

    def metric(self, logits: Tensor) -> Tensor:
        """(N, V) logits at `position` -> (N,): logit difference of answer and minus, or the answer's logit."""
        answer = logits[:, self.answer]
        return answer if self.minus is None else answer - logits[:, self.minus]


@dataclass(frozen=True, eq=False)
class Patching:
    """The metric of a `Contrast` under each patch."""

    clean: float
    """Metric of the clean prompt."""
    corrupted: float
    """Metric of the corrupted prompt without a patch."""
    values: Mapping[str, Tensor]
    """What was patched -> metric under each patch, float32 on the CPU; NaN where there is no such patch."""

    def effect(self, name: str) -> Tensor:
        """The metric in units of what was corrupted: 0 as the corrupted prompt, 1 as the clean one."""
        return (self.values[name] - self.corrupted) / (self.clean - self.corrupted)


def activation_patching(model: GPT, contrast: Contrast, sites: Sequence[str] = tuple(SITES)) -> Patching:
    """Copy each activation of the clean prompt into the corrupted one, one at a time, and measure the metric.

    Args:
        model: not modified.
        contrast: prompts and metric.
        sites: names in SITES.

    Returns:
        For each site (n_layer, T), (n_layer, n_head) or (n_layer, n_head, T), equal to TransformerLens'
        `get_act_patch_*`.

    Raises:
        UserError: both prompts have the same metric, it is NaN or infinite, or there is no such site.
    """
    wanted = _named(sites)
    with evaluation_mode(model):
        clean, corrupted = _ends(model, contrast)
        values = {}
        for name, (hook, axes) in wanted.items():
            layers = []
            for layer in _layers(model, hook):
                activation = _capture(model, contrast.clean, [layer])[layer]
                layers.append(_sweep(model, contrast, layer, axes, activation))
            values[name] = torch.stack(layers)
    return Patching(clean, corrupted, values)


def attribution_patching(
    model: GPT, contrast: Contrast, sites: Sequence[str] = tuple(SITES), *, steps: int = 4
) -> Patching:
    """Estimate `activation_patching` to first order: the metric's gradient times clean minus corrupted activation.

    A few forward and backward passes instead of one pass for each patch. The gradient is the mean of those at `steps`
    points on the way from the corrupted to the clean embedding (integrated gradients: Hanna et al. 2024,
    https://arxiv.org/abs/2403.17806): at the corrupted prompt alone, a saturated softmax has almost none. With
    similarity hard, the gradient is that of the softmax.

    Args:
        model: not modified.
        contrast: prompts and metric.
        sites: names in SITES.
        steps: 1 is the estimate at the corrupted prompt alone (Nanda 2023), as in TransformerLens.

    Returns and raises: as `activation_patching`.
    """
    wanted = _named(sites)
    with evaluation_mode(model):
        clean, corrupted = _ends(model, contrast)
        changes: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for names in _groups(model, contrast, list(dict.fromkeys(site.hook for site in wanted.values()))):
            products = _products(model, contrast, names, steps)
            for name, (hook, axes) in wanted.items():
                layers = [layer for layer in _layers(model, hook) if layer in products]
                changes[name] += [_summed(products[layer], list(axes.values())) for layer in layers]
        values = {name: corrupted + torch.stack(each) for name, each in changes.items()}
    return Patching(clean, corrupted, values)


def path_patching(model: GPT, contrast: Contrast, sender: tuple[int, int], *, through_mlps: bool = False) -> Patching:
    """Copy the clean output of one head into the input of each later head alone, or into the logits alone.

    All other heads, and the MLPs unless `through_mlps`, keep their corrupted outputs on the way to the receiver; after
    it, everything is computed again. So a path that matters is a connection of a circuit, not a mere correlation.

    Args:
        model: not modified.
        contrast: prompts and metric.
        sender: layer and head, from 0.
        through_mlps: whether a path may pass through MLPs, as in Wang et al. 2022; else only the residual stream, as
            in TransformerLens' get_act_patch_direct_path.

    Returns:
        "q", "k" and "v", as far as the similarity has them: (n_layer, n_head), or (n_layer, n_kv_head) for keys and
        values; NaN in the sender's layer and before it. "logits": (), the path straight to the output.

    Raises:
        UserError: there is no such head, or both prompts have the same metric.
    """
    layer, head = sender
    n_layer, n_head = model.config.n_layer, model.config.n_head
    check_head(model, layer, head, "sender")
    known = hook_names(model)
    receivers = {name: site for name, site in RECEIVERS.items() if f"blocks.0.{site.hook}" in known}
    with evaluation_mode(model):
        clean, corrupted = _ends(model, contrast)
        heads, mlps = _layers(model, "attn.z"), _layers(model, "mlp_out")
        frozen = _capture(model, contrast.corrupted, heads + ([] if through_mlps else mlps))
        sent = frozen[heads[layer]].clone()
        sent[:, :, head] = _capture(model, contrast.clean, [heads[layer]])[heads[layer]][:, :, head]
        writes: dict[str, HookFunction] = {}
        for name, activation in (frozen | {heads[layer]: sent}).items():
            writes[name] = partial(_replace, activation)
        received: dict[str, Tensor] = {}
        for hook, _ in receivers.values():
            writes |= dict.fromkeys(_layers(model, hook)[layer + 1 :], partial(_keep, received))
        values = {"logits": _metrics(model, contrast, contrast.corrupted, writes)[0].cpu()}
        for name, (hook, axes) in receivers.items():
            n_receivers = model.config.kv_heads if name in {"k", "v"} else n_head
            effects = torch.full((n_layer, n_receivers), torch.nan)
            for later, each in enumerate(_layers(model, hook)[layer + 1 :], start=layer + 1):
                effects[later] = _sweep(model, contrast, each, axes, received[each])
            values[name] = effects
    return Patching(clean, corrupted, values)


def _named(sites: Sequence[str]) -> dict[str, Site]:
    for name in sites:
        if name not in SITES:
            raise UserError(f"site {name}: can patch {', '.join(SITES)}")
    return {name: SITES[name] for name in sites}


def _layers(model: GPT, hook: str) -> list[str]:
    return [f"blocks.{layer}.{hook}" for layer in range(model.config.n_layer)]


def _ends(model: GPT, contrast: Contrast) -> tuple[float, float]:
    """The metric of both prompts."""
    clean, corrupted = (
        float(_metrics(model, contrast, tokens, {})[0]) for tokens in (contrast.clean, contrast.corrupted)
    )
    if not math.isfinite(clean - corrupted):
        raise UserError(
            "the model gives NaN or infinite logits after the prompts: it has diverged; take an earlier checkpoint"
        )
    if not abs(clean - corrupted) > 1e-6 * max(1.0, abs(clean)):
        raise UserError(
            f"both prompts give {'a logit' if contrast.minus is None else 'a logit difference'} of {clean:.4g}: there "
            "is nothing to restore; choose a corrupted prompt with another answer"
        )
    return clean, corrupted


def _metrics(model: GPT, contrast: Contrast, tokens: Tensor, writes: Mapping[str, HookFunction]) -> Tensor:
    """(N, T) ids -> (N,) float32 metrics under hooks."""
    with hooks(model, writes):
        x = model.hidden(tokens.to(next(model.parameters()).device))
    return contrast.metric(model.logits(x[:, contrast.position]).float())


def _capture(model: GPT, tokens: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    return read_activations(model, names, tokens.to(next(model.parameters()).device))


def _keep(found: dict[str, Tensor], tensor: Tensor, name: str) -> None:
    found[name] = tensor


def _replace(activation: Tensor, tensor: Tensor, name: str) -> Tensor:
    return activation


def _sweep(model: GPT, contrast: Contrast, name: str, axes: Mapping[str, int], activation: Tensor) -> Tensor:
    """Metric of the corrupted prompt with each part of an activation copied into it, in the order of the axes."""
    sizes = [activation.shape[axis] for axis in axes.values()]
    places = torch.ones(sizes, device=activation.device).nonzero()  # (n, number of axes)
    metrics = []
    for some in places.split(_most_rows(model, contrast)):
        tokens = contrast.corrupted.expand(len(some), -1)  # a row for each patch
        write = partial(_patch, activation, list(axes.values()), some)
        metrics.append(_metrics(model, contrast, tokens, {name: write}))
    return torch.cat(metrics).view(sizes).cpu()


def _most_rows(model: GPT, contrast: Contrast) -> int:
    T = contrast.clean.shape[-1]
    n_numbers = max(model.config.n_head * T * T, model.config.vocab_size or 1)
    return max(1, min(MOST_TOKENS // T, MOST_NUMBERS // n_numbers))


def _patch(activation: Tensor, axes: Sequence[int], places: Tensor, tensor: Tensor, name: str) -> Tensor:
    """Copy one part of the activation into each row: part places[n] into row n."""
    at: list[slice | Tensor] = [slice(None)] * tensor.ndim
    at[0] = torch.arange(len(places), device=tensor.device)
    for axis, where in zip(axes, places.T, strict=True):
        at[axis] = where
    patched = tensor.clone()
    patched[tuple(at)] = activation.expand_as(tensor)[tuple(at)]
    return patched


def _groups(model: GPT, contrast: Contrast, hooked: Sequence[str]) -> list[list[str]]:
    """Activations that share their forward and backward passes: all but the weights, then these."""
    groups = [[name for hook in hooked if hook != "attn.pattern" for name in _layers(model, hook)]]
    if "attn.pattern" in hooked:
        patterns = _layers(model, "attn.pattern")
        # One layer at a time where the weights of all would be too many.
        n_weights = len(patterns) * model.config.n_head * contrast.clean.shape[-1] ** 2
        groups += [[each] for each in patterns] if n_weights > MOST_NUMBERS else [patterns]
    return [group for group in groups if group]


def _products(model: GPT, contrast: Contrast, names: Sequence[str], steps: int) -> dict[str, Tensor]:
    """By name, mean gradient times clean minus corrupted activation, element by element."""
    first = "blocks.0.resid_pre"
    clean, corrupted = (_capture(model, tokens, [*names, first]) for tokens in (contrast.clean, contrast.corrupted))
    total: dict[str, Tensor] = {}
    for step in range(steps):
        begin = torch.lerp(corrupted[first], clean[first], step / steps)
        met: dict[str, Tensor] = {}

        def keep(tensor: Tensor, name: str, met: dict[str, Tensor] = met) -> Tensor:
            # Frozen weights give a stream without a gradient: it begins here then.
            met[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            return met[name]  # written, so that the output depends on this tensor

        with torch.enable_grad(), hooks(model, {first: partial(_replace, begin)}):
            metric = _metrics(model, contrast, contrast.corrupted, dict.fromkeys(names, keep)).sum()
            gradients = torch.autograd.grad(metric, [met[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            total[name] = total[name] + gradient if name in total else gradient
    return {name: (total[name] / steps * (clean[name] - corrupted[name])).float() for name in names}


def _summed(product: Tensor, axes: Sequence[int]) -> Tensor:
    """The sum over all axes but these, in their order, on the CPU: the change by each patch."""
    product = product.movedim(list(axes), list(range(len(axes))))  # what is summed over comes last
    return product.flatten(len(axes)).sum(-1).cpu()
