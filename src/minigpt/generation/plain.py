"""Detects modified models: hooks, patches or modules that differ from what `GPT(config)` builds.

Researchers put hooks on a module, replace it (LoRA, Hu et al. 2021) or patch its `forward`. A fast path that reads only
the weights would ignore such a change, so it must not be used then.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes in which torch keeps a module's hooks; it has no public API to ask for them."""
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)
"""Global hooks, in torch.nn.modules.module."""
Part = tuple[type[nn.Module], list[tuple[str, type[Tensor], torch.dtype, str]]]
"""A module's class, and the name, class, dtype and kind of device of its own tensors."""


def difference(model: nn.Module) -> str | None:
    """The first difference of a model from what `GPT(model.config)` builds on the CPU; None if only weights differ.

    Sizes of weights are not compared: the fast path reads those from the tensors. The check takes a third of a
    millisecond for 4 layers, so make it once per text, not per token.
    """
    if type(model) is not GPT:
        return f"the model is a {type(model).__name__}, not a GPT"
    if why := intervention(model):
        return why
    expected, n_found = _expected(model.config), 0
    for name, module in model.named_modules(remove_duplicate=False):
        ours, theirs = expected.get(_of_first_block(name)), _part_of(module)
        if ours != theirs:
            return f"{name} is {_shown(theirs)}, where {_shown(ours)} is expected"
        n_found += 1
    n_expected = sum(model.config.n_layer if name.startswith("blocks.0") else 1 for name in expected)
    if n_found != n_expected:
        return f"the model has {n_found} modules instead of {n_expected}"
    for kind, _ in expected.values():
        for name, value in vars(kind).items():
            if isinstance(value, FunctionType) and _is_patched(kind, value):
                return f"{kind.__name__}.{name} is patched"
    return None


def intervention(model: nn.Module) -> str | None:
    """The first hook, capture, patched instance or active dropout in any model; None if there is none."""
    if any(getattr(nn.modules.module, name) for name in GLOBAL_HOOKS):
        return "every module has a hook"
    for name, module in model.named_modules():
        if why := _intervention_in(module):
            return f"{name or 'the model'} {why}"
    return None


def changes_forward(model: nn.Module) -> bool:
    """Whether a hook, patch or subclass changes `GPT.forward`, which calls of `hidden` and `logits` would bypass."""
    if not isinstance(model, GPT):
        return False
    hooked = any(getattr(nn.modules.module, name) for name in GLOBAL_HOOKS) or any(vars(model)[name] for name in HOOKS)
    return hooked or "forward" in vars(model) or _is_patched(GPT, type(model).forward)


def _intervention_in(module: nn.Module) -> str | None:
    own = vars(module)
    if isinstance(module, Attention) and module.hooks:  # a capture also has a hook of PyTorch's
        return "is captured"
    if any(own[name] for name in HOOKS):
        return "has a hook"
    dropout = module.p if isinstance(module, nn.Dropout) else isinstance(module, Attention) and module.dropout
    if module.training and dropout:
        return "has dropout on, in train mode"
    kind: Any = type(module)
    names = _names(kind)
    if not names.isdisjoint(own):  # an instance with a method of its class in its __dict__ has been patched
        return f"has a patched {min(names & own.keys())}"
    return None


@cache
def _names(kind: Any) -> frozenset[str]:
    """Names of a class's methods and attributes."""
    return frozenset(dir(kind)) - {"__dict__", "__doc__", "__module__"}


def _is_patched(kind: type, function: Any) -> bool:
    """Whether a function of a class was defined elsewhere, or wraps another."""
    home = (kind.__module__, f"{kind.__qualname__}.{function.__name__}")
    return (function.__module__, function.__qualname__) != home or hasattr(function, "__wrapped__")


def _part_of(module: nn.Module) -> Part:
    own = {**module._parameters, **module._buffers}
    return type(module), [(name, type(x), x.dtype, x.device.type) for name, x in own.items() if x is not None]


def _shown(part: Part | None) -> str:
    if part is None:
        return "nothing"
    tensors = (f"{name}: {kind.__name__} {str(dtype)[6:]} {device}" for name, kind, dtype, device in part[1])
    return f"{part[0].__name__}({', '.join(tensors)})"


def _of_first_block(name: str) -> str:
    """blocks.3.attn -> blocks.0.attn: all blocks are made alike."""
    return re.sub(r"^blocks\.\d+", "blocks.0", name)


_EXPECTED: dict[str, dict[str, Part]] = {}


def _expected(config: GPTConfig) -> dict[str, Part]:
    """The modules of a GPT by name, with one block for all; taken from a model of the smallest size."""
    sizes: dict[str, Any] = dict.fromkeys(("vocab_size", "context_length", "n_layer", "n_head", "n_kv_head"), 1)
    sizes |= {"n_embd": 2, "head_dim": 2, "mlp_hidden": 1}
    rest: dict[str, Any] = {"window": None, "document_mask": False, "end_of_text": None}
    smallest = dataclasses.replace(config, **sizes, **rest)
    key = repr(smallest)
    if key not in _EXPECTED:
        with torch.random.fork_rng(devices=[]):
            modules = GPT(smallest).named_modules()
        _EXPECTED[key] = {name: _part_of(module) for name, module in modules}
    return _EXPECTED[key]
