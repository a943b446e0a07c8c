"""The whole model: sizes, causality, the loss it starts from, and that it can learn."""

import itertools
import math
from typing import Any

import pytest
import torch

from minigpt.config import GPTConfig, OptimizerConfig
from minigpt.model.gpt import GPT
from minigpt.training.module import next_token_loss
from minigpt.training.optimizer import make_optimizer

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
CHOICES = [
    dict(zip(("position", "norm", "mlp", "qk_norm", "n_kv_head"), values, strict=True))
    for values in itertools.product(
        ("rotary", "learned", "none"), ("rmsnorm", "layernorm"), ("swiglu", "gelu"), (True, False), (4, 2)
    )
]
FAMILIES = {"modern": GPTConfig(**TINY), "gpt2": GPTConfig.gpt2_family(**TINY)}


def name_of(choice: dict[str, Any]) -> str:
    return "-".join(map(str, choice.values()))


def make(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    return GPT(config)


def test_gpt2_small_has_exactly_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.gpt2_family())
    assert model.n_parameters == 124_439_808


def test_the_number_of_parameters_of_the_modern_family_is_what_its_shapes_say() -> None:
    C, V, L, hidden = 32, 61, 2, 128
    per_layer = C * 3 * C + C * C + 2 * (C // 4) + 3 * C * hidden + 2 * C
    assert make(GPTConfig(**TINY)).n_parameters == 2 * V * C + L * per_layer + C


@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
def test_changing_a_later_token_moves_no_earlier_logit(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**TINY, **choice)).eval()
    tokens = torch.randint(61, (2, 24))
    changed = tokens.clone()
    changed[:, 13] = (changed[:, 13] + 1) % 61
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :13], after[:, :13], atol=1e-6, rtol=1e-5)
    assert (before[:, 13:] != after[:, 13:]).any(dim=-1).all(), "the change must reach every later position"


@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
def test_the_loss_before_training_is_that_of_a_uniform_guess(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**{**TINY, "vocab_size": 1000, "n_embd": 64}, **choice)).eval()
    tokens = torch.randint(1000, (8, 25))
    with torch.no_grad():
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
    assert float(loss) == pytest.approx(math.log(1000), rel=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_gives_the_same_logits_as_the_whole_text(family: str) -> None:
    model = make(FAMILIES[family]).eval()
    tokens = torch.randint(61, (1, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, :9], model(tokens[:, :9]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_is_learned_by_heart(family: str) -> None:
    model = make(FAMILIES[family])
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=1e-2, weight_decay=0.0))
    tokens = torch.randint(61, (4, 25))
    for _ in range(120):
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_without_positions_a_token_order_before_the_last_does_not_matter() -> None:
    """One layer: the last position sums over a set. (Deeper layers see order through the causal mask itself.)"""
    model = make(GPTConfig(**{**TINY, "n_layer": 1}, position="none")).eval()
    tokens = torch.randint(61, (1, 10))
    shuffled = torch.cat([tokens[:, :9].flip(1), tokens[:, 9:]], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, -1], model(shuffled)[:, -1], atol=1e-5, rtol=1e-4)
    ordered = make(GPTConfig(**{**TINY, "n_layer": 1}, position="rotary")).eval()
    with torch.no_grad():
        assert not torch.allclose(ordered(tokens)[:, -1], ordered(shuffled)[:, -1], atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    model = make(GPTConfig(**TINY, dropout=0.5))
    tokens = torch.randint(61, (1, 24))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_a_tied_head_is_stored_once() -> None:
    tied, untied = make(GPTConfig(**TINY, tie_embeddings=True)), make(GPTConfig(**TINY))
    assert untied.n_parameters - tied.n_parameters == 61 * 32
    assert "lm_head.weight" not in tied.state_dict()


def test_a_text_longer_than_the_context_is_refused_with_both_lengths() -> None:
    with pytest.raises(ValueError, match="25 tokens do not fit the context of 24"):
        make(GPTConfig(**TINY))(torch.zeros(1, 25, dtype=torch.long))


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is not set"):
        GPT(GPTConfig())


def test_weight_decay_reaches_matrices_only() -> None:
    model = make(FAMILIES["gpt2"])
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    others = {names[id(p)] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert decayed == {
        n for n in names.values() if n.startswith("blocks") and n.endswith(("qkv.weight", "proj.weight", "up.weight"))
    }
    assert decayed | others == set(names.values())
    assert not decayed & others
