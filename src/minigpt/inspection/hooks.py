"""Read and replace any activation of a model by its name in TransformerLens, and cache those of one forward pass.

    with hooks(model, {"blocks.*.attn.pattern": show, "blocks.1.resid_post": steer}):
        logits = model(tokens)

`hook_names` lists the names. TransformerLens' own, with "hook_", are understood too.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inspection.sites import sites
from minigpt.inspection.taps import Tap
from minigpt.model.gpt import GPT

HookFunction = Callable[[Tensor, str], Tensor | None]
"""(activation, its full name) -> what the model goes on with, of the same shape; None to read only."""
ALIASES = {"ln_final": "final_norm", "ln_final.out": "final_norm"}
LARGE = ("*.attn.result", "logits")
"""Names that `run_with_cache` leaves out unless they are asked for: results have H times the size of the stream."""


@contextlib.contextmanager
def hooks(model: GPT, functions: Mapping[str, HookFunction]) -> Iterator[None]:
    """Call functions on activations of each forward pass, while generating too.

    A function that returns a tensor replaces the activation, also in everything that is computed from it, and gradients
    flow through the tensor. So for the gradient of an activation, return it: `attn.pattern` is a copy beside the fused
    kernel, and `attn.z` a reshaped view, until they are returned. Contexts nest: of two functions on a name, the one
    that was added first is called first. With a KV cache, T counts the new tokens only, S all of them.

    Args:
        model: in either mode; updates are read before dropout.
        functions: for each name, or pattern of names as `blocks.*.attn.z` or `blocks.[0-3].mlp_out`.

    Raises:
        UserError: no activation has such a name, or a function returns something else than a tensor of the same shape.
    """
    known = sites(model)
    chosen = [(name, function) for pattern, function in functions.items() for name in matching(pattern, known)]
    with contextlib.ExitStack() as stack:
        for name, function in chosen:
            stack.callback(known[name].attach(_tap(name, function)))
        yield


def hook_names(model: GPT) -> dict[str, str]:
    """Every name that `hooks` knows in a model, in the order of a forward pass, with its shape.

    B batch, T query positions, S key positions; numbers are the model's.
    """
    return {name: site.shape for name, site in sites(model).items()}


class UnknownActivationError(UserError, KeyError):
    """A name that a cache does not have: a line for the user, and what a Mapping raises."""

    def __str__(self) -> str:
        return str(self.args[0])


class ActivationCache(Mapping[str, Tensor]):
    """Activations of one forward pass by name: cache["blocks.3.attn.pattern"], or by layer: cache["pattern", 3]."""

    def __init__(self, activations: Mapping[str, Tensor], n_layer: int) -> None:
        """Args: activations by full name; layers of the model."""
        self._activations, self.n_layer = dict(activations), n_layer

    @property
    def names(self) -> list[str]:
        """Full names, in the order of the forward pass."""
        return list(self._activations)

    def __getitem__(self, name: str | tuple[str, int]) -> Tensor:
        """An activation by its name, or by (name in a block, layer); layer -1 is the last one.

        Raises:
            UnknownActivationError: it is not in the cache.
        """
        if isinstance(name, str):
            wanted = [plain_name(name)]
        else:
            layer = name[1] % self.n_layer if -self.n_layer <= name[1] < self.n_layer else name[1]
            wanted = [f"blocks.{layer}.{part}{plain_name(name[0])}" for part in ("", "attn.", "mlp.")]
        for each in wanted:
            if each in self._activations:
                return self._activations[each]
        close = _did_you_mean(wanted[0], self._activations)
        raise UnknownActivationError(f"{wanted[0]} is not in the cache{close or f', which has {len(self)} others'}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._activations)

    def __len__(self) -> int:
        return len(self._activations)

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} activations of {self.n_layer} layers; see .names)"

    def to(self, device: torch.device | str) -> ActivationCache:
        """A cache with the same activations on another device."""
        return ActivationCache({name: each.to(device) for name, each in self._activations.items()}, self.n_layer)


def run_with_cache(
    model: GPT,
    tokens: Tensor,
    names: str | Iterable[str] | None = None,
    document_ids: Tensor | None = None,
    *,
    gradients: bool = False,
) -> tuple[Tensor, ActivationCache]:
    """One forward pass: its (B, T, V) logits, and copies of its activations.

    Args:
        model: in eval mode, unless dropout is wanted.
        tokens: (B, T) ids.
        names: names or patterns of names, as for `hooks`; None for all but `attn.result` and `logits`.
        document_ids: as for `GPT.forward`.
        gradients: let the pass go through the copies, so that `torch.autograd.grad(loss, list(cache.values()))` gives
            the gradient of each; without them the fused kernel attends, and nothing has a gradient.

    Raises:
        UserError: no activation has such a name.
    """
    known = hook_names(model)
    if names is None:
        wanted = [name for name in known if not any(fnmatch.fnmatchcase(name, each) for each in LARGE)]
    else:
        given = [names] if isinstance(names, str) else names
        wanted = list(dict.fromkeys(name for each in given for name in matching(each, known)))
    stored = dict[str, Tensor]()

    def store(activation: Tensor, name: str) -> Tensor | None:
        # A clone: slices of a larger tensor would keep all of it, and a hook may change one in place.
        stored[name] = copy = activation.clone()
        if not gradients:
            return None
        return copy if copy.requires_grad else copy.requires_grad_()  # where all parameters are frozen

    with torch.set_grad_enabled(gradients), hooks(model, dict.fromkeys(wanted, store)):
        logits: Tensor = model(tokens, document_ids)
    return logits, ActivationCache(stored, model.config.n_layer)


def read_activations(
    model: GPT, names: Iterable[str], tokens: Tensor, document_ids: Tensor | None = None
) -> dict[str, Tensor]:
    """Activations of one pass by name, neither copied nor detached.

    The output head is not run, so `logits` is none of them.

    Args:
        model: in eval mode, unless dropout is wanted.
        names: as for `hooks`.
        tokens: (B, T) ids.
        document_ids: as for `GPT.forward`.
    """
    found = dict[str, Tensor]()

    def keep(activation: Tensor, name: str) -> None:
        found[name] = activation

    with hooks(model, dict.fromkeys(names, keep)):
        model.hidden(tokens, document_ids)
    return found


def plain_name(name: str) -> str:
    """blocks.0.attn.hook_z, TransformerLens' name -> blocks.0.attn.z."""
    plain = re.sub(r"(^|\.)hook_", r"\1", name)
    return ALIASES.get(plain, plain)


def matching(pattern: str, known: Collection[str]) -> list[str]:
    """The known names that a name or pattern of names means.

    Raises:
        UserError: there is none.
    """
    name = plain_name(pattern)
    if name in known:
        return [name]
    if found := [each for each in known if fnmatch.fnmatchcase(each, name)]:
        return found
    raise UserError(f"unknown activation {pattern}{_did_you_mean(name, known) or '; hook_names(model) lists them'}")


def _did_you_mean(name: str, known: Collection[str]) -> str:
    """The closest name; for a part of a name, as `pattern` or `attn.z`, the names that end in it."""
    ending = next((each for each in known if each.endswith(f".{name}")), None)
    if ending is not None:
        close = [re.sub(r"^blocks\.\d+", "blocks.*", ending)]
    else:
        close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ""


def _tap(name: str, function: HookFunction) -> Tap:
    def tap(activation: Tensor) -> Tensor | None:
        new = function(activation, name)
        if new is None:
            return None
        if not isinstance(new, Tensor) or new.shape != activation.shape:
            found = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else f"a {type(new).__name__}"
            raise UserError(f"{name}: the function returned {found}: return {tuple(activation.shape)}, or None to read")
        return new.to(activation)  # as patched from a cache on another device, or in another precision

    return tap
