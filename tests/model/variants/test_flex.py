"""FlexAttention: where it is used, the block mask against the dense mask, and what is done where it fails."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_intervals import GRAPHS, T

from minigpt.config import GPTConfig
from minigpt.model import gpt
from minigpt.model.gpt import GPT
from minigpt.model.variants import flex
from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Adjacency, BlockEnds, Causal, Documents, Full, Graph, Window
from minigpt.model.variants.similarities import ScaledDot

of_heads = torch.rand(2, 2, T, T, generator=torch.Generator().manual_seed(0)) < 0.001
of_heads[:, 1, 128:256, :128] = True
EVERY: dict[str, Graph] = {
    **GRAPHS,
    "adjacency of each head": Adjacency(of_heads),
    "adjacency and causal": Causal() & Adjacency(of_heads[0, 0]),
    "documents in parts": Documents(torch.arange(T) // 50 % 3),
}
INEXACT = {"documents in parts", "adjacency and causal"}
"""Where a block may be looked at in vain."""


@pytest.mark.parametrize("size", [128, 32])
@pytest.mark.parametrize("name", EVERY)
def test_blocks_are_those_of_the_dense_mask(name: str, size: int) -> None:
    ends = BlockEnds.of(T, size, "cpu")
    some, every = EVERY[name].blocks(ends, ends)
    missing, mask = -T % size, EVERY[name].mask(range(T), range(T))

    def by_blocks(mask: torch.Tensor, outside: bool) -> torch.Tensor:
        n = (T + missing) // size
        return F.pad(mask, (0, missing, 0, missing), value=outside).unflatten(3, (n, size)).unflatten(2, (n, size))

    has_edge = by_blocks(mask, False).any(dim=5).any(dim=3)
    is_full = by_blocks(mask, True).all(dim=5).all(dim=3)
    assert not (has_edge & ~some).any()
    assert not (every & ~is_full).any()
    if name not in INEXACT:
        assert torch.equal(some.expand_as(has_edge), has_edge)


@pytest.mark.parametrize("name", EVERY)
def test_a_block_mask_lists_each_block_once_and_masks_those_at_the_end(name: str) -> None:
    ends = BlockEnds.of(T, flex.BLOCK, "cpu")
    some, every = EVERY[name].blocks(ends, ends)
    made = flex.make_block_mask(EVERY[name], T, T, torch.device("cpu"))
    assert torch.equal(made.to_dense().bool(), some)
    assert made.full_kv_num_blocks is not None
    whole = every.clone()
    whole[..., -1, :], whole[..., :, -1] = False, False
    assert torch.equal(made.full_kv_num_blocks, whole.sum(dim=-1, dtype=torch.int32))
    b, t, s = torch.zeros((), dtype=torch.int64), torch.tensor(7), torch.tensor(5)
    assert made.mask_mod(b, b, t, s) == EVERY[name].mask(range(T), range(T))[0, 0, 7, 5]


SHAPE: dict[str, Any] = {
    "device": "cuda", "dtype": torch.bfloat16, "n_queries": 1024, "n_keys": 1024, "width": 64
}  # fmt: skip


@pytest.mark.parametrize(
    ("graph", "softcap", "dropout", "changed", "expected"),
    [
        (Causal() & Window(8), None, 0.0, {}, True),
        (Causal(), 20.0, 0.0, {}, True),
        (Causal() & Window(8), None, 0.0, {"width": 80, "dtype": torch.float32}, True),
        (Causal(), None, 0.0, {}, False),
        (Full(), None, 0.0, {}, False),
        (Causal() & Window(8), None, 0.1, {}, False),
        (Causal() & Window(8), None, 0.0, {"width": 8}, False),
        (Causal() & Window(8), None, 0.0, {"n_queries": 127}, False),
        (Causal() & Window(8), None, 0.0, {"n_queries": 1}, False),
        (Causal() & Window(8), None, 0.0, {"dtype": torch.float64}, False),
        (Causal() & Window(8), None, 0.0, {"device": "cpu"}, False),
        (Causal() & Window(8), None, 0.0, {"device": "mps"}, False),
    ],
)
def test_flex_attention_is_for_masks_and_softcaps_of_long_texts_on_cuda(
    graph: Graph, softcap: float | None, dropout: float, changed: dict[str, Any], expected: bool
) -> None:
    assert flex.pays(graph, softcap, dropout, **(SHAPE | changed)) == expected


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention wherever a GPU would take it."""
    pays = flex.pays
    monkeypatch.setattr(flex, "pays", lambda *args, **options: pays(*args, **options | {"device": "cuda"}))
    monkeypatch.setattr(flex, "has_triton", lambda: True)
    monkeypatch.setattr(flex, "_state", {"has failed": False})


@pytest.mark.usefixtures("on_cpu")
def test_where_flex_attention_fails_one_warning_is_given_and_dense_masks_serve_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 130, 16, requires_grad=True) for _ in range(3))
    attempts = []

    def fails(*_: Any, **__: Any) -> None:
        attempts.append(1)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setattr(flex, "flex_attention", fails)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for _ in range(3):
            found = attend(query, key, value, similarity=ScaledDot(), graph=Causal() & Window(129))
    assert len(attempts) == 1
    (warning,) = given
    assert "FlexAttention failed (RuntimeError: Failed to find C compiler." in str(warning.message)
    assert "more" not in str(warning.message)
    near = attend(query, key, value, similarity=ScaledDot(), graph=Causal())
    torch.testing.assert_close(found[:, :, :129], near[:, :, :129])


@pytest.mark.usefixtures("on_cpu")
def test_too_little_memory_is_no_failure_of_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flex, "flex_attention", fails)
    query = torch.randn(1, 2, 130, 16)
    with pytest.raises(torch.OutOfMemoryError):
        attend(query, query, query, similarity=ScaledDot(), graph=Causal() & Window(9))
    assert flex.can_run()


def share_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of a model as they are on a GPU."""
    graphs = gpt._graphs
    monkeypatch.setattr(
        gpt, "_graphs", lambda *given: {window: flex.shared(graph, None) for window, graph in graphs(*given).items()}
    )


@pytest.mark.usefixtures("on_cpu")
def test_layers_of_one_window_share_a_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Graph] = []
    make = flex.make_block_mask

    def counted(graph: Graph, *sizes: Any) -> Any:
        made.append(graph)
        return make(graph, *sizes)

    monkeypatch.setattr(flex, "make_block_mask", counted)
    share_on_cpu(monkeypatch)
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=20, end_of_text=0, context_length=160, n_layer=4, n_head=2, n_kv_head=1, n_embd=32,
        window=[40, None], document_mask=True,
    )  # fmt: skip
    model, tokens = GPT(config).eval(), torch.randint(0, 20, (2, 160))
    with torch.no_grad():
        found = model(tokens)
        assert len(made) == 2, "one for each kind of layer"
        model(tokens)
        assert len(made) == 4, "and forward pass, as documents differ"
        flex._state["has failed"] = True
        torch.testing.assert_close(found, model(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("on_cpu")
def test_layers_of_two_windows_have_their_own_block_masks_when_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    share_on_cpu(monkeypatch)
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=20, context_length=160, n_layer=4, n_head=1, n_embd=16, window=[40, 20])
    model, tokens = GPT(config).eval(), torch.randint(0, 20, (1, 160))
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(tokens)
        flex._state["has failed"] = True
        torch.testing.assert_close(found, model(tokens), atol=1e-5, rtol=1e-4)
