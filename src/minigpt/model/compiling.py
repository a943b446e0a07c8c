"""torch.compile: when it pays, and the uncompiled fallback where it fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minigpt.model.variants.kernels import has_triton

PAYING_STEPS = 1000
"""Steps from which a run on a GPU earns back the minute of compiling."""


def should_compile(setting: bool | None, accelerator: object, n_steps: int) -> bool:
    """Whether a run compiles its training step: as `compile` says, or if null, where it pays.

    Args:
        setting: `Config.compile`.
        accelerator: `trainer.accelerator`.
        n_steps: optimizer steps of the run.
    """
    return _pays(accelerator, n_steps) if setting is None else setting


def _pays(accelerator: object, n_steps: int) -> bool:
    # On a CPU steps are a fifth faster (2 cores, nanoGPT's CPU recipe), but compiling takes minutes.
    on_gpu = torch.cuda.is_available() and str(accelerator) in {"auto", "gpu", "cuda"}
    return on_gpu and has_triton() and n_steps >= PAYING_STEPS


def compile_with_fallback(function: Callable[..., Tensor], *, dynamic: bool | None = None) -> Callable[..., Tensor]:
    """torch.compile a function; if a call fails, warn once and call the function uncompiled from then on.

    Compilers raise many types, so any exception counts as a failure to compile, also one of the function itself, such
    as too little memory. It is raised again if the uncompiled call fails too; the function stays uncompiled either way.

    Args: dynamic as in torch.compile: True compiles once for all shapes.
    """
    fast: Callable[..., Tensor] = torch.compile(function, dynamic=dynamic)

    def run(*arguments: Any, **options: Any) -> Tensor:
        nonlocal fast
        if fast is not function:
            try:
                return fast(*arguments, **options)
            except Exception as error:
                warnings.warn(f"torch.compile failed ({type(error).__name__}); continuing uncompiled", stacklevel=2)
                fast = function
        return function(*arguments, **options)

    return run
