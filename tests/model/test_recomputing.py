"""Activation checkpointing keeps less for the backward pass, and changes no bit of loss or gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.model.gpt import GPT
from minigpt.training.loss import model_loss

SIZES: dict[str, Any] = {"vocab_size": 61, "context_length": 24, "n_layer": 3, "n_head": 2, "n_embd": 32}
CHOICES: list[dict[str, Any]] = [
    {"dropout": 0.2},
    {"dropout": 0.2, "position": "alibi", "window": [8, None], "block": "post_norm"},
    {"document_mask": True, "end_of_text": 60, "n_kv_head": 1, "block": "parallel"},
    {"similarity": "linear", "position": "none"},
]


def step(choice: dict[str, Any], *, recomputes: bool, compiled: bool = False) -> tuple[list[Tensor], int]:
    """Loss and gradients, and the bytes of tensors kept between forward and backward pass, weights excepted."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES | choice))
    model.recomputes_blocks = recomputes
    tokens = torch.randint(61, (2, 25))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    loss = torch.compile(model_loss, backend="aot_eager", fullgraph=True) if compiled else model_loss
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(model, tokens[:, :-1], tokens[:, 1:])
    value.backward()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [value.detach(), *gradients], sum(size for pointer, size in kept.items() if pointer not in own)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_loss_and_gradients_are_the_same_bit_for_bit_and_less_is_kept(choice: dict[str, Any]) -> None:
    (expected, all_bytes), (found, some_bytes) = (step(choice, recomputes=each) for each in (False, True))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert some_bytes < all_bytes / 3


def test_a_compiled_step_is_one_graph_and_the_same() -> None:
    choice = {"window": [8, None]}
    torch._dynamo.reset()
    (expected, _), (found, _) = step(choice, recomputes=False), step(choice, recomputes=True, compiled=True)
    torch.testing.assert_close(found, expected)


def test_a_pass_without_gradients_is_the_plain_one() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES))
    model.recomputes_blocks = True
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long))
    assert calls == [1]
