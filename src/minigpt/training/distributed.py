"""A run on many devices: reductions over ranks, work on rank 0, and `trainer.strategy: fsdp2`.

fsdp2 shards weights, gradients and optimizer state over the devices (Zhao et al. 2023,
https://arxiv.org/abs/2304.11277; torch's `fully_shard`). A checkpoint is a single file with full tensors, as from one
process, and can be resumed on any number of devices.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.runs.adapters import merged_state, without_adapters
from minigpt.training.lightning_compat import set_data_parallel_size, started_processes

if TYPE_CHECKING:  # the import takes half a second, and unsharded runs do not need it
    from torch.distributed.device_mesh import DeviceMesh

Result = TypeVar("Result")


def all_reduce(trainer: L.Trainer, here: Tensor, op: Literal["sum", "max"]) -> Tensor:
    """The sum or maximum of a tensor over all ranks, on its device. Collective: every rank must call it.

    Not Lightning's `strategy.reduce`, which calls a barrier before each reduction.
    """
    if trainer.world_size > 1:
        here = here.clone()
        torch.distributed.all_reduce(here, getattr(torch.distributed.ReduceOp, op.upper()))
    return here


def reduce_max(trainer: L.Trainer, *here: int) -> list[int]:
    """The maximum of each number over all ranks. Collective."""
    if trainer.world_size == 1:
        return list(here)
    numbers = torch.tensor(here, device=trainer.strategy.root_device)
    return [int(number) for number in all_reduce(trainer, numbers, "max").tolist()]


def reduce_sum(trainer: L.Trainer, *here: float) -> list[float]:
    """The sum of each number over all ranks, in float64 on the CPU, since Apple GPUs have no float64. Collective."""
    if trainer.world_size == 1:
        return list(here)
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, here)
    return [math.fsum(numbers) for numbers in zip(*parts, strict=True)]


def gather_on_rank_zero(trainer: L.Trainer, here: Result) -> list[Result]:
    """Every rank's value on rank 0; an empty list on the others. Collective."""
    if trainer.world_size == 1:
        return [here]
    parts: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(here, parts)
    return parts or []


def any_rank(trainer: L.Trainer, here: bool) -> bool:
    """Whether `here` is true on any rank. Collective."""
    return bool(reduce_max(trainer, here)[0])


def on_rank_zero(trainer: L.Trainer, work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0 only and return its result on every rank. Collective.

    Raises:
        UserError: on rank 0, from `work`.
        SystemExit: on the other ranks, if `work` failed; they would otherwise wait for rank 0 forever.
    """
    result, failure = None, None
    if trainer.is_global_zero:
        try:
            result = work()
        except UserError as error:
            failure = error
    if trainer.world_size > 1:
        result, failed = trainer.strategy.broadcast((result, failure is not None))
        if failed and failure is None:
            raise SystemExit(2)
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def end_started(trainer: L.Trainer, *, seconds: float) -> None:
    """Wait `seconds` for each process that Lightning started, then kill it, so that none outlives the run."""
    for process in started_processes(trainer):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()


def apply_fsdp(model: GPT, mesh: DeviceMesh) -> None:
    """Shard the model's weights by rows. Each block is a unit, gathered for its own forward and backward pass.

    Args: mesh of one dimension, the devices.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")  # the loss calls `hidden`, not `forward`


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy with all devices in one mesh and full tensors in one checkpoint file.

    Lightning's own numbers optimizer states in the order of the module's parameters, torch in that of the parameter
    groups, so its checkpoints could not be loaded by a run on one device.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        set_data_parallel_size(self)
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = plain.state_dict()
        return state | {"state": {number: self._gathered(values) for number, values in state["state"].items()}}

    def _gathered(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Full tensors on rank 0, an empty dict on the others. Collective: every rank must call it."""
        kept = {}
        for name, value in tensors.items():
            gathered = gather(value)
            if self.is_global_zero:
                kept[name] = gathered.cpu() if isinstance(gathered, Tensor) else gathered
        return kept

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(Path(self.broadcast(checkpoint_path)))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        shared = {name: _shard_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(shared, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shared = {
                number: {
                    name: _shard_like(value, parameters[number]) if value.dim() else value
                    for name, value in values.items()
                }
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": shared})


def is_sharded(model: GPT) -> bool:
    """Whether the model's weights are sharded."""
    return any(_is_sharded(parameter) for parameter in model.parameters())


def gather_model(model: GPT) -> GPT:
    """The plain model, to read or save: a copy if it has adapters; if it is sharded, on rank 0 an unsharded copy.

    Collective: every rank must call it.

    A sharded model's forward pass on rank 0 alone would wait for the other ranks forever.
    """
    if not is_sharded(model):
        return without_adapters(model)
    state = {}
    for name, value in model.state_dict().items():
        gathered = gather(value)
        if torch.distributed.get_rank() == 0:
            state[name] = gathered
    if not state:
        return model
    copy = GPT(model.config).to(next(iter(state.values())).device)
    copy.load_state_dict(merged_state(state))
    return copy.train(model.training)


def reshard(model: GPT) -> None:
    """Reshard after a forward pass without a backward pass, which leaves weights gathered and gradients hidden."""
    reshard = getattr(model, "reshard", None)
    if reshard is not None:
        reshard()


def local(tensor: Any) -> Tensor:
    """This device's shard of a tensor; a tensor that is not sharded as it is."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def gather(value: Any) -> Any:
    """The full tensor of a sharded one (collective: every rank must call it); anything else as it is."""
    return value.full_tensor() if _is_sharded(value) else value


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _shard_like(value: Any, own: Any) -> Any:
    """Shard a full tensor in the same way as the parameter `own`; unchanged if `own` is not sharded."""
    if not _is_sharded(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    # src_data_rank=None: every rank has read the file, so nothing is broadcast.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
