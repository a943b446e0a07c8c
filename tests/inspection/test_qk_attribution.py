"""The parts of a score sum to the score that the model computes, and name the components that make it."""

from typing import Any

import pytest
import torch
from induction_circuit import induction_model, repeated_without_duplicates
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.inspection.capture import attention_hooks
from minigpt.inspection.qk_attribution import qk_attribution
from minigpt.model import tables
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import AttentionSpec, attention_scores, attention_weights

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 16, "n_layer": 3, "n_head": 4, "n_embd": 32}
GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "GPT-2": GPT2,
    "OLMo 2": {"block": "post_norm", "qk_norm_per_head": False, "n_kv_head": 2},
    "post-norm LayerNorm": {"block": "post_norm", "norm": "layernorm", "bias": True, "qk_norm_per_head": False},
    "GPT-NeoX": {"block": "parallel", "norm": "layernorm", "bias": True, "rotary_fraction": 0.5},
    "LayerNorm without biases": {"norm": "layernorm", "position": "sinusoidal", "n_kv_head": 1},
    "Qwen 2": {"qk_norm": False, "qkv_bias": True, "n_kv_head": 2, "head_dim": 6},
    "cosine": {"similarity": "cosine", "n_kv_head": 2},
    "hopfield": {"similarity": "hopfield", "hopfield_steps": 1, "hopfield_beta": 0.7},
    "symmetric": {"similarity": "symmetric", "bias": True, "qk_norm_per_head": False},
    "hard": {"similarity": "hard", "softmax_temperature": 2.0},
    "tied": {"tie_embeddings": True, "position": "none", "dropout": 0.5},
}


def tiny(**kind: Any) -> tuple[GPT, Tensor]:
    """A model whose components matter, and (1, 12) ids."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(TINY | kind)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model, torch.randint(61, (1, 12))


def computed(model: GPT, tokens: Tensor, layer: int, **more: Any) -> tuple[Tensor, Tensor]:
    """(H, T, S) scores and weights of a layer."""
    found = []

    def read(at: int, query: Tensor, key: Tensor, _: Tensor, spec: AttentionSpec) -> None:
        if at == layer:
            found.extend([attention_scores(query, key, spec)[0], attention_weights(query, key, **spec)[0]])

    with torch.no_grad(), attention_hooks(model.eval(), read):
        model(tokens, **more)
    return found[0], found[1]


@pytest.mark.parametrize("name", KINDS)
def test_the_parts_sum_to_the_score(name: str) -> None:
    model, tokens = tiny(**KINDS[name])
    for layer in range(3):
        scores, weights = computed(model, tokens, layer)
        for head, query, key in ((0, 11, 4), (3, 7, 7), (2, -3, -8)):
            found = qk_attribution(model, tokens, layer, head, query, key)
            assert found.score == pytest.approx(float(scores[head, query, key]), abs=1e-5)
            assert float(found.values.sum()) == pytest.approx(found.score, abs=1e-4)
            torch.testing.assert_close(found.weights, weights[head, query])
            assert abs(found.score) > 1e-3
            assert found.position_bias is None
    assert found.values.shape == (len(found.names), len(found.names))


def test_components_are_named_as_in_the_other_attributions() -> None:
    model, tokens = tiny(**GPT2)
    found = qk_attribution(model, tokens, 1, 2, 5, 3)
    heads = ("0.0", "0.1", "0.2", "0.3")
    assert found.names == ("embedding", "position embedding", *heads, "attn0 bias", "mlp0", "bias")
    assert found.values.abs().min() > 0
    model, tokens = tiny()
    names = qk_attribution(model, tokens, 2, 0, 5, 3).names
    assert names == ("embedding", *heads, "mlp0", "1.0", "1.1", "1.2", "1.3", "mlp1", "bias")


def test_a_softcap_comes_after_the_score_and_alibi_is_a_part_of_its_own() -> None:
    model, tokens = tiny(position="alibi", logit_softcap=3.0)
    scores, _ = computed(model, tokens, 2)
    parts = [qk_attribution(model, tokens, 2, 1, 9, key) for key in (2, 6)]
    assert parts[0].position_bias == pytest.approx(-7 * tables.alibi_slopes(4)[1])
    capped = [3.0 * torch.tensor(each.score / 3.0).tanh() + each.position_bias for each in parts]
    # The model's own bias omits a constant of each query.
    assert float(capped[0] - capped[1]) == pytest.approx(float(scores[1, 9, 2] - scores[1, 9, 6]), abs=1e-5)
    for each in parts:
        assert float(each.values.sum()) == pytest.approx(each.score, abs=1e-4)


@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_positions_count_from_the_start_of_a_document(position: str) -> None:
    model, tokens = tiny(position=position)
    ids = torch.tensor([[0] * 5 + [1] * 7])
    scores, _ = computed(model, tokens, 1, document_ids=ids)
    found = qk_attribution(model, tokens, 1, 0, 10, 6, document_ids=ids)
    assert float(found.values.sum()) == pytest.approx(float(scores[0, 10, 6]), abs=1e-4)
    with pytest.raises(UserError, match="key=3: query 10 does not attend to it in layer 1: .* another document"):
        qk_attribution(model, tokens, 1, 0, 10, 3, document_ids=ids)


@pytest.mark.parametrize("kind", [{}, {"norm": "rmsnorm", "bias": False}], ids=str)
def test_the_hand_written_circuit_matches_the_embedding_with_what_the_previous_token_head_wrote(
    kind: dict[str, Any],
) -> None:
    model, before, induction = induction_model(**kind)
    tokens = repeated_without_duplicates(1, period=15)
    found = qk_attribution(model, tokens, *induction, 20, 6)  # 6 is after the earlier copy of the token at 20
    (query, key, value), *others = found.strongest(4)
    assert (query, key) == ("embedding", "{}.{}".format(*before))
    assert value == pytest.approx(12.0, abs=0.7)
    assert found.weights[6] > 0.99
    assert all(abs(value) < 1.0 for *_, value in others)
    assert found.strongest(1)[0][2] == found.values.abs().max()
    first = qk_attribution(model, tokens, *before, 20, 19).strongest(1)[0]
    assert first == ("position embedding", "position embedding", pytest.approx(12.0, abs=0.7))


def test_a_part_is_what_the_score_loses_without_its_component_where_no_norm_intervenes() -> None:
    model, tokens = tiny(block="post_norm", qk_norm=False, position="none", n_layer=2)
    found = qk_attribution(model, tokens, 1, 1, 8, 2)
    mlp = found.names.index("mlp0")
    torch.nn.init.zeros_(model.blocks[0].mlp_norm.weight)
    without = qk_attribution(model, tokens, 1, 1, 8, 2)
    lost = found.values[mlp].sum() + found.values[:, mlp].sum() - found.values[mlp, mlp]
    assert abs(float(lost)) > 0.01
    assert found.score - without.score == pytest.approx(float(lost), abs=1e-5)


def test_half_precision_and_training_mode_change_nothing_but_the_rounding() -> None:
    model, tokens = tiny(dropout=0.3)
    expected = qk_attribution(model, tokens, 2, 1, 9, 4)
    found = qk_attribution(model.train().bfloat16(), tokens, 2, 1, 9, 4)
    assert model.training
    torch.testing.assert_close(found.values, expected.values, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"similarity": "gaussian"}, "similarity=gaussian: scores by the distance"),
        ({"similarity": "linear"}, "similarity=linear: multiplies features"),
        ({"similarity": "uniform", "position": "none"}, "similarity=uniform: has neither queries nor keys"),
        ({"similarity": "hopfield"}, r"hopfield: replaces the query .*hopfield_steps=2"),
    ],
    ids=lambda value: value["similarity"] if isinstance(value, dict) else "",
)
def test_scores_that_are_no_product_are_refused(kind: dict[str, Any], message: str) -> None:
    model, tokens = tiny(**kind)
    with pytest.raises(UserError, match=message):
        qk_attribution(model, tokens, 1, 0, 5, 3)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ((3, 0, 5, 2), "head=3.0: the model has layers 0 to 2, each with heads 0 to 3"),
        ((-1, 0, 5, 2), "head=-1.0: the model has"),
        ((0, 4, 5, 2), "head=0.4: the model has"),
        ((0, 0, 12, 2), "query=12: there are 12 positions; give -12 to 11"),
        ((0, 0, 5, -13), "key=-13: there are 12 positions"),
        ((0, 0, 5, 6), "key=6: query 5 attends to earlier tokens and itself only; give 0 to 5"),
        ((0, 0, 5, 2), "key=2: query 5 does not attend to it in layer 0: it is outside the window"),
    ],
)
def test_heads_and_tokens_that_are_not_there_are_refused(at: tuple[int, int, int, int], message: str) -> None:
    model, tokens = tiny(window=[3, None, None])
    with pytest.raises(UserError, match=message):
        qk_attribution(model, tokens, *at)
    assert not any(block.attn.hooks or block.attn.proj._forward_hooks for block in model.blocks)
