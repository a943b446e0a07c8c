"""What is shown is what is used: captured weights times values are what the fused kernels gathered."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer, decode
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.inspection.capture import attention_hooks, capture_attention, probe, value_norms
from minigpt.model import attention
from minigpt.model.gpt import GPT
from minigpt.model.variants.similarities import SIMILARITIES

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}


def kinds() -> list[dict[str, Any]]:
    """Every similarity with plain, windowed, capped and grouped attention, where they compose."""
    extras: list[dict[str, Any]] = [{}, {"window": [5, None]}, {"logit_softcap": 3.0}, {"n_kv_head": 2}]
    good = []
    for similarity, position, extra in itertools.product(SIMILARITIES, ("rotary", "alibi", "learned"), extras):
        kind = {"similarity": similarity, "position": position, **extra}
        try:
            GPTConfig(**TINY, **kind)
        except UserError:
            continue
        good.append(kind)
    return good


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: "-".join(map(str, kind.values())))
def test_captured_weights_times_values_are_what_attention_gathered(
    kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**TINY, **kind)).eval()
    gathered: list[tuple[Tensor, Tensor]] = []
    attend_variant = attention.attend_variant

    def spy(query: Tensor, key: Tensor, value: Tensor, *how: Any) -> Tensor:
        result = attend_variant(query, key, value, *how)
        gathered.append((value.repeat_interleave(4 // value.shape[1], dim=1), result))
        return result

    monkeypatch.setattr(attention, "attend_variant", spy)
    texts = torch.tensor([[0] * 24, [-1] * 3 + [0] * 9 + [1] * 12])
    with torch.no_grad(), capture_attention(model) as maps:
        model(torch.randint(61, (2, 24)), texts)
    assert len(maps) == len(gathered) == 2
    for weights, (value, result) in zip(maps, gathered, strict=True):
        torch.testing.assert_close(weights @ value, result, atol=1e-5, rtol=1e-4)
        assert (weights.triu(1) == 0).all()
        sums = weights.sum(-1)
        torch.testing.assert_close(sums[0], torch.ones(4, 24))
        torch.testing.assert_close(sums[1], torch.cat([torch.zeros(4, 3), torch.ones(4, 21)], dim=-1))
        assert not weights[1, :, 12:, :12].any(), "no document attends to another"


@pytest.mark.parametrize("kind", [{}, {"n_kv_head": 2}, {"similarity": "linear"}], ids=str)
def test_value_norms_are_the_lengths_of_what_values_add_to_the_residual_stream(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**TINY, **kind)).eval()
    layer = model.blocks[0].attn
    value = torch.randn(2, kind.get("n_kv_head", 4), 24, 8)
    found = value_norms(layer, value)
    for head in range(4):
        own = value[:, head * value.shape[1] // 4] @ layer.proj.weight[:, head * 8 : head * 8 + 8].T
        torch.testing.assert_close(found[:, head], own.norm(dim=-1), atol=1e-5, rtol=1e-4)


def test_a_probe_tells_what_the_model_expects_next() -> None:
    torch.manual_seed(0)
    model, tokenizer = GPT(GPTConfig(**TINY | {"vocab_size": 257})).eval(), BytesTokenizer()
    tokens = tokenizer.encode("some text")
    snapshot = probe(model, tokenizer, tokens, 3)
    expected = model(torch.tensor([tokens]))[0].softmax(-1).topk(5)
    for row, texts, shares in zip(snapshot.next_tokens, expected.indices.tolist(), expected.values, strict=True):
        assert [text for text, _ in row] == [decode(tokenizer, [token]) for token in texts]
        torch.testing.assert_close(torch.tensor([share for _, share in row]), shares)


def test_taps_are_gone_after_an_error() -> None:
    model = GPT(GPTConfig(**TINY))
    with pytest.raises(ZeroDivisionError), attention_hooks(model, lambda *_: 1 // 0):
        model(torch.zeros(1, 3).long())
    assert all(not block.attn.hooks for block in model.blocks)


def test_captures_nest_and_overlap_and_each_sees_all_that_runs_inside_it() -> None:
    model, tokens = GPT(GPTConfig(**TINY)).eval(), torch.randint(61, (2, 6))
    first, second = capture_attention(model), capture_attention(model)
    outer = first.__enter__()
    model(tokens)
    inner = second.__enter__()
    model(tokens)
    first.__exit__(None, None, None)
    model(tokens)
    second.__exit__(None, None, None)
    model(tokens)
    assert [len(maps.forwards) for maps in (outer, inner)] == [2, 2]
    for ours, theirs in zip(outer.forwards[1], inner.forwards[0], strict=True):
        assert torch.equal(ours, theirs)
    assert not any(block.attn.hooks for block in model.blocks)


def test_forward_passes_in_one_capture_are_told_apart() -> None:
    model = GPT(GPTConfig(**TINY)).eval()
    with capture_attention(model) as maps:
        model(torch.randint(61, (2, 6)))
        model(torch.randint(61, (1, 4)))
    assert [[tuple(each.shape) for each in layers] for layers in maps.forwards] == [
        [(2, 4, 6, 6)] * 2,
        [(1, 4, 4, 4)] * 2,
    ]
    assert [id(each) for each in maps] == [id(each) for layers in maps.forwards for each in layers]


def test_what_is_written_inside_a_capture_is_captured_token_by_token() -> None:
    model = GPT(GPTConfig(**TINY | {"vocab_size": 257})).eval()
    with capture_attention(model) as maps:
        Writer(model, BytesTokenizer()).generate("ab", max_new_tokens=3)
    assert [tuple(layers[0].shape) for layers in maps.forwards] == [(1, 4, 2, 2), (1, 4, 1, 3), (1, 4, 1, 4)]
