"""Causes of each prediction are those of the text that is shown, and fit each other."""

from typing import Any

import numpy as np
import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer, decode
from minigpt.inspection import heads
from minigpt.inspection.ablation import losses
from minigpt.inspection.causes import find_causes
from minigpt.inspection.heads import score_heads
from minigpt.inspection.probes import Probe
from minigpt.model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 257, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
TEXT = list(b"add(add(a), add(b))\n")


def tiny(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**TINY | changes))


@pytest.mark.parametrize(
    "kind",
    [{}, {"similarity": "linear"}, {"window": 5, "n_kv_head": 2}, {"block": "parallel", "norm": "layernorm"}],
    ids=str,
)
def test_the_causes_of_each_token_fit_each_other_and_the_models_loss(kind: dict[str, Any]) -> None:
    model = tiny(**kind)
    found = find_causes(model, BytesTokenizer(), TEXT, following=ord("x"))
    with torch.no_grad():
        expected = losses(model.eval(), torch.tensor([[*TEXT, ord("x")]]))[0].numpy()
    assert (found.targets[-1], found.is_open) == ("x", False)
    np.testing.assert_allclose(found.losses, expected, atol=1e-5)
    np.testing.assert_allclose(found.entropy + found.attribution.sum(0), expected, atol=1e-4)
    np.testing.assert_allclose(-np.log(found.target_probabilities[-1]), expected, atol=1e-4)
    assert found.best_probabilities.shape == (3, len(TEXT)) == (len(found.best), len(found.best[0]))
    assert (found.best_probabilities >= found.target_probabilities - 1e-6).all()
    assert found.ablation is not None
    assert found.ablation.shape == (2, 4, len(TEXT))


def test_the_loss_of_a_token_without_a_head_is_that_of_a_model_whose_head_is_zero() -> None:
    model = tiny()
    found = find_causes(model, BytesTokenizer(), TEXT, following=ord("x"))
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 8:16] = 0  # head 1.1
        without = losses(model.eval(), torch.tensor([[*TEXT, ord("x")]]))[0].numpy()
    assert found.ablation is not None
    np.testing.assert_allclose(found.ablation[1, 1], without - found.losses, atol=1e-5)


def test_where_a_text_ends_the_models_likeliest_token_is_explained() -> None:
    model = tiny()
    found = find_causes(model, BytesTokenizer(), TEXT)
    with torch.no_grad():
        likeliest = int(model.eval()(torch.tensor([TEXT]))[0, -1].argmax())
    assert found.is_open
    assert found.targets[-1] == found.best[-1][-1] == decode(BytesTokenizer(), [likeliest])
    assert found.target_probabilities[-1, -1] == pytest.approx(found.best_probabilities[-1, -1])


def test_heads_of_a_model_that_is_large_for_a_cpu_are_not_ablated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "ABLATION_OPERATIONS", 1e3)
    found = score_heads(tiny(), BytesTokenizer(), Probe.of(BytesTokenizer(), TEXT, 24, 20), 7, everything=True).causes
    assert found is not None
    assert found.ablation is None


@pytest.mark.parametrize(("shown", "text"), [(8, "abcdefghijkl"), (12, "abcdefghijkl"), (12, "abc")])
def test_the_causes_of_an_inspection_are_those_of_the_text_that_is_shown(shown: int, text: str) -> None:
    tokenizer = BytesTokenizer()
    probe = Probe.of(tokenizer, tokenizer.encode(text), 24, shown)
    found = score_heads(tiny(), tokenizer, probe, 7, everything=True).causes
    assert found is not None
    ends = shown >= len(text)
    assert found.is_open == ends
    assert "".join(found.targets[: len(text) - 1]) == text[1 : shown + 1]
    assert score_heads(tiny(), tokenizer, probe, 7).causes is None


def test_finding_causes_leaves_the_model_as_it_was() -> None:
    model = tiny(dropout=0.1).train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    find_causes(model, BytesTokenizer(), TEXT)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.training for each in model.modules())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
