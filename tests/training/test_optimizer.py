"""Muon against its definition, one matrix at a time; who is stepped by what; and the schedules by hand."""

import dataclasses
import io
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig, OptimizerConfig
from minigpt.errors import UserError
from minigpt.model.gpt import GPT, MLPS
from minigpt.training.loss import next_token_loss
from minigpt.training.muon import BASE_WIDTH, COEFFICIENTS, LIKE_ADAMW, Muon, orthogonalised, update_scale
from minigpt.training.optimizer import (
    EMBEDDING_RATE,
    follow_schedule,
    learning_rate,
    make_optimizer,
    muon_momentum,
    parameter_groups,
    stacked_rows,
)

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
MUON = OptimizerConfig(name="muon", learning_rate=1e-2, weight_decay=0.1, ns_steps=5)
KINDS: dict[str, dict[str, Any]] = {
    "modern": {},
    "grouped": {"n_kv_head": 2},
    "symmetric": {"similarity": "symmetric"},
    "uniform": {"similarity": "uniform", "position": "none"},
    "gaussian": {"similarity": "gaussian"},
    "tied": {"tie_embeddings": True},
    "gpt2": dataclasses.asdict(GPTConfig.gpt2_family(**TINY)),
}
HEADS = {"grouped": [32, 16, 16], "symmetric": [32, 32], "uniform": [32]}
"""Rows of the matrices in qkv, where they are not three of 32."""


def make(kind: str = "modern", **settings: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**TINY, **KINDS[kind], **settings}))


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def matrices(model: GPT, kind: str) -> dict[str, list[int]]:
    """Names of the stacked weights inside blocks and the rows of each matrix, written down from the architecture."""
    rows = {}
    for i in range(model.config.n_layer):
        rows[f"blocks.{i}.attn.qkv.weight"] = HEADS.get(kind, [32, 32, 32])
        rows[f"blocks.{i}.attn.proj.weight"] = rows[f"blocks.{i}.mlp.proj.weight"] = [32]
        if model.config.mlp == "swiglu":
            rows[f"blocks.{i}.mlp.gate_up.weight"] = [128, 128]
        else:
            rows[f"blocks.{i}.mlp.up.weight"] = [128]
    return rows


def with_singular_values(rows: int, columns: int, values: Tensor) -> Tensor:
    left, right = (torch.linalg.qr(torch.randn(n, n))[0][:, : len(values)] for n in (rows, columns))
    return left * values @ right.mT


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 40), (1, 5)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("steps", "least", "most"), [(5, 0.68, 1.2), (3, 0.18, 1.87)])
def test_singular_values_come_near_one_and_singular_vectors_stay(
    rows: int, columns: int, scale: float, steps: int, least: float, most: float
) -> None:
    torch.manual_seed(0)
    matrix = with_singular_values(rows, columns, scale * torch.logspace(-1.2, 0, rows))
    result = orthogonalised(matrix[None], steps)[0]
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ result @ right.mT
    assert turned.diagonal().min() > least
    assert turned.diagonal().max() < most
    torch.testing.assert_close(turned, turned.diagonal().diag(), atol=1e-3, rtol=0)


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """One matrix, as the iteration is written."""
    x = matrix / matrix.norm()
    for a, b, c in COEFFICIENTS[steps]:
        x = a * x + b * x @ x.mT @ x + c * x @ x.mT @ x @ x.mT @ x
    return x


@pytest.mark.parametrize("shape", [(8, 8), (8, 10), (10, 8), (8, 24), (24, 8), (1, 5)])
@pytest.mark.parametrize("steps", COEFFICIENTS)
def test_each_shape_is_iterated_on_as_the_iteration_is_written(shape: tuple[int, int], steps: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    slow = torch.stack([newton_schulz(matrix, steps) for matrix in matrices])
    torch.testing.assert_close(orthogonalised(matrices, steps), slow, atol=1e-12, rtol=1e-10)


def test_sixteen_bits_keep_small_singular_values() -> None:
    torch.manual_seed(0)
    matrix = with_singular_values(16, 64, torch.logspace(-2.5, 0, 16))
    result = orthogonalised(matrix[None].bfloat16(), 3)[0].float()
    torch.testing.assert_close(result, newton_schulz(matrix, 3), atol=0.05, rtol=0)


def test_a_batch_of_matrices_gives_what_each_gives_alone_and_zeros_stay_zeros() -> None:
    torch.manual_seed(0)
    batch = torch.randn(5, 12, 20)
    batch[3] = 0
    alone = torch.cat([orthogonalised(matrix[None]) for matrix in batch])
    torch.testing.assert_close(orthogonalised(batch), alone, atol=1e-5, rtol=1e-5)
    assert not alone[3].any()


def slow_muon(weight: Tensor, gradients: list[Tensor], rows: list[int]) -> Tensor:
    """The weight after a step for each gradient: every matrix by itself, as the algorithm is written."""
    parts = []
    for part, *grads in zip(weight.split(rows), *(gradient.split(rows) for gradient in gradients), strict=True):
        momentum = torch.zeros_like(part)
        for grad in grads:
            momentum = 0.85 * momentum + 0.15 * grad
            direction = 0.85 * momentum + 0.15 * grad
            tall = direction.shape[0] > direction.shape[1]
            step = orthogonalised((direction.mT if tall else direction)[None])[0]
            scale = 0.2 * 128**0.5 * max(1.0, part.shape[0] / part.shape[1]) ** 0.5
            part = part - 1e-2 * (0.1 * part + scale * (step.mT if tall else step))
        parts.append(part)
    return torch.cat(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_matrices_are_stepped_as_if_each_stood_alone_and_the_rest_as_by_adamw(kind: str) -> None:
    model, twin = make(kind), make(kind)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    stacked = matrices(model, kind)
    optimizer, adamw = make_optimizer(model, MUON), make_optimizer(twin, dataclasses.replace(MUON, name="adamw"))
    gradients: dict[str, list[Tensor]] = {name: [] for name in before}
    for seed in range(3):
        fill_gradients(model, seed)
        fill_gradients(twin, seed)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name].append(parameter.grad.clone())
        optimizer.step()
        adamw.step()
    for name, weight in model.state_dict().items():
        if name in stacked:
            expected = slow_muon(before[name], gradients[name], stacked[name])
            torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5, msg=name)
        else:
            assert torch.equal(weight, twin.state_dict()[name]), name


def test_an_mlp_of_ones_own_names_its_layer_of_several_maps_and_muon_takes_them_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Three(nn.Module):
        stacked: ClassVar = {"wide": 3}

        def __init__(self, config: GPTConfig) -> None:
            super().__init__()
            self.wide = nn.Linear(config.n_embd, 3 * config.mlp_width, bias=False)
            self.proj = nn.Linear(config.mlp_width, config.n_embd, bias=False)

    monkeypatch.setitem(MLPS, "swiglu", Three)
    model = make(n_layer=1, mlp_hidden=40)
    assert stacked_rows(model) == {
        model.blocks[0].attn.qkv.weight: [32, 32, 32],
        model.blocks[0].attn.proj.weight: [32],
        model.blocks[0].mlp.wide.weight: [40, 40, 40],
        model.blocks[0].mlp.proj.weight: [32],
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_matrices_alone_decay(name: Any, kind: str) -> None:
    model = make(kind)
    groups = parameter_groups(model, OptimizerConfig(name=name, weight_decay=0.1))
    names = {parameter: each for each, parameter in model.named_parameters()}
    grouped = [names[parameter] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    inside = matrices(model, kind)
    head = set() if model.config.tie_embeddings else {"lm_head.weight"}
    by_muon = {
        names[parameter]: rows
        for group in groups
        if "rows" in group
        for parameter, rows in zip(group["params"], group["rows"], strict=True)
    }
    assert by_muon == (inside if name == "muon" else {})
    assert {names[p] for group in groups if group["weight_decay"] for p in group["params"]} == {*inside, *head}


@pytest.mark.parametrize("shape", [(24, 24), (24, 64), (64, 24)])
def test_a_matrix_is_stepped_as_by_torchs_own_muon(shape: tuple[int, int]) -> None:
    """Which computes in bfloat16, of three digits: hence the tolerance."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    other = nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [
        {"params": [ours], "rows": [[shape[0]]], "weight_decay": 0.1, "momentum": 0.95, "ns_steps": 5},
        {"params": [other], "weight_decay": 0.0},
    ]
    optimizers = [
        Muon(groups, lr=0.1, betas=(0.9, 0.95)),
        torch.optim.Muon([theirs], lr=0.1 * LIKE_ADAMW, weight_decay=0.1 / LIKE_ADAMW, adjust_lr_fn="original"),
    ]
    for _ in range(3):
        ours.grad = theirs.grad = with_singular_values(*shape, torch.linspace(0.2, 1, 24))
        for optimizer in optimizers:
            optimizer.step()
    assert float(((ours - theirs).norm() / theirs.norm()).detach()) < 0.02


def test_what_an_update_makes_of_a_vector_is_as_long_at_every_width() -> None:
    for width in (32, 64, 128):
        model = make(n_embd=width)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = make_optimizer(model, dataclasses.replace(MUON, weight_decay=0.0))
        fill_gradients(model, seed=1)
        optimizer.step()
        for name in ("blocks.0.attn.proj.weight", "blocks.1.attn.proj.weight"):
            change = (model.get_parameter(name).detach() - before[name]) / MUON.learning_rate
            assert float(torch.linalg.matrix_norm(change, ord=2)) == pytest.approx(LIKE_ADAMW, rel=0.25)


def test_a_tall_update_is_as_much_larger_as_its_output_is_longer() -> None:
    assert update_scale(100, 25) == 2 * update_scale(25, 100) == 2 * update_scale(25, 25)
    assert update_scale(128, 128) / 128**0.5 == pytest.approx(0.2)


def test_one_learning_rate_serves_all_widths() -> None:
    """The coordinate check (Yang et al. 2022): hidden vectors and logits move as far at any width."""

    def moved(width: int, name: Any) -> Tensor:
        model = make(n_embd=width, n_head=4)
        optimizer = make_optimizer(model, dataclasses.replace(MUON, name=name, weight_decay=0.0))
        tokens, others = torch.randint(61, (2, 8, 25), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            x, logits = model.hidden(others[:, 1:]), model(others[:, 1:])
        for _ in range(5):
            optimizer.zero_grad()
            next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
            follow_schedule(optimizer, OptimizerConfig(schedule="constant", warmup_steps=0), 0, 0.0)
            optimizer.step()
        with torch.no_grad():
            changes = model.hidden(others[:, 1:]) - x, model(others[:, 1:]) - logits
        return torch.stack([change.square().mean().sqrt() for change in changes])

    by_muon, by_adamw = (moved(256, name) / moved(64, name) for name in ("muon", "adamw"))
    assert by_muon.max() < 1.5
    assert by_muon.min() > 0.6
    assert by_adamw[1] > 2  # what is prevented


def test_embeddings_take_larger_steps_and_a_wider_head_smaller_ones() -> None:
    for tied in (False, True):
        model = make(n_embd=64, tie_embeddings=tied, position="learned")
        scales = {p: group["lr_scale"] for group in parameter_groups(model, MUON) for p in group["params"]}
        head = model.token_embedding if tied else model.lm_head
        assert scales[head.weight] == BASE_WIDTH / 64
        assert scales[model.position_embedding.weight] == EMBEDDING_RATE
        assert scales[model.blocks[0].attn.qkv.weight] == scales[model.final_norm.weight] == 1.0
    assert {group["lr_scale"] for group in parameter_groups(model, dataclasses.replace(MUON, name="adamw"))} == {1.0}


def test_momentum_rises_to_its_end_and_is_never_above_it() -> None:
    config = OptimizerConfig(name="muon", momentum=0.95, momentum_warmup_steps=10)
    assert [muon_momentum(config, step) for step in (0, 5, 10, 50)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert muon_momentum(dataclasses.replace(config, momentum_warmup_steps=0), 0) == 0.95
    assert muon_momentum(dataclasses.replace(config, momentum=0.5), 0) == 0.5


@pytest.mark.parametrize("kind", ["modern", "gpt2", "symmetric"])
def test_muon_learns_one_batch_by_heart(kind: str) -> None:
    model = make(kind)
    optimizer = make_optimizer(model, dataclasses.replace(MUON, weight_decay=0.0))
    tokens = torch.randint(61, (4, 25))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(80)]
    assert losses[-1] < 0.05


def test_a_saved_state_opens_as_plain_types_and_goes_on_bit_for_bit() -> None:
    def step(model: GPT, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            fill_gradients(model, seed)
            optimizer.step()

    model = make()
    optimizer = make_optimizer(model, MUON)
    step(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"weights": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = make()
    again.load_state_dict(saved["weights"])
    resumed = make_optimizer(again, dataclasses.replace(MUON, learning_rate=1.0))
    resumed.load_state_dict(saved["optimizer"])
    assert len(saved["optimizer"]["state"]) == len(list(model.parameters()))
    step(model, optimizer, range(3, 6))
    step(again, resumed, range(3, 6))
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_parameter_without_gradient_is_left_alone() -> None:
    model = make()
    optimizer = make_optimizer(model, MUON)
    fill_gradients(model, seed=1)
    frozen = model.blocks[0].attn.qkv.weight
    frozen.grad = None
    before = frozen.detach().clone()
    optimizer.step()
    assert torch.equal(frozen, before)


def test_a_matrix_that_is_shared_out_is_refused_in_one_line() -> None:
    flat = nn.Parameter(torch.zeros(12))
    with pytest.raises(UserError, match=r"optimizer.name=muon: needs whole matrices.*use ddp"):
        Muon(
            [{"params": [flat], "rows": [[3]], "weight_decay": 0.0, "momentum": 0.9, "ns_steps": 5}],
            lr=0.1,
            betas=(0.9, 0.95),
        )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 0.82, 0.64, 0.46, 0.28, 0.1]),
        ("cosine", [0.5, 0.9140576, 0.6890576, 0.4109424, 0.1859424, 0.1]),
        ("wsd", [0.5, 1.0, 1.0, 0.91, 0.46, 0.1]),
    ],
)
def test_a_schedule_rises_by_steps_and_falls_by_progress(schedule: Any, expected: list[float]) -> None:
    settings: dict[str, Any] = {"decay_fraction": 0.5} if schedule == "wsd" else {}
    config = OptimizerConfig(
        learning_rate=2.0,
        schedule=schedule,
        warmup_steps=2,
        final_lr_fraction=0.1,
        **settings,
    )
    progress = [0.0, 0.2, 0.4, 0.55, 0.8, 1.0] if schedule == "wsd" else [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    now = [learning_rate(config, step, share) for step, share in enumerate(progress)]
    assert now == pytest.approx([2.0 * value for value in expected], abs=1e-6)
