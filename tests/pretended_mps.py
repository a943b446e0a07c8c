"""A pretended Apple GPU: tensors that say they are on mps:0 and are computed, with real values, on the CPU.

It refuses what the device refuses and a CPU does not: float64, and tensors of two devices in one operation. It shows
neither its speed nor its rounding, nor which operations it has no kernel for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import lightning.fabric.accelerators.mps as fabric_mps
import torch
from lightning.pytorch.accelerators.mps import MPSAccelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("mps", 0)
MISSING = {torch.float64, torch.complex128}
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Takes indices from the CPU."""


class OnDevice(Tensor):
    """Wraps the CPU tensor that has the values. To torch's C++ it is a meta tensor, which needs no driver."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        if values.dtype in MISSING:
            raise TypeError(f"the MPS framework doesn't support {values.dtype}")
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="meta",
        )
        made.values = values.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)


class _Mode(TorchDispatchMode):
    """Sees what is made on the device from nothing, or from tensors of the CPU."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})


def _computed(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    target = kwargs.get("device")
    # C++ asks for the device of a tensor: meta.
    on_device = bool(ours) if target is None else torch.device(target).type in {"mps", "meta"}
    if not ours and not on_device:
        return operation(*args, **kwargs)
    of_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim]
    if ours and of_cpu and operation not in COPIES | INDEXING:
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device, found mps:0 and cpu")
    plain, options = tree_map_only(OnDevice, lambda tensor: tensor.values, (args, kwargs))
    if target is not None:
        options["device"] = torch.device("cpu")
    made = operation(*plain, **options)
    schema = operation._schema
    if schema.is_mutable:  # in place, or into what is given
        outs = [kwargs[each.name] for each in schema.arguments if each.is_out]
        if outs:
            return outs[0] if len(outs) == 1 else tuple(outs)
        return args[0] if schema.returns and isinstance(args[0], Tensor) else made
    if not on_device:
        return made
    wrapped = tree_map_only(Tensor, OnDevice, made)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped) if len(ours) == len(tensors) else wrapped


@contextlib.contextmanager
def pretended_mps() -> Iterator[None]:
    """Meanwhile torch and Lightning find an Apple GPU."""
    lifts_cpu_only = torch._C._only_lift_cpu_tensors()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.backends.mps, "is_available", lambda: True),
            (fabric_mps.MPSAccelerator, "is_available", lambda: True),
            (MPSAccelerator, "is_available", lambda: True),
            (torch._C, "_InferenceMode", lambda mode: torch.no_grad()),  # a wrapper cannot be an inference tensor
            (torch.mps, "manual_seed", torch.default_generator.manual_seed),
            (torch.mps, "empty_cache", lambda: None),
            (torch.mps, "synchronize", lambda: None),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts_cpu_only)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) is then a copy, which is seen
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.enter_context(_Mode())
        yield
