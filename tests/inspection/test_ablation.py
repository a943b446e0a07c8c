"""What a head's absence costs is what a model without its output would lose; the model is left as it was."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.config.commands import ABLATED
from minigpt.errors import UserError
from minigpt.inspection import ablation as module
from minigpt.inspection import lens
from minigpt.inspection.ablation import KINDS, Part, ablation, ablation_by_token, losses, without_head
from minigpt.model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
each_kind = pytest.mark.parametrize(
    "kind",
    [
        {},
        {"n_kv_head": 2, "bias": True},
        {"head_dim": 6},
        {"similarity": "linear"},
        {"similarity": "hard"},
        {"window": [3, None]},
        {"document_mask": True, "end_of_text": 7},
        {"block": "post_norm", "tie_embeddings": True},
        {"block": "parallel", "norm": "layernorm", "bias": True, "position": "learned"},
    ],
    ids=["plain", "grouped", "narrow", "linear", "hard", "window", "documents", "post_norm", "parallel"],
)


def tiny(**kind: Any) -> tuple[GPT, torch.Tensor]:
    """A model whose heads matter, and (2, 13) ids."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(TINY | kind)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 5
    return model.eval(), torch.randint(61, (2, 13))


def plain_loss(model: GPT, tokens: torch.Tensor, positions: slice) -> float:
    with torch.no_grad():
        logits = model(tokens[:, :-1])[:, positions]
    return float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:][:, positions].flatten()))


@each_kind
@pytest.mark.parametrize("positions", [slice(None), slice(8, None)], ids=["all", "late"])
def test_it_is_the_loss_of_a_model_whose_projection_of_that_head_is_zero(
    kind: dict[str, Any], positions: slice
) -> None:
    model, tokens = tiny(**kind)
    changes = ablation(model, tokens, positions=positions).mean.view(2, 4)
    whole, D = plain_loss(model, tokens, positions), model.config.width_per_head
    assert changes.shape == (2, 4)
    for layer in range(2):
        for head in range(4):
            weight = model.blocks[layer].attn.proj.weight
            kept = weight.detach().clone()
            with torch.no_grad():
                weight[:, head * D : (head + 1) * D] = 0.0
            expected = plain_loss(model, tokens, positions) - whole
            with torch.no_grad():
                weight.copy_(kept)
            assert changes[layer, head] == pytest.approx(expected, abs=2e-5)
    assert changes.abs().min() > 1e-5, "each head matters here"


@contextlib.contextmanager
def replaced(module: nn.Module, values: Tensor) -> Iterator[None]:
    """A module returns these values instead of its own."""
    handle = module.register_forward_hook(lambda *_: values)
    yield
    handle.remove()


def kept(model: GPT, inner: nn.Module, tokens: Tensor, *, inputs: bool = False) -> Tensor:
    """What a module takes, or returns, in a forward pass of all windows at once."""
    seen: list[Tensor] = []
    handle = inner.register_forward_hook(lambda _, taken, output: seen.append(taken[0] if inputs else output))
    with torch.no_grad():
        model(tokens[:, :-1])
    handle.remove()
    return seen[0]


def stand_in(values: Tensor, kind: str, order: Tensor) -> Tensor:
    """(B, T, C) of the model -> what an ablation puts in its place."""
    if kind == "zero":
        return torch.zeros_like(values)
    return values.mean(dim=(0, 1)).expand_as(values) if kind == "mean" else values[order]


@pytest.mark.parametrize("block", ["pre_norm", "post_norm", "parallel"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_puts_zeros_the_mean_or_another_window_in_place_of_heads_mlps_and_layers(
    kind: module.Kind, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS", 24)  # two of the five windows at a time
    monkeypatch.setattr(lens, "CHUNK_LOGITS", 61 * 2 * 5)  # and five positions
    model, _ = tiny(block=block, bias=True, norm="layernorm")
    tokens = torch.randint(61, (5, 13))
    found = ablation(model, tokens, kind=kind, parts=["1.2", "mlp0", "attn1", "0.1, 1.2, mlp1", "layer0"])
    assert found.parts == ("1.2", "mlp0", "attn1", "0.1,1.2,mlp1", "layer0")
    order = module._other_windows(5)
    with torch.no_grad():
        whole = losses(model, tokens)
    torch.testing.assert_close(found.losses, whole)
    post = block == "post_norm"
    parts = [(b.attn.proj, b.attn_norm if post else b.attn, b.mlp_norm if post else b.mlp) for b in model.blocks]
    proj, adds = parts[1][0], [stand_in(kept(model, each[1], tokens), kind, order) for each in parts]
    mlps = [stand_in(kept(model, each[2], tokens), kind, order) for each in parts]
    D = model.config.width_per_head

    def without_two(layer: int, head: int, own: Tensor) -> Tensor:
        own = own.clone()
        own[..., head * D : (head + 1) * D] = stand_in(heads[layer], kind, order)[..., head * D : (head + 1) * D]
        return own

    heads = [kept(model, each[0], tokens, inputs=True) for each in parts]
    with torch.no_grad():
        with replaced(proj, proj(without_two(1, 2, heads[1]))):
            expected = [losses(model, tokens)]
        for inner, values in ((parts[0][2], mlps[0]), (parts[1][1], adds[1])):
            with replaced(inner, values):
                expected.append(losses(model, tokens))
        with without_head(model, 0, 1, stand_in(heads[0], kind, order)[..., D : 2 * D]):
            own = kept(model, parts[1][0], tokens, inputs=True)
            with replaced(proj, proj(without_two(1, 2, own))), replaced(parts[1][2], mlps[1]):
                expected.append(losses(model, tokens))
        with replaced(parts[0][1], adds[0]), replaced(parts[0][2], mlps[0]):
            expected.append(losses(model, tokens))
    torch.testing.assert_close(found.changes, torch.stack(expected) - whole, rtol=0, atol=2e-5)
    windows = found.changes.double().mean(dim=2)
    torch.testing.assert_close(found.mean, windows.mean(dim=1))
    torch.testing.assert_close(found.spread, windows.std(dim=1))


def test_the_other_window_is_never_the_same_and_each_is_taken_once() -> None:
    for n in range(2, 30):
        other = module._other_windows(n)
        assert sorted(other.tolist()) == list(range(n))
        assert (other != torch.arange(n)).all()


def test_the_change_of_each_token_has_a_place_for_each_layer_head_window_and_position() -> None:
    model, tokens = tiny()
    changes = ablation_by_token(model, tokens)
    assert changes.shape == (2, 4, 2, 12)
    with without_head(model, 1, 2), torch.no_grad():
        expected = losses(model, tokens)
    torch.testing.assert_close(changes[1, 2], expected - losses(model, tokens).detach(), rtol=0, atol=1e-5)


def test_one_window_has_no_spread_and_no_other_window() -> None:
    model, tokens = tiny()
    assert ablation(model, tokens[:1], kind="mean").spread.isnan().all()
    with pytest.raises(UserError, match="another window, but the text has one, of 12 tokens: give a longer text"):
        ablation(model, tokens[:1], kind="resample")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1.9", r"ablate: 1\.9: there are heads 0 to 3"),
        ("2.0", r"ablate: 2\.0: there are layers 0 to 1"),
        ("mlp2", "ablate: mlp2: there are layers 0 to 1"),
        ("0.0,mpl0", "ablate: 'mpl0' is not a head as 1.0, nor mlp0, attn0 or layer0"),
        ("9" * 5000 + ".0", "is not a head as 1.0, nor mlp0, attn0 or layer0"),
        ("mlp" + "9" * 5000, "is not a head as 1.0, nor mlp0, attn0 or layer0"),
        ("0.0,", "ablate: '' is not a head"),
        ("\u0661.0", "is not a head"),
    ],
)
def test_a_part_that_the_model_does_not_have_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Part.of(name, 2, 4)
    assert bool(re.fullmatch(ABLATED, name)) == ("there are" in words), "the command line refuses what is no name"


def test_a_head_that_writes_nothing_is_not_missed() -> None:
    model, tokens = tiny()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 8:16] = 0.0
    assert (ablation(model, tokens).mean.view(2, 4) == 0).tolist() == [[False] * 4, [False, True, False, False]]


def test_losses_are_those_of_each_prediction() -> None:
    model, tokens = tiny()
    with torch.no_grad():
        found = losses(model, tokens)
    assert found.shape == (2, 12)
    logits = model(tokens[:, :-1]).log_softmax(-1)
    for b in range(2):
        for t in range(12):
            assert found[b, t] == pytest.approx(-logits[b, t, tokens[b, t + 1]].item(), abs=1e-5)


def test_the_model_is_left_as_it_was_in_the_midst_of_training() -> None:
    model, tokens = tiny(dropout=0.5)
    model.train()
    model.blocks[1].eval()
    flags = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = ablation(model, tokens, kind="mean").changes
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not first.requires_grad
    assert torch.equal(ablation(model, tokens, kind="mean").changes, first), "no dropout while looking"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_heads_come_back_at_the_end_also_after_an_exception() -> None:
    model, tokens = tiny()
    before = model(tokens[:, :-1])
    with pytest.raises(RuntimeError, match="in between"), without_head(model, 0, 2):
        assert not torch.equal(model(tokens[:, :-1]), before)
        raise RuntimeError("in between")
    assert torch.equal(model(tokens[:, :-1]), before)
    with pytest.raises(ValueError, match="do not fit the context"):
        ablation(model.train(), torch.randint(61, (1, 18)))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_two_heads_can_be_left_out_together() -> None:
    model, tokens = tiny()
    attention = model.blocks[0].attn
    with without_head(model, 0, 0), without_head(model, 0, 3):
        found = model(tokens[:, :-1])
    with torch.no_grad():
        attention.proj.weight[:, :8] = 0.0
        attention.proj.weight[:, 24:] = 0.0
    torch.testing.assert_close(found, model(tokens[:, :-1]))


def test_gradients_pass_a_silenced_head_by() -> None:
    model, tokens = tiny()
    with without_head(model, 1, 1):
        losses(model, tokens).mean().backward()
    gradient = model.blocks[1].attn.proj.weight.grad
    assert gradient is not None
    assert not gradient[:, 8:16].any()
    assert gradient[:, :8].any()
