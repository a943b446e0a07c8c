"""Where the activations of a model are, by their names in TransformerLens: what `hooks` reads and replaces.

Most are the input or output of a module, where torch's own hooks reach them. Scores and weights are never stored by the
fused kernel: a hook on `Attention` writes them out, and attends in the kernel's place once one of them is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minigpt.errors import UserError
from minigpt.model.attention import Attention
from minigpt.model.cache import LayerCache
from minigpt.model.gpt import GPT, Block, ParallelBlock, PostNormBlock
from minigpt.model.variants.attend import AttentionSpec, attend, attention_scores, weights_of
from minigpt.model.variants.kernels import repeat_heads
from minigpt.model.variants.similarities import Linear

Tap = Callable[[Tensor], Tensor | None]
"""Reads an activation, and returns what the model goes on with; None for the activation itself."""
Remove = Callable[[], None]
Attach = Callable[[Tap], Remove]


class Site(NamedTuple):
    """One activation of a model."""

    shape: str
    """Such as (B, T, 4, 8)."""
    attach: Attach
    """Adds a tap; returns the function that removes it."""


def sites(model: GPT) -> dict[str, Site]:
    """Every activation by its full name, as blocks.3.attn.pattern, in the order in which a forward pass has them."""
    C, V = model.config.n_embd, model.config.vocab_size
    found = {"embed": _site(partial(_on_output, model.token_embedding), "B", "T", C)}
    if model.config.position in {"learned", "sinusoidal"}:
        found["pos_embed"] = _site(partial(_on_positions, model), "B", "T", C)
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        found |= {f"blocks.{layer}.{name}": site for name, site in _sites_of_block(block, C).items()}
    found["final_norm"] = _site(partial(_on_output, model.final_norm), "B", "T", C)
    found["logits"] = _site(partial(_on_output, model), "B", "T", V)
    return found


def _site(attach: Attach, *shape: str | int | None) -> Site:
    return Site(f"({', '.join(map(str, shape))})", attach)


def _sites_of_block(block: Block, C: int) -> dict[str, Site]:
    """The activations of a layer; each half's update is read where it is added to the residual stream."""
    is_post = isinstance(block, PostNormBlock)

    def stream(attach: Attach) -> Site:
        return _site(attach, "B", "T", C)

    found = {"resid_pre": stream(partial(_on_input, block))}
    found["ln1.normalized"] = stream(partial(_on_output, block.attn_norm))
    found |= _sites_of_attention(block.attn, C)
    found["attn_out"] = stream(partial(_on_output, block.attn_norm if is_post else block.attn))
    if not isinstance(block, ParallelBlock):  # whose MLP does not read what attention adds
        found["resid_mid"] = stream(partial(_on_middle, block, block.mlp if is_post else block.mlp_norm))
    found["ln2.normalized"] = stream(partial(_on_output, block.mlp_norm))
    found |= _sites_of_mlp(block.mlp)
    found["mlp_out"] = stream(partial(_on_output, block.mlp_norm if is_post else block.mlp))
    found["resid_post"] = stream(partial(_on_output, block))
    return found


def _sites_of_attention(attention: Attention, C: int) -> dict[str, Site]:
    H, D = attention.n_head, attention.head_dim
    found, start = dict[str, Site](), 0
    for name, n in zip("qkv", attention.n_projected, strict=True):
        if n:  # a similarity may have no queries, or no keys
            part = _Part(start, start + n * D, (n, D))
            found[f"attn.{name}"] = _site(partial(_on_output, attention.qkv, part=part), "B", "T", n, D)
        start += n * D
    n_query, n_key, _ = attention.n_projected
    if n_key:
        found["attn.rot_q"] = _site(partial(_on_attention, attention, "rot_q"), "B", "T", n_query or n_key, D)
        found["attn.rot_k"] = _site(partial(_on_attention, attention, "rot_k"), "B", "S", n_key, D)
    for name in ("attn_scores", "pattern"):
        found[f"attn.{name}"] = _site(partial(_on_attention, attention, name), "B", H, "T", "S")
    heads = _Part(0, H * D, (H, D))
    found["attn.z"] = _site(partial(_on_input, attention.proj, part=heads), "B", "T", H, D)
    found["attn.result"] = _site(partial(_on_result, attention), "B", "T", H, C)
    return found


def _sites_of_mlp(mlp: nn.Module) -> dict[str, Site]:
    """What its layers have in common, whatever their names: `up` or `gate_up`, then `proj`."""
    layers = dict(mlp.named_children())
    found = dict[str, Site]()
    proj = layers.get("proj")
    if not isinstance(proj, nn.Linear):
        return found
    n = proj.in_features
    if "up" in layers:
        found["mlp.pre"] = _site(partial(_on_output, layers["up"]), "B", "T", n)
    if "gate_up" in layers:
        for i, name in enumerate(("mlp.pre", "mlp.pre_linear")):
            part = _Part(i * n, (i + 1) * n, (n,))
            found[name] = _site(partial(_on_output, layers["gate_up"], part=part), "B", "T", n)
    found["mlp.post"] = _site(partial(_on_input, proj), "B", "T", n)
    return found


class _Part(NamedTuple):
    """Some channels of a tensor (..., n), and the axes that they are split into."""

    start: int
    stop: int
    axes: tuple[int, ...]

    def read(self, x: Tensor) -> Tensor:
        return x[..., self.start : self.stop].unflatten(-1, self.axes)

    def written(self, x: Tensor, new: Tensor) -> Tensor:
        return torch.cat([x[..., : self.start], new.flatten(-len(self.axes)), x[..., self.stop :]], dim=-1)


def _through(tap: Tap, x: Tensor, part: _Part | None) -> Tensor | None:
    """x with what the tap puts in the place of a part of it, or of all; None if it only reads."""
    if part is None:
        return tap(x)
    new = tap(part.read(x))
    return None if new is None else part.written(x, new)


def _on_output(module: nn.Module, tap: Tap, part: _Part | None = None) -> Remove:
    def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor | None:
        return _through(tap, output, part)

    return module.register_forward_hook(hook).remove


def _on_input(module: nn.Module, tap: Tap, part: _Part | None = None) -> Remove:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = _through(tap, arguments[0], part)
        return None if new is None else (new, *arguments[1:])

    return module.register_forward_pre_hook(hook).remove


def _on_positions(model: GPT, tap: Tap) -> Remove:
    """No module adds the positions: they are the input of the first dropout minus the embedding."""
    embedded, waiting = list[Tensor](), list[RemovableHandle]()

    def before(embedding: nn.Module, _arguments: Any) -> None:
        # A new hook in each pass comes last, so it sees what all others made of the embedding.
        forget()
        waiting.append(embedding.register_forward_hook(lambda _module, _arguments, output: embedded.append(output)))

    def forget() -> None:
        embedded.clear()
        while waiting:
            waiting.pop().remove()

    def hook(_dropout: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        embed = embedded[-1]
        forget()
        new = tap(arguments[0] - embed)
        return None if new is None else (embed + new,)

    handles = [model.token_embedding.register_forward_pre_hook(before), model.dropout.register_forward_pre_hook(hook)]

    def remove() -> None:
        forget()
        for handle in handles:
            handle.remove()

    return remove


def _on_middle(block: Block, reader: nn.Module, tap: Tap) -> Remove:
    """The stream between the halves: its reader gets what the tap returns, and the block's output moves by as much."""
    changes = list[Tensor]()

    def read(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        changes.clear()
        new = tap(arguments[0])
        if new is None:
            return None
        changes.append(new - arguments[0])
        return (new,)

    def carry(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor | None:
        return output + changes.pop() if changes else None

    # First of the hooks on the block's output: those of resid_post see the change.
    handles = reader.register_forward_pre_hook(read), block.register_forward_hook(carry, prepend=True)

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _on_result(attention: Attention, tap: Tap) -> Remove:
    """Each head's own output, z W_O: their sum, and the bias, is the output of attention."""

    def hook(proj: nn.Linear, arguments: tuple[Tensor], _output: Tensor) -> Tensor | None:
        z = arguments[0].unflatten(-1, (attention.n_head, attention.head_dim))  # (B, T, H, D)
        weight = proj.weight.unflatten(1, (attention.n_head, attention.head_dim))  # (C, H, D)
        new = tap(torch.einsum("bthd,chd->bthc", z, weight))
        if new is None:
            return None
        return new.sum(dim=2) if proj.bias is None else new.sum(dim=2) + proj.bias

    return attention.proj.register_forward_hook(hook).remove


class AttentionTaps:
    """The one hook of a layer for everything inside attention, so that several taps build on one another."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.taps: dict[str, list[Tap]] = {"rot_q": [], "rot_k": [], "attn_scores": [], "pattern": [], "used": []}
        """By the activation; `used` are the weights after all replacements, and only read."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor | None:
        """Attention from the first replaced activation on, (B, H, T, D); None if all were only read."""
        query, new_query = self._run("rot_q", query, is_by_token=True)
        key, new_key = self._run("rot_k", key, is_by_token=True)
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

    def _run(self, name: str, x: Tensor, *, is_by_token: bool = False) -> tuple[Tensor, bool]:
        """x after the taps of a name, and whether one of them replaced it; they see (B, T, H, D) if `is_by_token`."""
        is_new = False
        for tap in self.taps[name]:
            new = tap(x.transpose(1, 2) if is_by_token else x)
            if new is not None:
                x, is_new = new.transpose(1, 2) if is_by_token else new, True
        return x, is_new


def _on_attention(attention: Attention, name: str, tap: Tap) -> Remove:
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
    return _on_attention(block.attn, "used", read)
