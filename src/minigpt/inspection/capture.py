"""A model and a text -> the attention weights that the fused kernel used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from minigpt.data.tokenizers.base import Tokenizer, decode
from minigpt.inspection.snapshot import Snapshot
from minigpt.model.attention import Attention, How, attention_weights
from minigpt.model.gpt import GPT
from minigpt.model.variants.kernels import repeat_heads

EXPECTED = 5
"""Next tokens that are kept with their probabilities."""
Look = Callable[[int, Tensor, Tensor, Tensor, How], None]
"""(layer, query, key, value, how): what a layer is about to attend with; see `attend` for the shapes."""


@contextlib.contextmanager
def tapped(model: GPT, look: Look) -> Iterator[None]:
    """Show each layer's queries, keys and values to `look`, whenever the model runs inside.

    They are tapped behind positions and norms, right before the fused kernel, which runs as always. Taps may be nested
    or overlap: each is called, and each is removed at its own end.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    taps = [partial(look, number) for number in range(len(layers))]
    for layer, tap in zip(layers, taps, strict=True):
        layer.taps.append(tap)
    try:
        yield
    finally:
        for layer, tap in zip(layers, taps, strict=True):
            layer.taps.remove(tap)


class AttentionMaps(list[Tensor]):
    """(B, H, T, S) weights, a layer each, in the order in which the layers ran."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[list[Tensor]] = []
        """The same for each forward pass: `maps.forwards[-1][layer]` is of the last one."""
        self._last_layer = 0

    def add(self, layer: int, weights: Tensor) -> None:
        """Keep the weights of a layer; one that does not come after the last layer begins another forward pass."""
        if not self.forwards or layer <= self._last_layer:
            self.forwards.append([])
        self._last_layer = layer
        self.append(weights)
        self.forwards[-1].append(weights)


@contextlib.contextmanager
def capture_attention(model: GPT) -> Iterator[AttentionMaps]:
    """`with capture_attention(model) as maps: model(tokens)` fills maps with (B, H, T, S) weights, a layer each.

    They are worked out beside the fused kernel, for whatever kind of attention it is; see `tapped`. Where the model
    runs several times inside, as it does for each token that is written, `maps.forwards` tells the runs apart.
    """
    maps = AttentionMaps()

    def look(layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> None:
        with torch.no_grad():
            maps.add(layer, attention_weights(query, key, **how))

    with tapped(model, look):
        yield maps


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Look at a model in the midst of training: eval mode and no gradients inside, everything as it was afterwards.

    Each module's own training flag is restored, and torch's random state on the CPU and the GPUs.
    """
    flags = [(module, module.training) for module in model.modules()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training


def probe(model: GPT, tokenizer: Tokenizer, tokens: Sequence[int], step: int) -> Snapshot:
    """Attention of every head on one text, the lengths of its values, and what the model expects after each token.

    Args:
        model: read only; see `undisturbed`.
        tokenizer: turns each token into the text that is shown for it.
        tokens: T ids, at most the model's context.
        step: training step that the weights belong to.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    weights: list[Tensor] = []
    norms: list[Tensor] = []

    def look(layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> None:
        weights.append(attention_weights(query, key, **how)[0].float().cpu())
        norms.append(value_norms(layers[layer], value)[0].float().cpu())

    device = next(model.parameters()).device
    with undisturbed(model), tapped(model, look):
        expected = model(torch.tensor([list(tokens)], device=device))[0].float().softmax(dim=-1)  # (T, V)
    best = expected.topk(min(EXPECTED, expected.shape[-1]))
    following = (
        tuple((decode(tokenizer, [token]), share) for token, share in zip(*row, strict=True))
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )
    return Snapshot(
        step,
        tuple(decode(tokenizer, [token]) for token in tokens),
        torch.stack(weights).numpy(),
        value_norms=torch.stack(norms).numpy(),
        next_tokens=tuple(following),
        token_ids=tuple(tokens),
    )


def value_norms(attention: Attention, value: Tensor) -> Tensor:
    """(B, H, S) lengths of what a key adds to the residual stream where it has all of a head's weight: |v W_O|.

    Args:
        attention: the layer.
        value: (B, H_kv, S, D).
    """
    projections = attention.proj.weight.unflatten(1, (attention.n_head, attention.head_dim)).transpose(
        0, 1
    )  # (H, C, D)
    gram = (projections.mT @ projections).to(value.dtype)  # |W v|^2 = v (W^T W) v, without the (B, H, S, C) products
    value = repeat_heads(value, attention.n_head)
    return ((value @ gram) * value).sum(-1).clamp(min=0).sqrt()
