"""Attention against its slow twin, forward and backward, on every path; and what is true of all attention."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from grids import pairwise
from reference import attend_slowly
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.model import tables
from minigpt.model.variants import attend as attend_module
from minigpt.model.variants import flex, kernels, linear_attention
from minigpt.model.variants.attend import attend, attention_scores, attention_weights
from minigpt.model.variants.graphs import Adjacency, Causal, Documents, Full, Graph, Padding, Prefix, Window
from minigpt.model.variants.linear_attention import causal_linear_attention, doubled_sum, full_linear_attention
from minigpt.model.variants.positions import alibi_bias
from minigpt.model.variants.similarities import (
    SIMILARITIES,
    Cosine,
    Gaussian,
    Hard,
    Hopfield,
    Linear,
    ScaledDot,
    Similarity,
    Symmetric,
    Uniform,
)

B, H, T, D, D_v = 2, 4, 7, 5, 3
SLOPES = torch.from_numpy(tables.alibi_slopes(H))
EPSILON = torch.finfo(torch.bfloat16).eps
"""The distance of neighbouring numbers near 1: 1/128, so that rounding to the nearest is off by half of it at most."""


def per_head(similarity: Similarity) -> Similarity:
    """What a head learns made different for each, so that none can stand for another."""
    with torch.no_grad():
        for parameter in similarity.parameters():
            parameter.add_(torch.linspace(-0.2, 0.2, len(parameter)))
    return similarity


MAKERS: dict[str, Callable[[], Similarity]] = {
    "scaled_dot": lambda: ScaledDot(0.7),
    "cosine": lambda: per_head(Cosine(H, 0.4)),
    "gaussian": lambda: per_head(Gaussian(H, 2.0)),
    "hopfield": lambda: Hopfield(0.8),
    "hopfield of three steps": lambda: Hopfield(0.4, steps=3),
    "symmetric": lambda: Symmetric(),
    "uniform": lambda: Uniform(),
    "linear": lambda: Linear(),
    "hard": lambda: Hard(1.5),
}
SOFTMAX = [name for name in MAKERS if name not in {"linear", "hard"}]
WITH_SCORES = [name for name in SOFTMAX if name not in {"gaussian", "uniform"}] + ["hard"]
"""Those that a softcap can bend."""
EXTRAS = [(name, extra) for name in [*SOFTMAX, "hard"] for extra in ("key_bias", "key_bias of each row")]
EXTRAS += [(name, extra) for name in WITH_SCORES for extra in ("softcap", "softcap and key_bias")]

DOCUMENTS = Documents(torch.tensor([[0, 0, 0, 1, 1, 1, -1], [2, 3, 3, 3, 3, -1, -1]]))
REAL = torch.tensor([[True] * 5 + [False] * 2, [False] * 2 + [True] * 5])
some = torch.rand(B, H, T, T, generator=torch.Generator().manual_seed(0)) < 0.4
some[:, 1, 3] = False
GRAPHS: dict[str, Graph] = {
    "full": Full(),
    "causal": Causal(),
    "causal window": Causal() & Window(3),
    "symmetric window": Window(2),
    "prefix": Causal() | Prefix(4),
    "prefix of each row": Causal() | Prefix(torch.tensor([3, 0])),
    "documents": Causal() & DOCUMENTS,
    "padding": Padding(REAL, REAL),
    "adjacency": Adjacency(some[1, 1]),
    "adjacency of each head": Adjacency(some),
}
LONELY: dict[str, Graph] = {
    "first token": Adjacency(torch.ones(T, T).tril(-1).bool()),
    "padding": Causal() & Padding(REAL, REAL),
    "one head": Adjacency(some),
    "nobody hears": Adjacency(torch.zeros(T, T).bool()),
}
"""Graphs in which some tokens hear nothing."""
HEADS = (4, 2)
KINDS = pairwise(MAKERS, GRAPHS, HEADS)
FEW_KINDS = pairwise(MAKERS, GRAPHS, HEADS, strength=1)


def inputs(*sizes: int, H_kv: int = H, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Query, key and value, of T or of the given numbers of queries and keys; bfloat16 holds them exactly."""
    n_queries, n_keys = (*sizes, *sizes, T, T)[:2]
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, n_queries, D), (B, H_kv, n_keys, D), (B, H_kv, n_keys, D_v)
    made = [torch.randn(shape, generator=generator).bfloat16().to(dtype) for shape in shapes]
    return tuple(x.requires_grad_() for x in made)


def result_and_gradients(
    attention: Callable[..., Tensor], leaves: tuple[Tensor, ...], similarity: Similarity, **how: Any
) -> list[Tensor]:
    """What is gathered, and the gradient of a fixed sum of it with respect to query, key, value and what is learned."""
    gathered = attention(*leaves, similarity=similarity, **how)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(gathered.shape, generator=generator, dtype=torch.float64).to(gathered.dtype)
    learned = (*leaves, *similarity.parameters())
    if not gathered.requires_grad:  # nobody hears anything
        return [gathered, *(torch.zeros_like(x) for x in learned)]
    gradients = torch.autograd.grad((gathered * direction).sum(), learned, materialize_grads=True, allow_unused=True)
    return [gathered.detach(), *gradients]


def assert_all_close(actual: list[Tensor], expected: list[Tensor], *, atol: float, rtol: float) -> None:
    names = ["result", "gradient of query", "gradient of key", "gradient of value", "gradient of what is learned"]
    assert len(actual) == len(expected)
    for name, one, other in zip(names, actual, expected, strict=False):
        assert torch.isfinite(one).all(), name
        torch.testing.assert_close(
            one.double(),
            other.double(),
            atol=atol,
            rtol=rtol,
            msg=lambda text, n=name: f"{n}: {text}",  # type: ignore
        )


def assert_close_for_16_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    """The largest error of the result is a rounding or two of its largest entry; in gradients some more add up."""
    for n, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.isfinite(one).all()
        error, largest = (one.double() - other.double()).abs().max(), other.abs().max()
        assert error <= (1.5 if n == 0 else 4) * EPSILON * largest, f"output {n}: off by {error:.1e} of {largest:.1e}"


@cache
def slow_twin(name: str, graph: str, H_kv: int) -> list[Tensor]:
    return result_and_gradients(attend_slowly, inputs(H_kv=H_kv), MAKERS[name]().double(), graph=GRAPHS[graph])


def test_every_similarity_of_the_table_is_among_those_compared() -> None:
    """And those that attention makes from a config are of the kinds that are compared here."""
    assert {make().name for make in MAKERS.values()} == set(SIMILARITIES)
    kinds = {type(make()) for make in MAKERS.values()}
    assert {type(make(GPTConfig())) for make in SIMILARITIES.values()} == kinds


@pytest.mark.parametrize(("name", "graph", "H_kv"), KINDS)
def test_attention_in_float64_equals_its_slow_twin_forward_and_backward(name: str, graph: str, H_kv: int) -> None:
    fast = result_and_gradients(attend, inputs(H_kv=H_kv), MAKERS[name]().double(), graph=GRAPHS[graph])
    assert all(x.dtype == torch.float64 for x in fast)
    assert_all_close(fast, slow_twin(name, graph, H_kv), atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize(("name", "graph", "H_kv"), KINDS)
def test_attention_in_float32_equals_its_slow_twin_forward_and_backward(name: str, graph: str, H_kv: int) -> None:
    leaves = inputs(H_kv=H_kv, dtype=torch.float32)
    fast = result_and_gradients(attend, leaves, MAKERS[name](), graph=GRAPHS[graph])
    assert all(x.dtype == torch.float32 for x in fast)
    assert_all_close(fast, slow_twin(name, graph, H_kv), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "graph", "H_kv"), FEW_KINDS)
def test_attention_in_bfloat16_is_a_few_roundings_from_its_slow_twin(name: str, graph: str, H_kv: int) -> None:
    leaves = inputs(H_kv=H_kv, dtype=torch.bfloat16)
    fast = result_and_gradients(attend, leaves, MAKERS[name](), graph=GRAPHS[graph])
    assert all(x.dtype == torch.bfloat16 for x in fast[:4]), "the result and the gradients are in the inputs' type"
    assert_close_for_16_bits(fast, slow_twin(name, graph, H_kv))


@pytest.mark.parametrize(("name", "graph", "H_kv"), FEW_KINDS)
def test_attention_under_autocast_is_a_few_roundings_from_its_slow_twin(name: str, graph: str, H_kv: int) -> None:
    leaves = inputs(H_kv=H_kv, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = result_and_gradients(attend, leaves, MAKERS[name](), graph=GRAPHS[graph])
    assert all(x.dtype == torch.float32 for x in fast)
    assert_close_for_16_bits(fast, slow_twin(name, graph, H_kv))


@pytest.mark.parametrize(
    ("name", "graph", "sizes"), pairwise(MAKERS, ["full", "causal", "window", "adjacency"], [(8, 3), (3, 8)])
)
def test_cross_attention_equals_its_slow_twin_forward_and_backward(
    name: str, graph: str, sizes: tuple[int, int]
) -> None:
    n_queries, n_keys = sizes
    any_edges = Adjacency(torch.rand(B, n_queries, n_keys, generator=torch.Generator().manual_seed(2)) < 0.5)
    chosen = {"full": Full(), "causal": Causal(), "window": Window(2), "adjacency": any_edges}[graph]
    leaves, similarity = inputs(n_queries, n_keys, H_kv=2), MAKERS[name]().double()
    fast = result_and_gradients(attend, leaves, similarity, graph=chosen)
    assert fast[0].shape == (B, H, n_queries, D_v)
    assert_all_close(
        fast, result_and_gradients(attend_slowly, leaves, similarity, graph=chosen), atol=1e-12, rtol=1e-11
    )


@pytest.mark.parametrize(
    ("kind", "graph"), pairwise(EXTRAS, ["causal", "causal window", "adjacency of each head"], strength=1)
)
def test_a_bias_of_each_key_and_a_softcap_do_as_in_the_slow_twin(kind: tuple[str, str], graph: str) -> None:
    name, extra = kind
    rows = B if "row" in extra else 1
    how: dict[str, Any] = {"graph": GRAPHS[graph]}
    if "softcap" in extra:
        how["softcap"] = 1.5
    if "key_bias" in extra:
        how["key_bias"] = torch.randn(rows, H, T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaves, similarity = inputs(H_kv=2), MAKERS[name]().double()
    fast = result_and_gradients(attend, leaves, similarity, **how)
    plain = result_and_gradients(attend, leaves, similarity, graph=GRAPHS[graph])
    assert not torch.allclose(fast[1 if name != "uniform" else 0], plain[1 if name != "uniform" else 0], atol=1e-3)
    assert_all_close(fast, result_and_gradients(attend_slowly, leaves, similarity, **how), atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize(("name", "width", "graph"), pairwise(MAKERS, [1, 5, 6, 11], ["causal", "causal window"]))
def test_values_may_be_of_any_width(name: str, width: int, graph: str) -> None:
    query, key, _ = inputs(H_kv=2)
    value = torch.randn(B, 2, T, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    leaves, similarity = (query, key, value.requires_grad_()), MAKERS[name]().double()
    fast = result_and_gradients(attend, leaves, similarity, graph=GRAPHS[graph])
    assert fast[0].shape == (B, H, T, width)
    weights = attention_weights(query, key, similarity=similarity, graph=GRAPHS[graph])
    explicit = (weights @ value.repeat_interleave(2, dim=1)).detach()
    torch.testing.assert_close(fast[0], explicit, atol=1e-12, rtol=1e-11)
    one_by_one = [
        result_and_gradients(attend, (query, key, value[..., c : c + 1]), similarity, graph=GRAPHS[graph])[0]
        for c in range(width)
    ]
    torch.testing.assert_close(fast[0], torch.cat(one_by_one, dim=-1), atol=1e-12, rtol=1e-11)


# In pieces


@pytest.mark.parametrize(
    ("name", "graph"), pairwise(MAKERS, [name for name in GRAPHS if name not in {"full", "causal"}], strength=1)
)
def test_pieces_of_the_matrix_give_what_the_whole_gives(name: str, graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, similarity = inputs(H_kv=2), MAKERS[name]().double()
    whole = result_and_gradients(attend, leaves, similarity, graph=GRAPHS[graph])
    monkeypatch.setattr(kernels, "ROWS_PER_CHUNK", 3)  # the last piece is a single row
    monkeypatch.setattr(kernels, "WEIGHTS_PER_CHUNK", B * H * 3 * 3)
    pieces = result_and_gradients(attend, leaves, similarity, graph=GRAPHS[graph])
    assert_all_close(pieces, whole, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
def test_pieces_whose_queries_are_beyond_the_reach_of_any_key_gather_zeros(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, similarity = inputs(12, 4), MAKERS[name]().double()
    for graph in (Window(2), Causal() & Window(3), (Causal() & Window(2)) | Prefix(torch.tensor([2, 0]))):
        monkeypatch.undo()
        whole = result_and_gradients(attend, leaves, similarity, graph=graph)
        monkeypatch.setattr(kernels, "ROWS_PER_CHUNK", 3)
        monkeypatch.setattr(kernels, "WEIGHTS_PER_CHUNK", B * H * 3 * 3)
        pieces = result_and_gradients(attend, leaves, similarity, graph=graph)
        assert_all_close(pieces, whole, atol=1e-12, rtol=1e-11)
        assert torch.equal(pieces[0][1, :, 6:], torch.zeros(H, 6, D_v))


@pytest.mark.parametrize(
    ("name", "graph"), pairwise(WITH_SCORES, ["full", "causal", "causal window", "documents"], strength=1)
)
def test_softcap_and_bias_in_pieces_give_what_the_whole_gives(
    name: str, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, similarity = inputs(H_kv=2), MAKERS[name]().double()
    bias = torch.randn(1, H, T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    how = {"graph": GRAPHS[graph], "softcap": 2.0, "key_bias": bias}
    whole = result_and_gradients(attend, leaves, similarity, **how)
    monkeypatch.setattr(kernels, "ROWS_PER_CHUNK", 3)
    monkeypatch.setattr(kernels, "WEIGHTS_PER_CHUNK", B * H * 3 * 3)
    assert_all_close(result_and_gradients(attend, leaves, similarity, **how), whole, atol=1e-12, rtol=1e-11)


class Watched(Graph):
    """Another graph, and a list of the sizes of the pieces that were made of it."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.reflexive = graph, graph.reflexive
        self.made: list[tuple[int, int]] = []

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        return self.graph.reach(start, stop, n_keys)

    def mask(self, queries: range, keys: range, device: torch.device | str = "cpu") -> Tensor:
        self.made.append((len(queries), len(keys)))
        return self.graph.mask(queries, keys, device)


@pytest.mark.parametrize("name", ["scaled_dot", "linear", "hard"])
def test_a_window_costs_its_width_and_no_piece_of_it_is_kept_for_the_backward_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ROWS_PER_CHUNK", 4)
    monkeypatch.setattr(kernels, "WEIGHTS_PER_CHUNK", B * H * 4 * 6)
    query, key, value = inputs(32, 32)
    graph = Watched(Causal() & Window(3))
    gathered = attend(query, key, value, similarity=MAKERS[name](), graph=graph)
    assert graph.made == [(4, 4)] + 7 * [(4, 6)]
    gathered.sum().backward()
    assert len(graph.made) == 2 * 8, "every piece is made again"


def test_a_window_wider_than_the_text_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = inputs()
    expected = attend(*leaves, similarity=ScaledDot(), graph=Causal())
    monkeypatch.setattr(Graph, "mask", None)
    assert torch.equal(attend(*leaves, similarity=ScaledDot(), graph=Causal() & Window(T)), expected)


def random_keys_and_their_use(
    similarity: Similarity, graph: Graph, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """The sum of what is gathered, twice: forward, and from the gradient, as it is linear in the values."""
    monkeypatch.setattr(kernels, "ROWS_PER_CHUNK", 3)
    monkeypatch.setattr(kernels, "WEIGHTS_PER_CHUNK", B * H * 3 * 3)
    query, key, value = inputs(20, 20)
    torch.manual_seed(0)
    gathered = attend(query, key, value, similarity=similarity, graph=graph, dropout=dropout)
    direction = torch.randn_like(gathered)
    (gradient,) = torch.autograd.grad((gathered * direction).sum(), value)
    return (gathered * direction).sum(), (gradient * value).sum()


@pytest.mark.parametrize("graph", [Causal(), Causal() & Window(6)], ids=["causal", "window"])
def test_the_backward_pass_of_a_piece_uses_the_keys_that_were_sampled(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, backward = random_keys_and_their_use(Hard(sampled=True).train(), graph, 0.0, monkeypatch)
    torch.testing.assert_close(backward, forward)


@pytest.mark.parametrize("graph", [Causal(), Causal() & Window(6)], ids=["causal", "window"])
def test_the_backward_pass_of_a_piece_drops_the_weights_that_were_dropped(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, backward = random_keys_and_their_use(ScaledDot(), graph, 0.5, monkeypatch)
    torch.testing.assert_close(backward, forward)


@pytest.mark.parametrize("softcap", [None, 10.0])
@pytest.mark.parametrize("graph", [Full(), Window(8) & Window(9), Prefix(8)], ids=["full", "reduced", "prefix"])
def test_dropout_drops_weights_and_makes_up_for_them(graph: Graph, softcap: float | None) -> None:
    """Eight equal weights of values 1: what is gathered is the number that is kept, times 1/8, times 1 / (1 - 1/2)."""
    torch.manual_seed(0)
    zeros, ones = torch.zeros(400, 2, 8, 4), torch.ones(400, 2, 8, 4)
    how: dict[str, Any] = {"similarity": ScaledDot(), "graph": graph, "softcap": softcap}
    kept = attend(zeros, zeros, ones, dropout=0.5, **how)[..., 0] * 4
    torch.testing.assert_close(kept, kept.round(), atol=1e-5, rtol=0)
    assert kept.mean().item() == pytest.approx(4, abs=0.1)
    assert kept.var().item() == pytest.approx(2, abs=0.15), "of 8 coins"
    torch.testing.assert_close(attend(zeros, zeros, ones, dropout=0.0, **how), ones)


# Who hears nothing


@pytest.mark.parametrize(("name", "graph", "rows"), pairwise(MAKERS, LONELY, [3, 256]))
def test_who_hears_nothing_gathers_zeros_and_has_no_gradient(
    name: str, graph: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ROWS_PER_CHUNK", rows)
    monkeypatch.setattr(kernels, "WEIGHTS_PER_CHUNK", B * H * rows * rows)
    for dtype in (torch.float64, torch.bfloat16):
        similarity = MAKERS[name]().to(dtype)
        result = result_and_gradients(attend, inputs(H_kv=2, dtype=dtype), similarity, graph=LONELY[graph])
        assert all(torch.isfinite(x).all() for x in result)
        alone = ~LONELY[graph].mask(range(T), range(T)).any(dim=-1).expand(B, H, T)
        assert alone.any()
        gathered, of_query, of_key, of_value, *_ = result
        assert (gathered[alone] == 0).all()
        assert (of_query[alone] == 0).all()
        assert (gathered[~alone] != 0).all()
        if alone.all():
            assert not of_key.any()
            assert not of_value.any()


# The weights, written out


@pytest.mark.parametrize(("name", "graph", "H_kv"), pairwise(MAKERS, GRAPHS | LONELY, HEADS))
def test_the_weights_lie_on_the_edges_sum_to_one_and_give_what_attention_gathers(
    name: str, graph: str, H_kv: int
) -> None:
    chosen, similarity = (GRAPHS | LONELY)[graph], MAKERS[name]().double()
    query, key, value = inputs(H_kv=H_kv)
    weights = attention_weights(query, key, similarity=similarity, graph=chosen)
    edges = chosen.mask(range(T), range(T)).expand(B, H, T, T)
    assert weights.shape == (B, H, T, T)
    assert (weights[~edges] == 0).all()
    assert (weights >= -1e-15).all()
    torch.testing.assert_close(weights.sum(-1), edges.any(-1).double(), atol=1e-12, rtol=0)
    gathered = attend(query, key, value, similarity=similarity, graph=chosen)
    torch.testing.assert_close(weights @ value.repeat_interleave(H // H_kv, dim=1), gathered, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize(("name", "graph"), pairwise(MAKERS, GRAPHS | LONELY, strength=1))
def test_the_weights_of_some_queries_are_those_rows_of_all(name: str, graph: str) -> None:
    query, key, _ = inputs(H_kv=2)
    how: dict[str, Any] = {"similarity": MAKERS[name]().double(), "graph": (GRAPHS | LONELY)[graph]}
    whole = attention_weights(query, key, **how)
    for start in range(0, T, 5):
        queries = range(start, min(T, start + 5))
        some = attention_weights(query, key, queries=queries, **how)
        torch.testing.assert_close(some, whole[:, :, start : start + 5], atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_scores_are_what_the_softmax_sees(softcap: float | None) -> None:
    query, key, _ = inputs()
    bias = alibi_bias(SLOPES, T).double()
    scores = attention_scores(
        query, key, {"similarity": ScaledDot(), "graph": Causal(), "key_bias": bias, "softcap": softcap}
    )
    products = query @ key.mT / query.shape[-1] ** 0.5
    expected = products if softcap is None else softcap * torch.tanh(products / softcap)
    expected = (expected + bias[:, :, None]).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(scores, expected)
    weights = attention_weights(query, key, similarity=ScaledDot(), graph=Causal(), key_bias=bias, softcap=softcap)
    torch.testing.assert_close(scores.softmax(-1), weights)


def test_the_weights_know_of_bias_and_softcap() -> None:
    query, key, value = inputs(H_kv=2)
    how: dict[str, Any] = {"similarity": ScaledDot(), "graph": GRAPHS["causal window"], "softcap": 1.0}
    how["key_bias"] = alibi_bias(SLOPES, T)
    weights = attention_weights(query, key, **how)
    torch.testing.assert_close(weights @ value.repeat_interleave(2, dim=1), attend(query, key, value, **how))


@pytest.mark.parametrize("name", MAKERS)
def test_the_weights_of_16_bit_inputs_are_written_in_32(name: str) -> None:
    query, key, _ = inputs(dtype=torch.bfloat16)
    weights = attention_weights(query, key, similarity=MAKERS[name](), graph=Causal())
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))


@pytest.mark.parametrize("graph", ["causal", "causal window"])
def test_huge_scores_do_not_overflow(graph: str) -> None:
    query, key, value = (x * 1e4 for x in inputs(dtype=torch.float32))
    assert torch.isfinite(attention_weights(query, key, similarity=ScaledDot(), graph=GRAPHS[graph])).all()
    assert torch.isfinite(attend(query, key, value, similarity=ScaledDot(), graph=GRAPHS[graph])).all()


# 16 bits


@pytest.mark.parametrize(
    ("graph", "softcap", "autocast"),
    [
        (Full(), None, False),
        (Full(), None, True),
        (Causal(), None, False),
        (Causal(), None, True),
        (Causal() & Window(40), None, False),
        (Causal() & Window(40), None, True),
        (Causal() & Window(40), 20.0, False),
        (Causal() & Window(40), 20.0, True),
    ],
    ids=lambda x: "autocast" if x is True else "bfloat16" if x is False else repr(x),
)
def test_neighbours_far_into_a_text_are_told_apart_by_alibi_in_16_bits(
    graph: Graph, softcap: float | None, autocast: bool
) -> None:
    """At position 4000 the steepest bias is 2828, where 16-bit numbers are 16 apart, and neighbours differ by 0.7."""
    S = 4000
    bias = alibi_bias(
        torch.from_numpy(tables.alibi_slopes(12))[[8, 0, 7]], S
    )  # 0.707, 1/2 and 1/256: the steepest, and the flattest
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 3, 8 if isinstance(graph, Full) else S, 16, generator=generator).bfloat16()
    key = torch.randn(1, 3, S, 16, generator=generator).bfloat16()
    # What is gathered are the weights of the last eight keys.
    value = torch.eye(8).bfloat16().new_zeros(1, 3, S, 8)
    value[:, :, -8:] = torch.eye(8)
    how: dict[str, Any] = {"similarity": ScaledDot(), "graph": graph, "softcap": softcap}
    exact = attend(query.double(), key.double(), value.double(), key_bias=bias.double(), **how)[:, :, -1]
    assert exact[0, 0].sum() > 0.99, "most weight is on the nearest"
    if autocast:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = attend(query, key, value, key_bias=bias, **how)[:, :, -1]
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=EPSILON if softcap is None else 2 * EPSILON)


@pytest.mark.parametrize("graph", ["full", "causal", "causal window"])
@pytest.mark.parametrize("name", ["scaled_dot", "linear", "hard"])
def test_the_weights_are_written_in_32_bits_under_autocast_too(name: str, graph: str) -> None:
    query, key, _ = inputs(dtype=torch.float32)
    expected = attention_weights(query, key, similarity=MAKERS[name](), graph=GRAPHS[graph])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = attention_weights(query, key, similarity=MAKERS[name](), graph=GRAPHS[graph])
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "graph", "softcap"), [("hard", "causal", None), ("scaled_dot", "causal", 5.0), ("linear", "prefix", None)]
)
def test_what_is_gathered_by_written_out_weights_is_in_the_type_of_the_values_under_autocast_too(
    name: str, graph: str, softcap: float | None
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = inputs(dtype=torch.float32)
        gathered = attend(*leaves, similarity=MAKERS[name](), graph=GRAPHS[graph], softcap=softcap)
    assert gathered.dtype == torch.float32


def test_the_state_of_linear_attention_is_carried_in_32_bits_under_autocast_too() -> None:
    query, key, value = features(dtype=torch.float32)
    _, expected = causal_linear_attention(query, key, value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = causal_linear_attention(query, key, value)
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, expected)


# FlexAttention, of which this machine can run the plain form only: without its compiler, without gradients


def by_blocks(query: Tensor, key: Tensor, value: Tensor, *, similarity: Similarity, graph: Graph, **how: Any) -> Tensor:
    """As `attend` does it on a GPU."""
    graph = graph.reduced(query.shape[2], key.shape[2])
    for step in range(similarity.steps):
        factors = attend_module._score_factors(query, key, similarity, how.get("key_bias"))
        offers = value if step == similarity.steps - 1 else key
        query = flex.attend_blocks(factors, offers, graph, how.get("softcap"))
    return query


@pytest.fixture
def plain_flex_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention's own switch for running it as written; otherwise it compiles even its slow form for each graph."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


@pytest.mark.parametrize(("name", "graph", "H_kv"), pairwise(SOFTMAX, GRAPHS | LONELY, HEADS))
@pytest.mark.usefixtures("plain_flex_attention")
def test_a_block_mask_gives_what_the_dense_mask_gives(name: str, graph: str, H_kv: int) -> None:
    chosen, similarity = (GRAPHS | LONELY)[graph], MAKERS[name]().requires_grad_(False)
    leaves = [x.detach() for x in inputs(H_kv=H_kv, dtype=torch.float32)]
    expected = attend(*leaves, similarity=similarity, graph=chosen)
    torch.testing.assert_close(by_blocks(*leaves, similarity=similarity, graph=chosen), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [None, 1, B])
@pytest.mark.parametrize(
    ("name", "softcap"), [(name, None) for name in SOFTMAX] + [(name, 1.5) for name in WITH_SCORES if name != "hard"]
)
@pytest.mark.usefixtures("plain_flex_attention")
def test_a_block_mask_knows_of_bias_and_softcap(name: str, rows: int | None, softcap: float | None) -> None:
    similarity = MAKERS[name]().requires_grad_(False)
    leaves = [x.detach() for x in inputs(H_kv=2, dtype=torch.float32)]
    bias = None if rows is None else torch.randn(rows, H, T, generator=torch.Generator().manual_seed(3))
    for graph in (Causal(), GRAPHS["documents"], GRAPHS["adjacency of each head"]):
        expected = attend(*leaves, similarity=similarity, graph=graph, key_bias=bias, softcap=softcap)
        found = by_blocks(*leaves, similarity=similarity, graph=graph, key_bias=bias, softcap=softcap)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("plain_flex_attention")
def test_a_block_mask_serves_cross_attention() -> None:
    similarity, graph = ScaledDot(), Causal() & Window(3)
    leaves = [x.detach() for x in inputs(9, 5, dtype=torch.float32)]
    expected = attend(*leaves, similarity=similarity, graph=graph)
    torch.testing.assert_close(by_blocks(*leaves, similarity=similarity, graph=graph), expected, atol=2e-6, rtol=1e-5)


# What is true of all attention


@pytest.mark.parametrize("name", MAKERS)
def test_causal_attention_of_a_token_is_full_attention_on_the_text_up_to_it(name: str) -> None:
    query, key, value = inputs(H_kv=2)
    similarity = MAKERS[name]().double()
    causal = attend(query, key, value, similarity=similarity, graph=Causal())
    for t in range(1, T + 1):
        full = attend(query[:, :, :t], key[:, :, :t], value[:, :, :t], similarity=similarity, graph=Full())
        torch.testing.assert_close(causal[:, :, t - 1], full[:, :, -1], atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "graph"), pairwise(MAKERS, ["causal", "causal window", "adjacency of each head"], strength=1)
)
def test_several_heads_are_single_heads_side_by_side(name: str, graph: str) -> None:
    query, key, value = inputs(H_kv=2)
    similarity = MAKERS[name]().double()
    together = attend(query, key, value, similarity=similarity, graph=GRAPHS[graph])
    for h in range(H):
        single = MAKERS[name]().double()
        for parameter_name, parameter in list(single.named_parameters()):
            setattr(single, parameter_name, torch.nn.Parameter(parameter[h : h + 1].detach()))
        one = query[:, h : h + 1], key[:, h // 2 : h // 2 + 1], value[:, h // 2 : h // 2 + 1]
        edges = Adjacency(GRAPHS[graph].mask(range(T), range(T)).expand(B, H, T, T)[:, h : h + 1])
        alone = attend(*one, similarity=single, graph=edges if "adjacency" in graph else GRAPHS[graph])
        torch.testing.assert_close(together[:, h : h + 1], alone, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
def test_rows_of_a_batch_do_not_see_each_other(name: str) -> None:
    query, key, value = inputs(H_kv=2)
    similarity = MAKERS[name]().double()
    together = attend(query, key, value, similarity=similarity, graph=GRAPHS["causal window"])
    alone = [
        attend(query[b : b + 1], key[b : b + 1], value[b : b + 1], similarity=similarity, graph=GRAPHS["causal window"])
        for b in range(B)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_in_another_order_gather_the_same_in_that_order(name: str) -> None:
    query, key, value = inputs(H_kv=2)
    similarity = MAKERS[name]().double()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    usual = attend(query, key, value, similarity=similarity, graph=Full())
    shuffled = attend(query[:, :, order], key[:, :, order], value[:, :, order], similarity=similarity, graph=Full())
    torch.testing.assert_close(shuffled, usual[:, :, order], atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("graph", [Causal(), Causal() & Window(2)], ids=["causal", "window"])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "hard"])
def test_the_gradient_is_the_slope(name: str, graph: Graph) -> None:
    """By finite differences; of hard attention there is none."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, H, 3, 2), (1, 2, 3, 2), (1, 2, 3, 1)
    leaves = tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    similarity = MAKERS[name]().double()

    def gathered(query: Tensor, key: Tensor, value: Tensor, *learned: Tensor) -> Tensor:
        return attend(query, key, value, similarity=similarity, graph=graph)

    assert torch.autograd.gradcheck(gathered, (*leaves, *similarity.parameters()))


# Linear attention


def features(*sizes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = inputs(*sizes, dtype=dtype)
    return Linear().features(query), Linear().features(key), value


def test_linear_attention_token_by_token_equals_the_whole_text_at_once() -> None:
    query, key, value = features(9, 9)
    whole, last = causal_linear_attention(query, key, value)
    state = None
    for t in range(9):
        here = slice(t, t + 1)
        gathered, state = causal_linear_attention(query[:, :, here], key[:, :, here], value[:, :, here], state)
        torch.testing.assert_close(gathered[:, :, 0], whole[:, :, t], atol=1e-12, rtol=1e-11)
    assert state is not None
    torch.testing.assert_close(state, last, atol=1e-12, rtol=1e-11)
    torch.testing.assert_close(last[..., :-1], torch.einsum("bhtd,bhte->bhde", key, value))
    torch.testing.assert_close(last[..., -1], key.sum(dim=2))


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 64])
def test_a_text_may_be_cut_anywhere_into_chunks_and_into_calls(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = inputs(9, 9)
    slow = result_and_gradients(attend_slowly, leaves, Linear(), graph=Causal())
    monkeypatch.setattr(linear_attention, "CHUNK", chunk)

    for cut in range(1, 9):

        def in_two_calls(query: Tensor, key: Tensor, value: Tensor, cut: int = cut, **how: Any) -> Tensor:
            query, key = Linear().features(query), Linear().features(key)
            first, state = causal_linear_attention(query[:, :, :cut], key[:, :, :cut], value[:, :, :cut])
            second, _ = causal_linear_attention(query[:, :, cut:], key[:, :, cut:], value[:, :, cut:], state)
            return torch.cat([first, second], dim=2)

        assert_all_close(result_and_gradients(in_two_calls, leaves, Linear()), slow, atol=1e-12, rtol=1e-11)
    assert_all_close(result_and_gradients(attend, leaves, Linear(), graph=Causal()), slow, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 13])
def test_running_sums_without_cumsum_are_cumsum_with_its_gradient(n: int) -> None:
    x = torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True)
    above = torch.randn(2, n, 3, dtype=torch.float64)
    found = []
    for running in (doubled_sum, torch.cumsum):
        result = running(x, 1)
        found.append((result, torch.autograd.grad(result, x, above)[0]))
    assert_all_close(found[0], found[1], atol=1e-12, rtol=1e-12)


def test_one_sum_serves_all_queries_of_full_linear_attention() -> None:
    query, key, value = features(4, 9)
    weights = query @ key.mT
    expected = weights @ value / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(full_linear_attention(query, key, value), expected, atol=1e-12, rtol=1e-11)


def test_the_state_of_linear_attention_is_carried_in_at_least_32_bits() -> None:
    for dtype, of_state in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        gathered, state = causal_linear_attention(*features(dtype=dtype))
        assert (gathered.dtype, state.dtype) == (dtype, of_state)
        assert state.shape == (B, H, D, D_v + 1)


@pytest.mark.parametrize("graph", ["full", "causal", "causal window"])
def test_linear_attention_of_very_negative_queries_keeps_its_weights(graph: str) -> None:
    query, key, value = inputs(dtype=torch.float32)
    leaves = (query.detach() - 40).requires_grad_(), key, value
    result = result_and_gradients(attend, leaves, Linear(), graph=GRAPHS[graph])
    assert_all_close(
        result, result_and_gradients(attend_slowly, leaves, Linear(), graph=GRAPHS[graph]), atol=5e-6, rtol=1e-5
    )


@pytest.mark.parametrize("graph", ["full", "causal", "causal window"])
def test_linear_attention_whose_features_are_all_rounded_to_zero_is_finite(graph: str) -> None:
    query, key, value = (x.detach() for x in inputs(dtype=torch.float32))
    for leaves in ((query - 1000, key, value), (query, key - 1000, value)):
        assert torch.isfinite(attend(*leaves, similarity=Linear(), graph=GRAPHS[graph])).all()


# Hard attention


@pytest.mark.parametrize("graph", ["full", "causal", "causal window", "documents"])
def test_the_best_choice_is_the_very_value_of_the_best_key(graph: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = inputs(dtype=dtype)
        gathered = attend(query, key, value, similarity=Hard(), graph=GRAPHS[graph])
        edges = GRAPHS[graph].mask(range(T), range(T)).expand(B, H, T, T)
        scores = (query.double() @ key.double().mT).masked_fill(~edges, -math.inf)
        best = value.gather(2, scores.argmax(-1, keepdim=True).expand(-1, -1, -1, D_v))
        assert torch.equal(gathered, best * edges.any(-1, keepdim=True))


def test_a_sampled_choice_falls_on_each_key_with_its_probability_and_never_outside_the_graph() -> None:
    n = 20_000
    query, key = torch.tensor([1.0, 0.0]).expand(n, 1, 1, 2), torch.tensor([[2.0, 0], [1, 0], [0, 0], [-1, 0], [5, 0]])
    graph = Adjacency(torch.tensor([[True, True, True, True, False]]))
    similarity = Hard(0.8, sampled=True)
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf]) / (2**0.5 * 0.8)
    torch.manual_seed(0)
    offers = torch.eye(5).expand(n, 1, 5, 5)
    chosen = attend(query, key.expand(n, 1, 5, 2), offers, similarity=similarity.train(), graph=graph)
    assert torch.equal(chosen.sort().values[..., :-1], torch.zeros(n, 1, 1, 4)), "one key has all the weight"
    expected = scores.softmax(-1)
    assert chosen.sum(dim=(0, 1, 2))[4] == 0
    deviations = (expected * (1 - expected) / n).sqrt()
    assert ((chosen.mean(dim=(0, 1, 2)) - expected).abs() <= 4 * deviations).all()
    best = attend(query, key.expand(n, 1, 5, 2), offers, similarity=similarity.eval(), graph=graph)
    assert (best[..., 0] == 1).all(), "outside of training the best is chosen"


@pytest.mark.parametrize("sampled", [False, True])
def test_the_gradient_of_a_hard_choice_is_that_of_the_softmax_in_its_place(sampled: bool) -> None:
    """d score[s] = p[s] (g·v[s] - sum_s' p[s'] g·v[s']), whatever was chosen; of the values only the chosen get one."""
    query, key, value = inputs()
    torch.manual_seed(0)
    gathered = attend(query, key, value, similarity=Hard(1.5, sampled=sampled).train(), graph=Causal())
    direction = torch.randn_like(gathered)
    of_query, of_key, of_value = torch.autograd.grad((gathered * direction).sum(), (query, key, value))
    with torch.no_grad():
        scale = 1 / (D**0.5 * 1.5)
        p = (query @ key.mT * scale).masked_fill(~torch.ones(T, T).tril().bool(), -math.inf).softmax(-1)
        offered = direction @ value.mT
        of_scores = p * (offered - (p * offered).sum(-1, keepdim=True))
        chosen = (gathered[:, :, :, None] == value[:, :, None]).all(-1).double()
        assert (chosen.sum(-1) == 1).all()
        torch.testing.assert_close(of_query, of_scores @ key * scale)
        torch.testing.assert_close(of_key, of_scores.mT @ query * scale)
        torch.testing.assert_close(of_value, chosen.mT @ direction)


# Compiled


def assert_compiled_is_the_same(name: str, graph: Graph, backend: str, *, atol: float, rtol: float) -> None:
    torch._dynamo.reset()
    leaves, similarity = inputs(H_kv=2), MAKERS[name]().double()
    compiled = torch.compile(attend, backend=backend)
    expected = result_and_gradients(attend, leaves, similarity, graph=graph)
    try:
        assert_all_close(
            result_and_gradients(compiled, leaves, similarity, graph=graph), expected, atol=atol, rtol=rtol
        )
    finally:
        torch._dynamo.reset()


TRACED = {"scaled_dot": "causal window", "gaussian": "causal window", "hard": "causal window", "linear": "causal"}
"""One of each kind of kernel; the others, a second or two each, are slow tests."""


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        pytest.param(name, graph, marks=() if TRACED.get(name) == graph else pytest.mark.slow)
        for name in MAKERS
        for graph in ("causal window", "causal")
    ],
)
def test_traced_attention_is_the_same_forward_and_backward(name: str, graph: str) -> None:
    assert_compiled_is_the_same(name, GRAPHS[graph], "aot_eager", atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize(
    "name", ["gaussian", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hard", "linear"))]
)
def test_traced_attention_in_pieces_is_the_same_forward_and_backward(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ROWS_PER_CHUNK", 3)
    monkeypatch.setattr(kernels, "WEIGHTS_PER_CHUNK", B * H * 3 * 3)
    assert_compiled_is_the_same(name, GRAPHS["causal window"], "aot_eager", atol=1e-12, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["causal", "causal window", "documents"])
@pytest.mark.parametrize("name", MAKERS)
def test_compiled_attention_is_the_same_forward_and_backward(name: str, graph: str) -> None:
    assert_compiled_is_the_same(name, GRAPHS[graph], "inductor", atol=1e-10, rtol=1e-9)


# Mistakes


def zeros(n_head: int = 4, H_kv: int = 4, **changed: tuple[int, ...]) -> list[Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"query": (2, n_head, 7, 8), "key": (2, H_kv, 7, 8), "value": (2, H_kv, 7, 8)}
    shapes |= changed
    return [torch.zeros(shapes[name]) for name in ("query", "key", "value")]


MISTAKES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "dropout with hard": (
        lambda: attend(*zeros(), similarity=Hard(), graph=Full(), dropout=0.25),
        ["dropout=0.25", "similarity=hard"],
    ),
    "dropout with linear": (
        lambda: attend(*zeros(), similarity=Linear(), graph=Full(), dropout=0.25),
        ["dropout=0.25", "similarity=linear"],
    ),
    "softcap with gaussian": (
        lambda: attend(*zeros(), similarity=Gaussian(4, 1.0), graph=Full(), softcap=30.0),
        ["softcap=30.0", "similarity=gaussian"],
    ),
    "softcap with uniform": (
        lambda: attend(*zeros(), similarity=Uniform(), graph=Full(), softcap=30.0),
        ["softcap=30.0", "similarity=uniform"],
    ),
    "softcap with linear": (
        lambda: attend(*zeros(), similarity=Linear(), graph=Full(), softcap=30.0),
        ["softcap=30.0", "similarity=linear"],
    ),
    "key_bias with linear": (
        lambda: attend(*zeros(), similarity=Linear(), graph=Full(), key_bias=torch.zeros(1, 4, 7)),
        ["key_bias", "similarity=linear"],
    ),
    "a softcap of 0": (
        lambda: attend(*zeros(), similarity=ScaledDot(), graph=Full(), softcap=0.0),
        ["softcap=0.0", "above 0"],
    ),
    "a softcap below 0": (
        lambda: attention_weights(*zeros()[:2], similarity=ScaledDot(), graph=Full(), softcap=-5.0),
        ["softcap=-5.0", "above 0"],
    ),
    "heads that do not divide": (
        lambda: attend(*zeros(4, 3), similarity=ScaledDot(), graph=Full()),
        ["3 key heads", "4 query heads"],
    ),
    "more key heads than query heads": (
        lambda: attend(*zeros(2, 4), similarity=ScaledDot(), graph=Full()),
        ["4 key heads", "2 query heads"],
    ),
    "values of another number than keys": (
        lambda: attend(*zeros(value=(2, 4, 6, 8)), similarity=ScaledDot(), graph=Full()),
        ["key (2, 4, 7, 8)", "value (2, 4, 6, 8)"],
    ),
    "values of other heads than keys": (
        lambda: attend(*zeros(value=(2, 2, 7, 8)), similarity=ScaledDot(), graph=Full()),
        ["key (2, 4, 7, 8)", "value (2, 2, 7, 8)"],
    ),
    "keys of another width than queries": (
        lambda: attend(*zeros(key=(2, 4, 7, 6)), similarity=ScaledDot(), graph=Full()),
        ["query (2, 4, 7, 8)", "key (2, 4, 7, 6)"],
    ),
    "keys of another batch than queries": (
        lambda: attention_weights(*zeros(key=(3, 4, 7, 8))[:2], similarity=ScaledDot(), graph=Full()),
        ["query (2, 4, 7, 8)", "key (3, 4, 7, 8)"],
    ),
    "a bias without rows": (
        lambda: attend(*zeros(), similarity=ScaledDot(), graph=Full(), key_bias=torch.zeros(4, 7), softcap=9.0),
        ["key_bias", "(4, 7)", "(1, 4, 7)", "(2, 4, 7)"],
    ),
    "a bias of one head for four": (
        lambda: attend(*zeros(), similarity=ScaledDot(), graph=Full(), key_bias=torch.zeros(1, 1, 7)),
        ["key_bias", "(1, 1, 7)", "(1, 4, 7)"],
    ),
    "a bias of more keys": (
        lambda: attend(*zeros(), similarity=ScaledDot(), graph=Window(3), key_bias=torch.zeros(1, 4, 9), softcap=9.0),
        ["key_bias", "(1, 4, 9)", "(1, 4, 7)"],
    ),
    "a bias of other rows": (
        lambda: attention_weights(*zeros()[:2], similarity=ScaledDot(), graph=Full(), key_bias=torch.zeros(3, 4, 7)),
        ["key_bias", "(3, 4, 7)", "(2, 4, 7)"],
    ),
    "temperatures of other heads": (
        lambda: attend(*zeros(), similarity=Cosine(3), graph=Full()),
        ["3 heads", "4 query heads"],
    ),
    "widths of other heads": (
        lambda: attend(*zeros(), similarity=Gaussian(8, 1.0), graph=Full()),
        ["8 heads", "4 query heads"],
    ),
    "a temperature of 0": (lambda: ScaledDot(0.0), ["temperature=0.0", "above 0"]),
    "a temperature that is no number": (lambda: ScaledDot(math.nan), ["temperature=nan", "above 0"]),
    "a symmetric temperature below 0": (lambda: Symmetric(-0.5), ["temperature=-0.5", "above 0"]),
    "a hard temperature of 0": (lambda: Hard(0.0), ["temperature=0.0", "above 0"]),
    "a cosine temperature of 0": (lambda: Cosine(4, 0.0), ["temperature=0.0", "above 0"]),
    "a cosine temperature below 0": (lambda: Cosine(4, -0.1), ["temperature=-0.1", "above 0"]),
    "a width of 0": (lambda: Gaussian(4, 0.0), ["width=0.0", "above 0"]),
    "a width below 0": (lambda: Gaussian(4, -2.0), ["width=-2.0", "above 0"]),
    "an inverse temperature of 0": (lambda: Hopfield(0.0), ["beta=0.0", "above 0"]),
    "an inverse temperature below 0": (lambda: Hopfield(-1.0), ["beta=-1.0", "above 0"]),
    "no steps": (lambda: Hopfield(1.0, steps=0), ["steps=0", "at least 1"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_in_one_line_that_names_the_value(mistake: str) -> None:
    call, words = MISTAKES[mistake]
    with pytest.raises(UserError) as refused:
        call()
    message = refused.value.args[0]
    assert "\n" not in message
    assert all(word in message for word in words), message
