"""A pretended accelerator: tensors that claim to be on cuda:0 or mps:0 and are computed, with real values, on the CPU.

It refuses what the device refuses and a CPU does not: tensors of two devices in one operation, float64 and operations
without a kernel on MPS, operations without a deterministic kernel on CUDA where those are asked for. It counts what a
real device would wait for: each transfer to the CPU, and each operation whose result's shape depends on values.

It cannot show speed, memory, rounding, Triton kernels or NCCL. Its guards stay in the process that loads them, so it is
used in a process of its own (cases.py).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import guards

GUARDS = guards.load()

# ruff: noqa: E402, SIM102
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

PATTERN = "/src/minigpt/"

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Takes indices from the CPU."""
WAITS = {
    aten._local_scalar_dense.default: "read a number",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique",
}
NUMBERS = ("_foreach_", "::fill", "::masked_fill")
"""Besides what is pointwise: operations that take a number as a CPU tensor without axes."""
WIDE = {torch.float64, torch.complex128}
NOT_DETERMINISTIC: dict[Any, Callable[..., bool]] = {
    aten.cumsum.default: lambda x, *_, **__: x.is_floating_point(),
    aten.histc.default: lambda *_, **__: True,
    aten.bincount.default: lambda x, weights=None, *_, **__: weights is not None,
    aten.median.dim: lambda *_, **__: True,
    aten.put_.default: lambda *_, **__: True,
    aten.nll_loss2d_forward.default: lambda *_, **__: True,
    aten.scatter_reduce.two: lambda x, dim, index, source, reduce, **_: reduce == "prod",
}
"""Operations that CUDA refuses under deterministic algorithms, with the arguments for which it does: the list in the
documentation of torch.use_deterministic_algorithms, without images, pooling and CTC."""

waits: collections.Counter[str] = collections.Counter()
"""What a real device would have waited for so far, with the line of minigpt or Lightning that asked."""


def place() -> str:
    """Where the operation was asked for: the innermost line of minigpt, and of Lightning or an optimizer below it."""
    frame: Any = sys._getframe(1)
    below = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if PATTERN in name:
            return f"{name.split(PATTERN)[1]}:{frame.f_lineno} {frame.f_code.co_name}{below}"
        if not below and ("/lightning/" in name or "/torch/optim/" in name):
            below = f", in {name.split('site-packages/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return f"outside of minigpt{below}"


class OnDevice(Tensor):
    """Claims to be on the device; `values`, a CPU tensor, is what it holds."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device) -> OnDevice:
        if device.type == "mps" and values.dtype in WIDE:
            raise TypeError(f"the MPS framework doesn't support {values.dtype}, at {place()}")
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=device,
        )
        made.values = values.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.values!r}, {self.device})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = OnDevice(self.values.clone(), self.device)
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)


class _Mode(TorchDispatchMode):
    """Sees what is made on the device from nothing, or from tensors of the CPU."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})


class _Traits(NamedTuple):
    """What is known of an operation, looked up once: the pretended device has thousands in a test."""

    name: str
    is_mutable: bool
    outs: tuple[str, ...]
    is_view: bool
    takes_number: bool


@functools.cache
def _traits(operation: Any) -> _Traits:
    schema, name = operation._schema, operation.name()
    return _Traits(
        name,
        schema.is_mutable,
        tuple(each.name for each in schema.arguments if each.is_out),
        any(each.alias_info is not None for each in schema.returns),
        torch.Tag.pointwise in operation.tags or any(each in name for each in NUMBERS),
    )


def _computed(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    ours: list[OnDevice] = []
    on_cpu: list[Tensor] = []

    def plain(value: Any) -> Any:
        if isinstance(value, OnDevice):
            ours.append(value)
            return value.values
        if isinstance(value, Tensor):
            on_cpu.append(value)
        elif isinstance(value, list | tuple):
            return type(value)([plain(each) for each in value])
        return value

    arguments, options = [plain(each) for each in args], {name: plain(each) for name, each in kwargs.items()}
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if target is None:
        device = ours[0].device if ours else None
    else:
        device = torch.device(target.type, 0) if target.type in guards.KINDS else None
    if not ours and device is None:
        return operation(*args, **kwargs)
    traits = _traits(operation)
    _refuse(operation, args, kwargs, device, ours, on_cpu)
    _count(operation, args, device)
    if target is not None:
        options["device"] = torch.device("cpu") if device is not None else target
    if "pin_memory" in options:
        options["pin_memory"] = False
    made = operation(*arguments, **options)
    if traits.is_mutable:  # in place, or into what is given
        outs = [kwargs[name] for name in traits.outs]
        if outs:
            return outs[0] if len(outs) == 1 else tuple(outs)
        return args[0] if traits.is_view and isinstance(args[0], Tensor) else made
    if device is None:
        return made
    wrapped = OnDevice(made, device) if isinstance(made, Tensor) else _wrapped(made, device)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped) if traits.is_view and not on_cpu else wrapped


def _wrapped(made: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda tensor: OnDevice(tensor, device), made)


def _refuse(
    operation: Any,
    args: Any,
    kwargs: dict[str, Any],
    device: torch.device | None,
    ours: list[OnDevice],
    on_cpu: list[Tensor],
) -> None:
    """Raise what the device raises."""
    traits = _traits(operation)
    # A number may come as a tensor of the CPU without axes, as in `x * torch.tensor(2)`, but not in a product.
    if ours and on_cpu and operation not in COPIES | INDEXING:
        if any(tensor.ndim for tensor in on_cpu) or not traits.takes_number:
            both = f"{ours[0].device} and cpu"
            raise RuntimeError(
                f"{operation}: expected all tensors to be on the same device, found {both}, at {place()}"
            )
    if device is None:
        return
    if device.type == "mps":
        if kwargs.get("dtype") in WIDE:
            raise TypeError(f"the MPS framework doesn't support {kwargs['dtype']}, at {place()}")
        if traits.name in lacking_on_mps():
            raise NotImplementedError(f"The operator {operation} is not implemented for the MPS device, at {place()}")
    elif torch.are_deterministic_algorithms_enabled():
        if operation in NOT_DETERMINISTIC and NOT_DETERMINISTIC[operation](*args, **kwargs):
            raise RuntimeError(f"{operation} does not have a deterministic implementation, at {place()}")


def _count(operation: Any, args: Any, device: torch.device | None) -> None:
    """Note an operation that would make the CPU wait for the device."""
    why = WAITS.get(operation)
    if operation in INDEXING and any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1]):
        why = "index by a mask"
    if operation is aten._to_copy.default and isinstance(args[0], OnDevice) and device is None:
        why = "copy to the CPU"
    if operation is aten.copy_.default and isinstance(args[1], OnDevice) and not isinstance(args[0], OnDevice):
        why = "copy to the CPU"
    if why is not None:
        waits[f"{why}: {place()}"] += 1


@functools.cache
def lacking_on_mps() -> set[str]:
    """Operations to which torch's own table gives a kernel for the CPU or CUDA and none for MPS."""
    import torchgen
    import yaml

    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = {row["func"].split("(")[0]: row for row in yaml.load(table.read_text(), loader)}

    def keys(row: dict[str, Any]) -> set[str]:
        own = {key.strip() for names in row.get("dispatch", {}) for key in names.split(",")}
        return own | (keys(rows[row["structured_delegate"]]) if "structured_delegate" in row else set())

    lacking = set()
    for name, row in rows.items():
        found = keys(row)
        if found and "MPS" not in found and not any(key.startswith("Composite") for key in found):
            lacking.add(f"aten::{name}")
    return lacking


def _attention_of_mps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention by its definition: torch's C++ chooses a kernel by what the build has."""
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    scores = (query @ key.mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        is_rule = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if is_rule else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p).to(value.dtype) @ value


@contextlib.contextmanager
def pretended(kind: str, *, bf16: bool = False, triton: bool = False) -> Iterator[None]:
    """Meanwhile torch and Lightning find one device of the kind, cuda or mps.

    Args: bf16: whether a CUDA device has bfloat16, so that Muon uses it; triton: whether Triton is installed.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(GUARDS.pretend, 0)
        GUARDS.pretend(guards.KINDS.index(kind) + 1)
        for target, changes in (_cuda(bf16) if kind == "cuda" else _mps()) + _both(triton):
            for name, value in changes.items():
                stack.enter_context(mock.patch.object(target, name, value))
        for get, change, value in (
            # torch.tensor(..., device=) is then a copy, which is seen; and parameters that move are exchanged whole.
            (torch._C._only_lift_cpu_tensors, torch._C._set_only_lift_cpu_tensors, True),
            (
                torch.__future__.get_swap_module_params_on_conversion,
                torch.__future__.set_swap_module_params_on_conversion,
                True,
            ),
        ):
            stack.callback(change, get())
            change(value)
        stack.enter_context(_Mode())
        yield


def _swap_tensors(ours: Tensor, theirs: Tensor, swap: Any = torch.utils.swap_tensors) -> None:
    """torch's own, which refuses a tensor with other references; those of garbage in a cycle are collected first."""
    try:
        swap(ours, theirs)
    except RuntimeError:
        gc.collect()
        swap(ours, theirs)


def _both(triton: bool) -> list[tuple[Any, dict[str, Any]]]:
    import torch.utils.data._utils.pin_memory as pinning

    from minigpt.model.variants import flex

    return [
        (flex, {"has_triton": lambda: triton}),
        (torch._C, {"_InferenceMode": lambda mode: torch.no_grad()}),  # a wrapper cannot be an inference tensor
        (torch.utils, {"swap_tensors": _swap_tensors}),
        (pinning, {"pin_memory": lambda data, device=None: data}),
    ]


def _cuda(bf16: bool) -> list[tuple[Any, dict[str, Any]]]:
    import lightning.fabric.accelerators.cuda as fabric
    import lightning.pytorch.accelerators.cuda as pytorch

    generator = torch.Generator()
    properties = SimpleNamespace(
        name="Pretended GPU", total_memory=80 << 30, major=8 if bf16 else 7, minor=0, multi_processor_count=108
    )
    lightning = {
        "num_cuda_devices": lambda: 1,
        "_clear_cuda_memory": lambda: None,
        "_check_cuda_matmul_precision": lambda device: None,
        "_get_all_visible_cuda_devices": lambda: [0],
    }
    own = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: waits.update([f"synchronize: {place()}"]),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda including_emulation=True: bf16,
        "get_device_capability": lambda device=None: (properties.major, 0),
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "mem_get_info": lambda device=None: (79 << 30, 80 << 30),
        "max_memory_allocated": lambda device=None: 1 << 30,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_stats": lambda device=None: {},
        "get_rng_state": lambda device=None: generator.get_state(),
        "set_rng_state": lambda state, device=None: generator.set_state(state),
        "get_rng_state_all": lambda: [generator.get_state()],
        "set_rng_state_all": lambda states: None,
        "manual_seed": torch.default_generator.manual_seed,  # what "the device" draws, the CPU draws
        "manual_seed_all": lambda seed: None,
    }
    found = [(module, {n: v for n, v in lightning.items() if hasattr(module, n)}) for module in (fabric, pytorch)]
    return [(torch.cuda, own), (torch.accelerator, {"synchronize": own["synchronize"]}), *found]


def _mps() -> list[tuple[Any, dict[str, Any]]]:
    import lightning.fabric.accelerators.mps as fabric
    import lightning.pytorch.accelerators.mps as pytorch

    own = {
        "manual_seed": torch.default_generator.manual_seed,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: waits.update([f"synchronize: {place()}"]),
    }
    return [
        (torch.accelerator, {"synchronize": own["synchronize"]}),
        (torch.backends.mps, {"is_available": lambda: True}),
        (fabric.MPSAccelerator, {"is_available": staticmethod(lambda: True)}),
        (pytorch.MPSAccelerator, {"is_available": staticmethod(lambda: True)}),
        (torch.mps, own),
        (F, {"scaled_dot_product_attention": _attention_of_mps}),
    ]
