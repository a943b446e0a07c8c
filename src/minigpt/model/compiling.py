"""A function of tensors -> the same, compiled where that works."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minigpt.model.variants.kernels import has_triton

PAYING_STEPS = 1000
"""Steps of a run on a GPU from which on the minute of compiling comes back; on a CPU it takes longer to."""


def compiles(setting: bool | None, accelerator: object, n_steps: int) -> bool:
    """Whether a run compiles its training step: as `compile` says, or, where that is null, where it pays.

    It pays on a GPU, in a run long enough to earn back the minute of compiling. PyTorch keeps what it compiled for the
    next run. On a CPU a fifth is gained (2 cores, nanoGPT's CPU recipe), after minutes.

    Args:
        setting: the config's `compile`.
        accelerator: Lightning's.
        n_steps: optimizer steps of the run.
    """
    return _pays(accelerator, n_steps) if setting is None else setting


def _pays(accelerator: object, n_steps: int) -> bool:
    on_gpu = torch.cuda.is_available() and str(accelerator) in {"auto", "gpu", "cuda"}
    return on_gpu and has_triton() and n_steps >= PAYING_STEPS


def compiled(function: Callable[..., Tensor], *, dynamic: bool | None = None) -> Callable[..., Tensor]:
    """The function through torch.compile, or, with one warning, as it is where compiling fails.

    Args: dynamic is torch.compile's: True for one program for all shapes.
    """
    fast: Callable[..., Tensor] = torch.compile(function, dynamic=dynamic)

    def run(*arguments: Any) -> Tensor:
        nonlocal fast
        if fast is function:
            return fast(*arguments)
        try:
            return fast(*arguments)
        except Exception as error:
            # Compilers fail in many ways; whatever is wrong with the function itself fails again below, uncompiled.
            warnings.warn(f"torch.compile failed ({type(error).__name__}); going on without it", stacklevel=2)
            fast = function
            return fast(*arguments)

    return run
