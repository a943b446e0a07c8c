"""Operations and memory by arithmetic are those that a real model, loss and optimizer have."""

from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minigpt.config import Config, DataConfig, GPTConfig, OptimizerConfig
from minigpt.config.commands import DeviceName
from minigpt.model.gpt import GPT
from minigpt.training.arithmetic import Memory, flops_per_token, memory, update_cost
from minigpt.training.devices import DEVICES, find_device
from minigpt.training.loss import CHUNK_LOGITS
from minigpt.training.muon import orthogonalised
from minigpt.training.optimizer import make_optimizer, stacked_rows

SIZES: dict[str, Any] = {"vocab_size": 128, "context_length": 64, "n_layer": 3, "n_head": 4, "n_embd": 128}
GPT2 = GPTConfig.gpt2_family(**SIZES)
ROWS = 8


def config_of(model: GPTConfig, **optimizer: Any) -> Config:
    return Config(model=model, data=DataConfig(batch_size=ROWS), optimizer=OptimizerConfig(**optimizer))


def saved_bytes(model: GPT, precision: str) -> int:
    """What the backward pass needs of the forward pass to the final norm, weights apart."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(model.config.vocab_size or 0, (ROWS, model.config.context_length))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden(tokens)
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    return sum(n_bytes for pointer, n_bytes in kept.items() if pointer not in own)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "32-true"),
        ({}, "bf16-mixed"),
        ({}, "bf16-true"),
        ({"mlp": "swiglu", "qk_norm": True, "position": "rotary"}, "32-true"),
        ({"norm": "rmsnorm", "qk_norm": True, "position": "rotary", "block": "post_norm"}, "32-true"),
        # 16 bits and RMSNorm on a CPU: torch's own has a fused kernel on GPUs alone, so only norms of float32 are alike
        ({"norm": "rmsnorm", "mlp": "swiglu", "position": "rotary"}, "bf16-mixed"),
        ({"norm": "rmsnorm", "block": "parallel"}, "bf16-mixed"),
    ],
    ids=str,
)
def test_the_activations_are_those_that_a_forward_pass_keeps(changes: dict[str, Any], precision: str) -> None:
    import dataclasses

    config = dataclasses.replace(GPT2, **changes)
    model = GPT(config).to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    need = memory(config_of(config), precision)
    copy_of_head = 2 * model.head_weight.numel() if precision == "bf16-mixed" else 0  # the loss's
    assert saved_bytes(model, precision) == pytest.approx(need.copies - copy_of_head + ROWS * need.row, rel=0.05)


def test_the_activations_of_gpt2_small_are_those_on_paper() -> None:
    """Per token and block, in units of C: norms 2 x 4 + 2 x 2, projections and gathered 4 x 2, MLP 8 x 2."""
    need = memory(config_of(GPTConfig.gpt2_family(), name="adamw"), "bf16-mixed")
    C, T, L, H = 768, 1024, 12, 12
    assert need.row == T * (L * (36 * C + 4 * H + 16) + 6 * C + 16)
    n = 124_439_808 + 47 * C  # 50,304 rows
    assert (need.weights, need.gradients, need.optimizer) == (4 * n, 4 * n, 8 * n)
    assert need.checkpointed_row == T * (L * 4 * C + 36 * C + 4 * H + 16 + 6 * C + 16)
    assert memory(config_of(GPTConfig.gpt2_family(), name="adamw"), "bf16-mixed", n_shards=8).optimizer == n


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("model", [GPT2, GPTConfig(**SIZES)], ids=["gpt2", "default"])
def test_the_optimizers_state_is_that_of_a_real_optimizer(name: Any, model: GPTConfig) -> None:
    config = config_of(model, name=name, average_decay=0.9)
    network = GPT(model)
    optimizer = make_optimizer(network, config.optimizer)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if value.ndim]
    need = memory(config, "32-true")
    assert need.optimizer == sum(value.nbytes for value in state)
    assert need.average == need.weights == sum(parameter.nbytes for parameter in network.parameters())


def test_the_operations_are_those_that_torch_counts() -> None:
    for config in (GPT2, GPTConfig(**SIZES), GPTConfig(**SIZES, tie_embeddings=True, mlp="gelu", head_dim=48)):
        model = GPT(config)
        T = config.context_length
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, T, dtype=torch.long)).sum().backward()
        counted = counter.get_total_flops() / (2 * T)
        weights = 6 * sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name)
        weights += 6 * model.head_weight.numel() if config.tie_embeddings else 0
        assert counted >= weights
        # Norms and biases count as parameters in the formula; a CPU's attention kernel is not counted by torch.
        attention = 12 * config.n_layer * config.n_head * config.width_per_head * T
        assert flops_per_token(config) == pytest.approx(weights + attention, rel=0.01)


def test_the_operations_of_nanogpts_cpu_recipe_are_those_of_the_formula() -> None:
    sizes: dict[str, Any] = {"vocab_size": 65, "context_length": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
    config = GPTConfig.gpt2_family(**sizes, bias=False, tie_embeddings=True)
    n = 4 * 12 * 128**2 + 9 * 128 + 65 * 128  # matrices, LayerNorms, the table that is also the head
    assert flops_per_token(config) == 6 * n + 12 * 4 * 128 * 64
    untied = GPTConfig.gpt2_family(**sizes, bias=False, tie_embeddings=False)
    assert flops_per_token(untied) == flops_per_token(config), "a table that is looked up is free"


@pytest.mark.parametrize("steps", [3, 5])
def test_the_operations_of_muon_are_those_that_torch_counts(steps: Any) -> None:
    model = GPTConfig(**SIZES)
    with FlopCounterMode(display=False) as counter:
        for weight, parts in stacked_rows(GPT(model)).items():
            for n_rows in parts:
                orthogonalised(torch.zeros(1, n_rows, weight.shape[1], dtype=torch.bfloat16), steps)
    assert update_cost(config_of(model, ns_steps=steps))[0] == counter.get_total_flops()
    assert update_cost(config_of(model, name="adamw"))[0] == 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_most_rows_are_the_last_that_fit(checkpointed: bool) -> None:
    need: Memory = memory(config_of(GPTConfig.gpt2_family()), "bf16-mixed")
    for available in (1e9, 3e9, 4.2e9, 24e9, 80e9):
        most = need.most_rows(available, checkpointed=checkpointed)
        assert most == 0 or need.total(most, checkpointed=checkpointed) <= available
        assert need.total(most + 1, checkpointed=checkpointed) > available
    assert need.most_rows(1e9) == 0
    larger = memory(config_of(GPTConfig.gpt2_family()), "bf16-mixed", chunk_logits=4 * CHUNK_LOGITS)
    assert larger.total(64) - need.total(64) == 16 * 3 * CHUNK_LOGITS
    assert CHUNK_LOGITS // need.row_logits in range(1, need.most_rows(80e9)), "both kinds of loss"


def test_the_devices_have_names_rates_and_a_precision() -> None:
    assert set(DEVICES) == set(get_args(DeviceName))
    assert DEVICES["h100"].peak("bf16-mixed") == 989e12
    assert DEVICES["h100"].peak("32-true") == 494.5e12
    assert DEVICES["t4"].precision == "32-true"
    assert DEVICES["t4"].peak("16-mixed") == 65e12
    assert DEVICES["t4"].peak("bf16-mixed") == DEVICES["t4"].peak("32-true") == 8.1e12
    assert DEVICES["m2"].peak("16-mixed") == 3.6e12


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_device_is_found_by_the_name_that_it_gives_itself(name: str, key: Any) -> None:
    assert find_device(name) == (DEVICES[key] if key else None)
