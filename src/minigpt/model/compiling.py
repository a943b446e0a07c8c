"""torch.compile that fails early, with the uncompiled function where it does, and the switch for exact results."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import is_out_of_memory


def compiled(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """torch.compile, but the call that compiles the forward pass compiles the backward pass too, if it needs one.

    By itself torch compiles the backward pass in the loss's `backward()`, where nothing can take its place if that
    fails: a kernel may fit a GPU forward and not backward.
    """
    from torch._functorch import config  # takes long, and only compiling needs it

    config.force_non_lazy_backward_lowering = True
    return torch.compile(function, **options)


class CompiledWithFallback:
    """A function through torch.compile; if a call fails, it warns once and is called uncompiled from then on.

    Compilers raise many types, so any exception counts as a failure to compile, also one of the function itself. It is
    raised again if the uncompiled call fails too; the function stays uncompiled either way. Only too little memory is
    raised at once, as uncompiled code needs more.
    """

    def __init__(self, function: Callable[..., Tensor], *, dynamic: bool | None = None) -> None:
        """Args: dynamic as in torch.compile: True compiles once for all shapes."""
        self._function = function
        self._fast = compiled(function, dynamic=dynamic)

    @property
    def compiles(self) -> bool:
        """Whether no call has failed yet."""
        return self._fast is not self._function

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        if self.compiles:
            try:
                return self._fast(*arguments, **options)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                warnings.warn(f"torch.compile failed ({type(error).__name__}); continuing uncompiled", stacklevel=2)
                self._fast = self._function
        return self._function(*arguments, **options)


def compute_exactly() -> None:
    """Let equal compiled steps have equal results on a CPU, for the rest of the process or of `restored_exactness`.

    Inductor adds up the gradient of an embedding with atomic operations, whose order two threads choose anew each time;
    with this switch it calls torch's own kernel, which sums in one order. It reads the switch when it compiles, and
    torch's kernel when it runs. Filling new memory, of which no value is read, would only take time.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def restored_exactness() -> Iterator[None]:
    """Put the switches of `compute_exactly` back at the end."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
