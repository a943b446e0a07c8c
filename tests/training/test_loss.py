"""The loss of many logits is that of all at once, and they are never there together."""

import csv
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import small_settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt.config import GPTConfig
from minigpt.data.batches import IGNORED
from minigpt.model.gpt import GPT
from minigpt.training import loss
from minigpt.training.loss import chunked_loss, model_loss, next_token_loss
from minigpt.training.run import train

V = 61
REDUCTION = pytest.mark.parametrize("reduction", ["mean", "sum"])


@pytest.fixture
def _in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 8 * V)  # 8 rows at a time


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden, weight with padding that must not be heard, and targets, of 26 rows: the last chunk is smaller."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 13, 16, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(64, 16, dtype=dtype, generator=generator)
    weight[V:] = 100.0
    targets = torch.randint(V, (2, 13), generator=generator)
    targets[0, ::3] = IGNORED
    return hidden, weight.requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return next_token_loss(F.linear(hidden, weight[:V]), targets, reduction)


def tiny(vocab_size: int = V, **choices: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=vocab_size, context_length=24, n_layer=1, n_head=2, n_embd=16, **choices))


def test_chunks_of_a_gpu_grow_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for gigabytes in (8, 24, 80, 141):
        properties = SimpleNamespace(total_memory=gigabytes * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, p=properties: p)
        found.append(loss.chunk_logits(torch.device("cuda")))
    assert found == [2**26, 2**26, 2**28, 2**29]
    assert loss.chunk_logits(torch.device("cpu")) == loss.chunk_logits(torch.device("mps")) == 2**26


@REDUCTION
@pytest.mark.usefixtures("_in_chunks")
def test_loss_and_gradients_in_chunks_are_those_of_all_logits_at_once(reduction: str) -> None:
    hidden, weight, targets = inputs(torch.float64)
    # Times 3, as by a loss scale; gradients of a second micro-batch are added to those of the first.
    first, second = (3 * way(hidden, weight, targets, *rest) for way, rest in ((plain, []), (chunked_loss, [V])))
    torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-12)
    values = [plain(hidden, weight, targets, reduction), chunked_loss(hidden, weight, targets, V, reduction)]
    torch.testing.assert_close(*values, atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad(3 * value, (hidden, weight)) for value in values]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=1e-12)
    assert not gradients[1][1][V:].any()


@REDUCTION
@pytest.mark.usefixtures("_in_chunks")
def test_the_gradients_are_those_that_finite_differences_find(reduction: str) -> None:
    hidden, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_loss(h, w, targets, V, reduction), (hidden, weight), fast_mode=True
    )


@pytest.mark.usefixtures("_in_chunks")
def test_of_targets_that_all_count_for_nothing_loss_and_gradients_are_those_of_cross_entropy() -> None:
    hidden, weight, targets = inputs()
    nothing = torch.full_like(targets, IGNORED)
    for reduction in ("mean", "sum"):
        values = [plain(hidden, weight, nothing, reduction), chunked_loss(hidden, weight, nothing, V, reduction)]
        torch.testing.assert_close(*values, equal_nan=True)
        gradients = [torch.autograd.grad(value, (hidden, weight)) for value in values]
        torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("_in_chunks")
def test_in_half_precision_chunks_are_as_near_to_the_truth_as_all_logits_at_once() -> None:
    hidden, weight, targets = inputs()
    truth = torch.autograd.grad(plain(hidden.double(), weight.double(), targets), (hidden, weight))
    errors = []
    for way, rest in ((plain, []), (chunked_loss, [V])):
        with torch.autocast("cpu", torch.bfloat16):
            value = way(hidden, weight, targets, *rest)
        assert value.dtype == torch.float32
        found = torch.autograd.grad(value, (hidden, weight))
        assert [g.dtype for g in found] == [torch.float32, torch.float32]
        errors.append([float((g - t).norm() / t.norm()) for g, t in zip(found, truth, strict=True)])
    assert all(0 < chunked < 1.1 * whole < 0.02 for whole, chunked in zip(*errors, strict=True)), errors


def test_small_steps_of_many_chunks_are_not_lost_where_the_weights_are_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", V)  # a row at a time
    hidden = torch.ones(1, 800, 16, dtype=torch.bfloat16)
    weight = torch.zeros(64, 16, dtype=torch.bfloat16, requires_grad=True)
    chunked_loss(hidden, weight, torch.zeros(1, 800, dtype=torch.long), V, "sum").backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight.grad[1:V].float(), torch.full((V - 1, 16), 800 / V), atol=0, rtol=0.01)


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    hidden, weight, targets = inputs()
    (grad,) = torch.autograd.grad(chunked_loss(hidden, weight, targets, V), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()


class Sizes(TorchDispatchMode):
    """The largest number of elements of any tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, Tensor):
                self.most = max(self.most, result.numel())
        return results


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_all_logits_are_never_there(training: bool, tie_embeddings: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 8000)
    model, tokens = tiny(1000, tie_embeddings=tie_embeddings), torch.randint(1000, (8, 25))
    with Sizes() as sizes, torch.set_grad_enabled(training):
        value = model_loss(model, tokens[:, :-1], tokens[:, 1:])
        if training:
            value.backward()
    assert sizes.most < 30_000  # the MLP's, and those of the tables
    with Sizes() as sizes:
        model(tokens[:, :-1])
    assert sizes.most >= 8 * 24 * 1000


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_a_model_learns_the_same_in_chunks(tie_embeddings: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny(tie_embeddings=tie_embeddings, dropout=0.1), torch.randint(V, (4, 25))
    found = []
    for chunk in (2**26, 8 * V):
        monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
        torch.manual_seed(1)  # of dropout
        value = model_loss(model, tokens[:, :-1], tokens[:, 1:])
        found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        model.eval()
        whole = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:], "sum")
        torch.testing.assert_close(model_loss(model, tokens[:, :-1], tokens[:, 1:], "sum"), whole)


@pytest.mark.parametrize("chunk", [2**26, 8 * V], ids=["whole", "chunks"])
def test_a_compiled_loss_is_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the tracer and autograd's part of torch.compile; `make test-slow` has the default compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(loss, "_compiled_sum", lambda: torch.compile(loss._sum, backend="aot_eager"))
    model, tokens = tiny(), torch.randint(V, (4, 25))
    parameters = list(model.parameters())
    values = [
        way(model, tokens[:, :-1], tokens[:, 1:])
        for way in (model_loss, torch.compile(model_loss, backend="aot_eager"))
    ]
    torch.testing.assert_close(values[0], values[1])
    gradients = [torch.autograd.grad(value, parameters) for value in values]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.slow  # a minute of compiling
@pytest.mark.parametrize("chunk", [2**26, 1000], ids=["whole", "chunks"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
    losses = []
    for compile in (False, True):
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="torch.compile failed")
            run = train(small_settings(tmp_path, compile=compile, name=f"compile-{compile}", trainer={"max_steps": 6}))
        with run.metrics.open() as file:
            losses += [
                float(row[name]) for row in csv.DictReader(file) for name in ("train/loss", "val/loss") if row[name]
            ]
    assert len(losses) % 2 == 0
    assert losses[: len(losses) // 2] == pytest.approx(losses[len(losses) // 2 :], rel=1e-4)
