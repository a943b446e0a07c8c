"""The small products give what the large matrices over vocabulary and channels give."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.inspection.circuits import copying, symmetry
from minigpt.model.gpt import GPT, PostNormBlock

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 8, "n_layer": 2, "n_head": 4, "n_embd": 16}


def tiny(**kind: Any) -> GPT:
    """A model with random weights, gains and biases of the size of 1."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(TINY | kind)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_()
            if name in {"token_embedding.weight", "lm_head.weight"}:
                parameter[61:] = 0.0
    return model


def folded(norm: nn.Module, vectors: Tensor) -> Tensor:
    """Vectors (..., n) as the norm would leave them if it divided by nothing."""
    if isinstance(norm, nn.Identity):
        return vectors
    if isinstance(norm, nn.LayerNorm):
        vectors = vectors - vectors.mean(-1, keepdim=True)
    return vectors * norm.weight.double()


def norms_around(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The norm of what attention reads, and of what it writes."""
    around = (block.attn_norm, nn.Identity())
    return around[::-1] if isinstance(block, PostNormBlock) else around


def parts(model: GPT, layer: int, head: int) -> dict[str, Tensor]:
    """(D, C) rows of one head's query, key and value, as far as there are, and (C, D) of its output."""
    config, attention = model.config, model.blocks[layer].attn
    D, group = config.width_per_head, config.n_head // config.kv_heads
    rows = list(attention.qkv.weight.double().split(D))
    n_query, n_key, _ = attention.n_projected
    found = {"value": rows[n_query + n_key + head // group]}
    if n_query:
        found["query"] = rows[head]
    if n_key:
        found["key"] = rows[n_query + head // group]
    return found | {"proj": attention.proj.weight.double()[:, head * D : (head + 1) * D]}


KINDS = [
    {"tie_embeddings": tied, "norm": norm, "bias": bias, **extra}
    for tied in (False, True)
    for norm, bias in (("rmsnorm", False), ("layernorm", True))
    for extra in ({}, {"n_kv_head": 2}, {"qk_norm": False, "head_dim": 6, "n_kv_head": 1})
]
KINDS.append({"tie_embeddings": False, "norm": "rmsnorm", "bias": False, "block": "post_norm", "n_kv_head": 2})
KINDS.append(KINDS[-1] | {"block": "parallel", "qk_norm_per_head": False})
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))


@each_kind
@torch.no_grad()
def test_copying_is_that_of_the_matrix_from_tokens_to_logits(kind: dict[str, Any]) -> None:
    model = tiny(**kind)
    embedding = model.token_embedding.weight[:61].double()
    unembedding = (model.token_embedding if kind["tie_embeddings"] else model.lm_head).weight[:61].double()
    scores = copying(model)
    assert scores.shape == (2, 4)
    assert scores.dtype == torch.float64
    for layer, block in enumerate(model.blocks):
        for head in range(4):
            part = parts(model, layer, head)
            before, after = norms_around(block)
            written = folded(after, folded(before, embedding) @ part["value"].T @ part["proj"].T)  # (V, C)
            eigenvalues = torch.linalg.eigvals(folded(model.final_norm, written) @ unembedding.T)  # of (V, V)
            expected = eigenvalues.real.sum() / eigenvalues.abs().sum()
            # the large matrix has 61 - D eigenvalues that should be zero and are not quite
            torch.testing.assert_close(scores[layer, head], expected, atol=1e-6, rtol=0)


@each_kind
@torch.no_grad()
def test_symmetry_is_that_of_the_matrix_from_channels_to_channels(kind: dict[str, Any]) -> None:
    model = tiny(**kind)
    scores = symmetry(model)
    for layer, block in enumerate(model.blocks):
        for head in range(4):
            part, eye = parts(model, layer, head), torch.eye(16, dtype=torch.float64)
            stream = folded(norms_around(block)[0], eye)  # (C, C), a row for each channel
            query, key = stream @ part["query"].T, stream @ part["key"].T
            if model.config.qk_norm_per_head:
                query, key = folded(block.attn.q_norm, query), folded(block.attn.k_norm, key)
            else:
                D, n_shared = query.shape[1], 4 // model.config.kv_heads
                query = query * block.attn.q_norm.weight.double()[head * D : (head + 1) * D]
                key = key * block.attn.k_norm.weight.double()[head // n_shared * D : (head // n_shared + 1) * D]
            M = query @ key.T  # (C, C): score of what is in one channel for what is in another
            even, odd = (M + M.T) / 2, (M - M.T) / 2
            expected = (even.square().sum() - odd.square().sum()) / M.square().sum()
            torch.testing.assert_close(scores[layer, head], expected)
    assert scores.abs().max() < 0.9


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_shared_projection_is_symmetric_and_none_has_no_symmetry(norm: str) -> None:
    shared = symmetry(tiny(similarity="symmetric", norm=norm))
    torch.testing.assert_close(shared, torch.ones(2, 4, dtype=torch.float64), atol=1e-12, rtol=0)
    none = tiny(similarity="uniform", position="learned", norm=norm)
    assert symmetry(none).isnan().all()
    assert copying(none).isfinite().all(), "it has values all the same"


@torch.no_grad()
def test_equal_and_opposite_queries_and_keys_have_symmetry_1_and_minus_1_where_they_should() -> None:
    model = tiny(norm="rmsnorm", qk_norm=False, n_layer=1)
    attention = model.blocks[0].attn
    rows = attention.qkv.weight.unflatten(0, (12, 4))  # 4 heads each of queries, keys and values
    rows[4] = rows[0]
    rows[5] = -3 * rows[1]
    turn = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]])
    rows[6] = turn @ rows[2]
    expected = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(symmetry(model)[0, :3], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_a_head_that_writes_what_it_reads_copies_and_its_negative_does_the_opposite(tied: bool) -> None:
    model = tiny(norm="rmsnorm", tie_embeddings=tied, n_layer=1)
    for norm in (model.final_norm, model.blocks[0].attn_norm):
        nn.init.ones_(norm.weight)
    if not tied:
        model.lm_head.weight.copy_(2 * model.token_embedding.weight)
    attention = model.blocks[0].attn
    value = attention.qkv.weight[-16:]
    attention.proj.weight.copy_(value.T)
    attention.proj.weight[:, 4:8] *= -0.1
    attention.proj.weight[:, 8:12] = 0.0
    scores = copying(model)[0]
    torch.testing.assert_close(scores[[0, 1, 3]], torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    assert scores[2].isnan(), "a head that writes nothing"


def test_a_random_head_does_neither_and_nothing_of_the_model_is_touched() -> None:
    model = tiny(n_embd=64, n_head=1, n_layer=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert copying(model).abs().max() < 0.3
    assert symmetry(model).abs().max() < 0.1
    assert not copying(model).requires_grad
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def test_half_precision_weights_are_read_as_they_are() -> None:
    model = tiny().to(torch.bfloat16)
    torch.testing.assert_close(copying(model), copying(model.float()))
    torch.testing.assert_close(symmetry(model), symmetry(model.float()))
