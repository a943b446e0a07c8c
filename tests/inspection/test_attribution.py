"""Attributions sum to what they take apart, and each part is the one of its own component."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from grids import pairwise
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.inspection.attribution import direct_logit_attribution, loss_attribution
from minigpt.model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
HEADS = [f"{layer}.{head}" for layer in range(2) for head in range(4)]
NORMS: list[dict[str, Any]] = [{}, {"norm": "layernorm"}, {"norm": "layernorm", "bias": True}, {"bias": True}]
POSITIONS = ["rotary", "learned", "sinusoidal", "alibi", "none"]
SIMILARITIES = ["scaled_dot", "cosine", "gaussian", "hopfield", "symmetric", "uniform", "linear", "hard"]
EXTRAS: list[dict[str, Any]] = [
    {},
    {"n_kv_head": 2},
    {"head_dim": 6, "window": [3, None]},
    {"tie_embeddings": True, "qk_norm": False},
    {"mlp": "gelu", "qk_norm_per_head": False},
    {"document_mask": True, "end_of_text": 7},
    {"dropout": 0.3},
]


def tiny(**kind: Any) -> tuple[GPT, Tensor]:
    """A model with gains and biases of the size of 1, and (2, 13) ids."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(TINY | kind)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.ndim > 1 else parameter.normal_()
    return model, torch.randint(61, (2, 13))


def logits_of(model: GPT, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(tokens)


def expected_names(config: GPTConfig) -> list[str]:
    names = ["embedding"] + ["position embedding"] * (config.position in {"learned", "sinusoidal"})
    norm_bias = config.norm == "layernorm" and config.bias
    for layer in range(2):
        names += HEADS[4 * layer : 4 * layer + 4]
        names += [f"attn{layer} bias"] * (config.bias or (norm_bias and config.block == "post_norm"))
        names.append(f"mlp{layer}")
    return names + ["final_norm bias"] * norm_bias


@pytest.mark.parametrize(
    ("block", "norm", "position", "similarity", "extra"),
    pairwise(["pre_norm", "post_norm", "parallel"], NORMS, POSITIONS, SIMILARITIES[:3], EXTRAS),
)
def test_components_sum_to_the_logit_and_to_the_loss(
    block: str, norm: dict[str, Any], position: str, similarity: str, extra: dict[str, Any]
) -> None:
    model, tokens = tiny(block=block, position=position, similarity=similarity, **norm, **extra)
    check_sums(model, tokens)


@pytest.mark.parametrize("similarity", SIMILARITIES[3:])
def test_components_sum_for_every_similarity(similarity: str) -> None:
    check_sums(*tiny(similarity=similarity, position="learned", bias=True))


def check_sums(model: GPT, tokens: Tensor) -> None:
    logits = logits_of(model, tokens[:, :-1])
    for token, minus, position in ((5, None, -1), (60, 3, 4)):
        found = direct_logit_attribution(model, tokens[:1, :-1], token, minus, position)
        assert list(found.names) == expected_names(model.config)
        expected = logits[0, position, token] - (0.0 if minus is None else logits[0, position, minus])
        torch.testing.assert_close(found.values.sum(), expected, rtol=0, atol=1e-4)
    parts = loss_attribution(model, tokens)
    assert parts.names == found.names
    torch.testing.assert_close(parts.entropy + parts.values.sum(0), parts.losses, rtol=0, atol=1e-4)
    expected = F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    torch.testing.assert_close(parts.losses, expected, rtol=0, atol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(parts.entropy, entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", ["pre_norm", "post_norm", "parallel"])
def test_each_value_is_that_components_share_of_the_final_stream(block: str) -> None:
    """The twin: every head's own (C) update, each update through the frozen norms as a plain vector."""
    model, tokens = tiny(block=block, norm="layernorm", bias=True, position="learned")
    model.eval()
    tokens = tokens[:1, :9]
    kept: dict[str, Tensor] = {}
    for layer, each in enumerate(model.blocks):
        each.attn.proj.register_forward_hook(lambda _, x, y, n=layer: kept.update({f"z{n}": x[0], f"a{n}": y}))
        last = each.mlp_norm if block == "post_norm" else each.mlp
        last.register_forward_hook(lambda _, __, y, n=layer: kept.update({f"mlp{n}": y}))
    model.final_norm.register_forward_pre_hook(lambda _, x: kept.update(final=x[0]))
    with torch.no_grad():
        model(tokens)

        def frozen(norm: Any, x: Tensor, part: Tensor) -> Tensor:
            return (
                (part - part.mean(-1, keepdim=True))
                / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
                * norm.weight
            )

        updates = {
            "embedding": model.token_embedding(tokens),
            "position embedding": model.position_embedding.weight[None, :9],
        }
        for layer, each in enumerate(model.blocks):
            weight, z = each.attn.proj.weight, kept[f"z{layer}"]
            heads = {f"{layer}.{h}": z[..., 8 * h : 8 * h + 8] @ weight[:, 8 * h : 8 * h + 8].T for h in range(4)}
            heads[f"attn{layer} bias"] = each.attn.proj.bias.expand_as(z)
            if block == "post_norm":
                heads = {name: frozen(each.attn_norm, kept[f"a{layer}"], part) for name, part in heads.items()}
                heads[f"attn{layer} bias"] = heads[f"attn{layer} bias"] + each.attn_norm.bias
            updates |= heads | {f"mlp{layer}": kept[f"mlp{layer}"]}
        rows = model.head_weight[5] - model.head_weight[9]
        expected = {name: frozen(model.final_norm, kept["final"], part) @ rows for name, part in updates.items()}
        expected["final_norm bias"] = (model.final_norm.bias @ rows).expand(1, 9)
    for position in (3, 8):
        found = direct_logit_attribution(model, tokens, 5, 9, position)
        assert list(found.names) == list(expected)
        wanted = torch.stack([value[0, position] for value in expected.values()])
        torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-5)


def test_a_component_that_writes_the_targets_row_lowers_its_loss() -> None:
    model, tokens = tiny()
    target = int(tokens[0, 5])
    with torch.no_grad():
        model.blocks[1].mlp.proj.weight.zero_()
        model.blocks[1].mlp.register_forward_hook(
            lambda _, __, y: y + model.head_weight[target] * model.final_norm.weight
        )
    found = loss_attribution(model, tokens[:1, :6])
    assert found.values[found.names.index("mlp1"), 0, 4] < -0.1
    logit = direct_logit_attribution(model, tokens[:1, :5], target)
    assert logit.values[logit.names.index("mlp1")] > 0.1


def test_a_silent_head_has_no_share() -> None:
    model, tokens = tiny()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, 8:16] = 0.0
    found = loss_attribution(model, tokens)
    silent = found.names.index("0.1")
    assert not found.values[silent].any()
    assert found.values.abs().amax((1, 2))[[i for i in range(len(found.names)) if i != silent]].min() > 1e-3


def test_a_position_that_is_not_there_is_refused() -> None:
    model, tokens = tiny()
    with pytest.raises(UserError, match="position=5: there are 5 positions; give -5 to 4"):
        direct_logit_attribution(model, tokens[:1, :5], 3, position=5)


def test_documents_are_attributed_apart() -> None:
    model, tokens = tiny(position="learned")
    document_ids = torch.tensor([[0] * 5 + [1] * 7] * 2)
    together, apart = loss_attribution(model, tokens, document_ids), loss_attribution(model, tokens[:, 5:])
    torch.testing.assert_close(together.values[..., 5:], apart.values)
    logit = direct_logit_attribution(model, tokens[:1, :12], 3, document_ids=document_ids[:1])
    torch.testing.assert_close(logit.values, direct_logit_attribution(model, tokens[:1, 5:12], 3).values)


def test_the_model_is_left_as_it_was_also_after_an_exception() -> None:
    model, tokens = tiny(dropout=0.5)
    model.train()
    first = loss_attribution(model, tokens)
    assert torch.equal(first.values, loss_attribution(model, tokens).values), "no dropout while looking"
    assert not first.values.requires_grad
    with pytest.raises(ValueError, match="do not fit the context"):
        loss_attribution(model, torch.zeros(1, 18, dtype=torch.int64))
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_weights_of_16_bits_are_summed_in_32() -> None:
    model, tokens = tiny(norm="layernorm", bias=True)
    found = loss_attribution(model.bfloat16(), tokens)
    assert found.values.dtype == found.losses.dtype == torch.float32
    torch.testing.assert_close(found.entropy + found.values.sum(0), found.losses, rtol=0, atol=0.1)
