"""Taps on the inputs and outputs of modules: each reads an activation, and may put another in its place."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT, Block

Tap = Callable[[Tensor], Tensor | None]
"""Reads an activation, and returns what the model goes on with; None for the activation itself."""
Remove = Callable[[], None]
Attach = Callable[[Tap], Remove]
"""Adds a tap; returns the function that removes it."""


class Part(NamedTuple):
    """Some channels of a tensor (..., n), and the axes that they are split into."""

    start: int
    stop: int
    axes: tuple[int, ...]

    def read(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., *axes)."""
        return x[..., self.start : self.stop].unflatten(-1, self.axes)

    def written(self, x: Tensor, new: Tensor) -> Tensor:
        """(..., n) with (..., *axes) in the place of these channels."""
        return torch.cat([x[..., : self.start], new.flatten(-len(self.axes)), x[..., self.stop :]], dim=-1)


def _through(tap: Tap, x: Tensor, part: Part | None) -> Tensor | None:
    """x with what the tap puts in the place of a part of it, or of all; None if it only reads."""
    if part is None:
        return tap(x)
    new = tap(part.read(x))
    return None if new is None else part.written(x, new)


def on_output(module: nn.Module, tap: Tap, part: Part | None = None) -> Remove:
    """Tap the output of a module, or some channels of it."""

    def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor | None:
        return _through(tap, output, part)

    return module.register_forward_hook(hook).remove


def on_input(module: nn.Module, tap: Tap, part: Part | None = None) -> Remove:
    """Tap the first argument of a module, or some channels of it."""

    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = _through(tap, arguments[0], part)
        return None if new is None else (new, *arguments[1:])

    return module.register_forward_pre_hook(hook).remove


def on_positions(model: GPT, tap: Tap) -> Remove:
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


def on_middle(block: Block, reader: nn.Module, tap: Tap) -> Remove:
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


class _Derived(NamedTuple):
    """The taps, of all contexts, on what is computed from a module's input and summed up in its output."""

    taps: list[Tap]
    handle: RemovableHandle


_DERIVED = weakref.WeakKeyDictionary[nn.Module, _Derived]()
"""Shared by all contexts: each tap gets what the one before returned, which the module's output no longer tells."""


def _on_derived(
    module: nn.Module, derive: Callable[[Tensor], Tensor], output_of: Callable[[Tensor], Tensor], tap: Tap
) -> Remove:
    """Tap derive(input) of a module, whose output is output_of(derive(input))."""

    def hook(_module: nn.Module, arguments: tuple[Tensor], _output: Tensor) -> Tensor | None:
        derived, is_new = run_taps(_DERIVED[module].taps, derive(arguments[0]))
        return output_of(derived) if is_new else None

    if module not in _DERIVED:  # first of all hooks on the output: the others see the change
        _DERIVED[module] = _Derived([], module.register_forward_hook(hook, prepend=True))
    shared = _DERIVED[module]
    shared.taps.append(tap)

    def remove() -> None:
        shared.taps.remove(tap)
        if not shared.taps:
            shared.handle.remove()
            del _DERIVED[module]

    return remove


def run_taps(taps: Sequence[Tap], x: Tensor) -> tuple[Tensor, bool]:
    """x after all taps, and whether one of them replaced it."""
    is_new = False
    for tap in taps:
        new = tap(x)
        if new is not None:
            x, is_new = new, True
    return x, is_new


def on_result(attention: Attention, tap: Tap) -> Remove:
    """Each head's own output, z W_O: their sum, and the bias, is the output of attention."""
    proj, axes = attention.proj, (attention.n_head, attention.head_dim)

    def derive(z: Tensor) -> Tensor:
        return torch.einsum("bthd,chd->bthc", z.unflatten(-1, axes), proj.weight.unflatten(1, axes))

    def output_of(result: Tensor) -> Tensor:
        return result.sum(dim=2) if proj.bias is None else result.sum(dim=2) + proj.bias

    return _on_derived(proj, derive, output_of, tap)


def on_normalized(norm: nn.LayerNorm | nn.RMSNorm, tap: Tap) -> Remove:
    """What a norm makes of the stream before its gain and bias, as in TransformerLens."""

    def derive(x: Tensor) -> Tensor:
        if isinstance(norm, nn.LayerNorm):
            return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        return F.rms_norm(x, norm.normalized_shape, eps=norm.eps)

    def output_of(normalized: Tensor) -> Tensor:
        scaled = normalized * norm.weight
        return scaled + norm.bias if isinstance(norm, nn.LayerNorm) and norm.bias is not None else scaled

    return _on_derived(norm, derive, output_of, tap)
