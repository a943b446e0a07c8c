"""What a head's absence costs is what a model without its output would lose; the model is left as it was."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from minigpt.config import GPTConfig
from minigpt.inspection.ablation import ablation, losses, without_head
from minigpt.model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
each_kind = pytest.mark.parametrize(
    "kind",
    [{}, {"n_kv_head": 2, "bias": True}, {"head_dim": 6}, {"similarity": "linear"}, {"window": [3, None]}],
    ids=["plain", "grouped", "narrow", "linear", "window"],
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
    changes = ablation(model, tokens, positions)
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
    assert changes.abs().min() > 1e-4, "each head matters here"


def test_a_head_that_writes_nothing_is_not_missed() -> None:
    model, tokens = tiny()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 8:16] = 0.0
    assert (ablation(model, tokens) == 0).tolist() == [[False] * 4, [False, True, False, False]]


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
    first = ablation(model, tokens)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not first.requires_grad
    assert torch.equal(ablation(model, tokens), first), "no dropout while looking"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_heads_come_back_at_the_end_also_after_an_exception() -> None:
    model, tokens = tiny()
    before = model(tokens[:, :-1])
    with pytest.raises(RuntimeError, match="in between"), without_head(model.blocks[0].attn, 2):
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
    with without_head(attention, 0), without_head(attention, 3):
        found = model(tokens[:, :-1])
    with torch.no_grad():
        attention.proj.weight[:, :8] = 0.0
        attention.proj.weight[:, 24:] = 0.0
    torch.testing.assert_close(found, model(tokens[:, :-1]))


def test_gradients_pass_a_silenced_head_by() -> None:
    model, tokens = tiny()
    with without_head(model.blocks[1].attn, 1):
        losses(model, tokens).mean().backward()
    gradient = model.blocks[1].attn.proj.weight.grad
    assert gradient is not None
    assert not gradient[:, 8:16].any()
    assert gradient[:, :8].any()
