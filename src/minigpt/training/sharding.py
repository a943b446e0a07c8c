"""`trainer.strategy: fsdp2`: every device holds its share of each weight, gradient and moment, and never all of them.

Zhao et al. 2023, https://arxiv.org/abs/2304.11277; torch's `fully_shard`. Checkpoints are those of one process: a
single file, from which any number of devices goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from minigpt.model.gpt import GPT

if TYPE_CHECKING:  # half a second that runs without shares need not wait for
    from torch.distributed.device_mesh import DeviceMesh


def share_out(model: GPT, mesh: DeviceMesh) -> None:
    """Divide the weights of each block, and those outside blocks, by their rows; a block's are gathered for its turn.

    Args: mesh of one dimension, the devices.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")  # which the loss calls instead of forward


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy with all devices in one mesh, and whole tensors in one file.

    Lightning's own numbers an optimizer's states by the order of the module's parameters, where torch does it by that
    of the groups: its files would not be those of one process.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = plain.state_dict()
        return state | {"state": {number: self._gathered(values) for number, values in state["state"].items()}}

    def _gathered(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Whole tensors, which all devices gather together, and rank 0 keeps."""
        kept = {}
        for name, value in tensors.items():
            gathered = whole(value)
            if self.is_global_zero:
                kept[name] = gathered.cpu() if isinstance(gathered, Tensor) else gathered
        return kept

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(Path(self.broadcast(checkpoint_path)))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        shared = {name: _shared_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(shared, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shared = {
                number: {
                    name: _shared_like(value, parameters[number]) if value.dim() else value
                    for name, value in values.items()
                }
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": shared})


def is_shared_out(model: GPT) -> bool:
    """Whether `share_out` has divided its weights."""
    return any(_is_shared(parameter) for parameter in model.parameters())


def whole_model(model: GPT) -> GPT:
    """The model, or where its weights are shared out, on rank 0 a copy with all of them; all devices must ask together.

    What looks at a model on rank 0 alone would wait for the others' shares forever.
    """
    if not is_shared_out(model):
        return model
    state = {}
    for name, value in model.state_dict().items():
        gathered = whole(value)
        if torch.distributed.get_rank() == 0:
            state[name] = gathered
    if not state:
        return model
    copy = GPT(model.config).to(next(iter(state.values())).device)
    copy.load_state_dict(state)
    return copy.train(model.training)


def share_again(model: GPT) -> None:
    """Give back what a forward pass without a backward pass has gathered: until then, gradients are out of sight."""
    reshard = getattr(model, "reshard", None)
    if reshard is not None:
        reshard()


def local(tensor: Any) -> Tensor:
    """The part of a tensor that is on this device."""
    return tensor.to_local() if _is_shared(tensor) else tensor


def whole(value: Any) -> Any:
    """A tensor of which devices have shares, gathered by all of them together; anything else as it is."""
    return value.full_tensor() if _is_shared(value) else value


def _is_shared(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _shared_like(value: Any, own: Any) -> Any:
    """This device's share of a whole tensor, as the parameter that it belongs to is shared out."""
    if not _is_shared(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every device has read the file: nothing is sent.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
