"""Capture attention weights with hooks, computed beside the fused kernel, which never stores them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from minigpt.data.tokenizers.base import Tokenizer, decode
from minigpt.errors import UserError
from minigpt.inspection.attention_taps import used_weights
from minigpt.inspection.snapshot import Snapshot
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import AttentionSpec, attention_weights
from minigpt.model.variants.kernels import repeat_heads

EXPECTED = 5
"""Number of likeliest next tokens kept for each position."""
AttentionHook = Callable[[int, Tensor, Tensor, Tensor, AttentionSpec], Tensor | None]
"""Hook (layer, query, key, value, spec) on the inputs of a layer's attention, which may return its output; see `attend`
for the shapes."""


@contextlib.contextmanager
def attention_hooks(model: GPT, hook: AttentionHook) -> Iterator[None]:
    """Call `hook` with each layer's queries, keys and values, right before the fused kernel, inside the block.

    Hooks may be nested or overlap: all are called, and each is removed at the end of its own block.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    hooks = [partial(hook, number) for number in range(len(layers))]
    for layer, hook in zip(layers, hooks, strict=True):
        layer.hooks.append(hook)
    try:
        yield
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            layer.hooks.remove(hook)


class CapturedAttention(list[Tensor]):
    """(B, H, T, S) weights, one tensor per layer, in the order in which the layers ran."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[list[Tensor]] = []
        """The same, grouped by forward pass: `maps.forwards[-1][layer]` is from the last one."""
        self._last_layer = 0

    def add(self, layer: int, weights: Tensor) -> None:
        """Keep the weights of a layer; a layer number that does not increase starts another forward pass."""
        if not self.forwards or layer <= self._last_layer:
            self.forwards.append([])
        self._last_layer = layer
        self.append(weights)
        self.forwards[-1].append(weights)


@contextlib.contextmanager
def capture_attention(model: GPT) -> Iterator[CapturedAttention]:
    """`with capture_attention(model) as maps: model(tokens)` fills maps with (B, H, T, S) weights, one per layer.

    Generation runs the model once per token: `maps.forwards` has an entry for each forward pass. Where `hooks` replace
    scores or weights, the maps have what attention uses in their place.
    """
    maps = CapturedAttention()
    with contextlib.ExitStack() as stack:
        for layer in range(len(model.blocks)):
            stack.callback(used_weights(model, layer, partial(maps.add, layer)))
        yield maps


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluate a model in the middle of training: eval mode, no gradients, and no trace afterwards.

    Restores each module's own training flag, and torch's random state on the CPU and the GPUs.
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


class DivergedError(UserError):
    """The activations of a model are NaN or infinite."""


def probe(model: GPT, tokenizer: Tokenizer, tokens: Sequence[int], step: int) -> Snapshot:
    """Snapshot of one text: attention weights and value norms of every head, and the likeliest next tokens.

    Args:
        model: not modified; see `evaluation_mode`.
        tokenizer: decodes each token for display.
        tokens: T ids, at most the model's `context_length`.
        step: training step of the model's weights.

    Raises:
        DivergedError: the model gives NaN or infinite numbers.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    weights: list[Tensor] = []
    norms: list[Tensor] = []

    def hook(layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> None:
        weights.append(attention_weights(query, key, **spec)[0].float().cpu())
        norms.append(value_norms(layers[layer], value)[0].float().cpu())

    device = next(model.parameters()).device
    with evaluation_mode(model), attention_hooks(model, hook):
        expected = model(torch.tensor([list(tokens)], device=device))[0].float().softmax(dim=-1)  # (T, V)
    if not all(bool(each.isfinite().all()) for each in (*weights, *norms, expected)):
        raise DivergedError(
            "the model gives NaN or infinite numbers on the text: it has diverged; take an earlier checkpoint"
        )
    expected = expected[:, : tokenizer.vocab_size]  # a padded vocabulary has ids without a text
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
    """|v W_O| of (B, H_kv, S, D) values, (B, H, S): what a key adds to the stream if it has all of a head's weight."""
    return written_norms(attention, repeat_heads(value, attention.n_head))


def written_norms(attention: Attention, z: Tensor) -> Tensor:
    """|z W_O| of each head's (B, H, T, D) vectors, (B, H, T): their length in the residual stream."""
    projections = attention.proj.weight.unflatten(1, (attention.n_head, -1)).transpose(0, 1)  # (H, C, D)
    gram = (projections.mT @ projections).to(z.dtype)  # |W z|^2 = z (W^T W) z, without the (B, H, T, C) products
    return ((z @ gram) * z).sum(-1).clamp(min=0).sqrt()
