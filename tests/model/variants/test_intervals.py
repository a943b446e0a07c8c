"""Attention by blocks against the same chunk by chunk with masks, on graphs of every kind of block."""

import pytest
import torch
from torch import Tensor

from minigpt.model.variants import intervals, kernels
from minigpt.model.variants.graphs import Adjacency, Causal, Documents, Full, Graph, Padding, Prefix, Window
from minigpt.model.variants.intervals import CAUSAL, FULL, MASKED
from minigpt.model.variants.similarities import ScoreFactors

B, H, T, D = 2, 2, 300, 8
LENGTHS = torch.tensor([130, 3, 5, 4, 1, 90, 67])
PACKED = torch.stack([torch.arange(7).repeat_interleave(LENGTHS), torch.tensor([0] * 200 + [-1] * 40 + [2] * 60)])
REAL = torch.stack([torch.arange(T) < 211, torch.arange(T) >= 17])
GRAPHS: dict[str, Graph] = {
    "full": Full(),
    "causal": Causal(),
    "window": Causal() & Window(100),
    "narrow window": Causal() & Window(3),
    "window both ways": Window(90),
    "prefix": Causal() | Prefix(140),
    "short prefix": Causal() | Prefix(5),
    "prefix of each row": Causal() | Prefix(torch.tensor([150, 0])),
    "documents": Documents(PACKED),
    "documents of one row": Causal() & Documents(PACKED[0]),
    "documents and window": Causal() & Documents(PACKED) & Window(80),
    "padding": Causal() & Padding(REAL, REAL),
    "padding of keys": Padding(REAL),
}


def test_the_private_operators_of_torch_are_those_that_attention_calls() -> None:
    """On failure: a newer torch has renamed or changed them; adapt `minigpt.model.variants.intervals`."""
    assert intervals.is_supported(intervals.flash_forward, intervals.flash_backward)


def test_without_the_private_operators_attention_goes_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 2, 20, 8, generator=torch.Generator().manual_seed(0))
    factors, graph = ScoreFactors(query, query, 0.4), Causal() & Window(3)
    expected = kernels.fused(factors, query, graph, 0.0)
    assert not intervals.is_supported(None, intervals.flash_backward)  # renamed
    assert not intervals.is_supported(intervals.flash_backward, intervals.flash_backward)  # of other arguments
    monkeypatch.setattr(kernels, "IS_SUPPORTED", False)
    monkeypatch.setattr(kernels, "attend_intervals", None)
    torch.testing.assert_close(kernels.fused(factors, query, graph, 0.0), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
def test_blocks_give_what_chunks_of_the_mask_give_forward_and_backward(
    graph: str, with_bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(B, H, T, D, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]
    if with_bias:
        leaves.append(torch.randn(1, H, T, dtype=torch.float64).requires_grad_())
    direction = torch.randn(B, H, T, D, dtype=torch.float64).to(dtype)

    def results(leaves: list[Tensor], direction: Tensor) -> list[Tensor]:
        query, key, value, *bias = leaves
        gathered = kernels.fused(ScoreFactors(query, key, 0.4, *bias), value, GRAPHS[graph], 0.0)
        return [gathered, *torch.autograd.grad(gathered, leaves, direction)]

    blocks = results(leaves, direction)
    monkeypatch.setattr(type(GRAPHS[graph]), "intervals", lambda *_: None)
    exact = results([x.detach().double().requires_grad_() for x in leaves], direction.double())
    for found, expected in zip(blocks, exact, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-10)
        else:
            assert (found.double() - expected).abs().max() < 4 / 128 * expected.abs().max()


@pytest.mark.parametrize("graph", GRAPHS)
def test_intervals_are_the_edges_of_the_graph(graph: str) -> None:
    bounds = GRAPHS[graph].intervals(T, T)
    assert bounds is not None
    low, high = (x[:, None, :, None] for x in bounds)
    keys = torch.arange(T)
    mask = GRAPHS[graph].mask(range(T), range(T)).expand(B, 1, T, T)
    assert torch.equal(((keys >= low) & (keys < high)).expand_as(mask), mask)


def test_a_graph_whose_keys_are_not_contiguous_has_no_intervals() -> None:
    ids = torch.tensor([0, 0, 1, 0])
    for graph in (Documents(ids), Adjacency(ids[:, None] == ids), Padding(ids[None] == 0), Window(1) | Prefix(1)):
        assert graph.intervals(4, 4) is None
        assert (graph & Causal()).intervals(4, 4) is None


def test_a_block_is_masked_only_where_its_edges_are_neither_all_nor_a_causal_square() -> None:
    def blocks(graph: Graph, n: int = 512) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
        bounds = graph.intervals(n, n)
        assert bounds is not None
        return [
            ((chunk.queries.start, chunk.queries.stop), (block.keys.start, block.keys.stop), block.kind)
            for chunk in intervals.plan(*bounds)
            for block in chunk.blocks
        ]

    assert blocks(Full()) == [((0, 512), (0, 512), FULL)]
    assert blocks(Causal()) == [((0, 512), (0, 512), CAUSAL)]
    ids = torch.arange(512) // 256
    assert blocks(Causal() & Documents(ids)) == [((0, 256), (0, 256), CAUSAL), ((256, 512), (256, 512), CAUSAL)]
    prefix = [((0, 200), (0, 200), FULL), ((200, 512), (0, 200), FULL), ((200, 512), (200, 512), CAUSAL)]
    assert blocks(Causal() | Prefix(200)) == prefix
    first, *band = blocks(Causal() & Window(256))
    assert first == ((0, 256), (0, 256), CAUSAL)
    assert band == [((t, t + 64), (t - 255, t + 64), MASKED) for t in range(256, 512, 64)]
    short = blocks(Causal() & Documents(torch.arange(512) // 16))
    assert short == [((t, t + 64), (t, t + 64), MASKED) for t in range(0, 512, 64)]
