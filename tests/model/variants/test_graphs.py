"""Each graph against its definition in words, on single pairs of tokens; and what it promises to attention."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import UserError
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Adjacency, Causal, Documents, Full, Graph, Padding, Prefix, Window
from minigpt.model.variants.similarities import ScaledDot

Rule = Callable[[int, int, int, int], bool]
"""(b, h, t, s) -> whether query t hears key s, in row b and head h."""
Case = tuple[tuple[int, int, int, int], Graph, Rule]
"""Sizes (B, H, T, S), a graph that fits them, and the same graph in plain Python."""

DOCUMENTS = [[0, 0, 1, 1, 1, -1], [2, -1, 2, 0, 0, 2]]
REAL_KEYS = [[True, True, True, False, True, False], [False, True, True, True, True, True]]
REAL_QUERIES = [[True, False, True, True, True, False], [True] * 6]
EDGES = (torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.4).tolist()
LENGTHS = [4, 0]

CASES: dict[str, tuple[Graph, Rule]] = {
    "full": (Full(), lambda b, h, t, s: True),
    "causal": (Causal(), lambda b, h, t, s: s <= t),
    "window": (Window(3), lambda b, h, t, s: -3 < t - s < 3),
    "window of one": (Window(1), lambda b, h, t, s: t == s),
    "prefix": (Prefix(2), lambda b, h, t, s: s < 2),
    "prefix of each row": (Prefix(torch.tensor(LENGTHS)), lambda b, h, t, s: s < LENGTHS[b]),
    "documents": (
        Documents(torch.tensor(DOCUMENTS[0])),
        lambda b, h, t, s: DOCUMENTS[0][t] == DOCUMENTS[0][s] != -1,
    ),
    "documents of each row": (
        Documents(torch.tensor(DOCUMENTS)),
        lambda b, h, t, s: DOCUMENTS[b][t] == DOCUMENTS[b][s] != -1,
    ),
    "padding of keys": (Padding(torch.tensor(REAL_KEYS)), lambda b, h, t, s: REAL_KEYS[b][s]),
    "padding of both": (
        Padding(torch.tensor(REAL_KEYS), torch.tensor(REAL_QUERIES)),
        lambda b, h, t, s: REAL_KEYS[b][s] and REAL_QUERIES[b][t],
    ),
    "adjacency": (Adjacency(torch.tensor(EDGES[1][2])), lambda b, h, t, s: EDGES[1][2][t][s]),
    "adjacency of each row": (
        Adjacency(torch.tensor([EDGES[0][1], EDGES[1][1]])),
        lambda b, h, t, s: EDGES[b][1][t][s],
    ),
    "adjacency of each head": (Adjacency(torch.tensor(EDGES)[:1]), lambda b, h, t, s: EDGES[0][h][t][s]),
    "adjacency of each row and head": (Adjacency(torch.tensor(EDGES)), lambda b, h, t, s: EDGES[b][h][t][s]),
    "causal and window": (Causal() & Window(2), lambda b, h, t, s: 0 <= t - s < 2),
    "causal or prefix": (Causal() | Prefix(3), lambda b, h, t, s: s <= t or s < 3),
    "causal and documents or prefix": (
        (Causal() & Documents(torch.tensor(DOCUMENTS))) | Prefix(1),
        lambda b, h, t, s: (s <= t and DOCUMENTS[b][t] == DOCUMENTS[b][s] != -1) or s < 1,
    ),
}


def written_out(rule: Rule, B: int, H: int, T: int, S: int) -> torch.Tensor:
    """(B, H, T, S) bool, pair by pair."""
    matrix = [[[[bool(rule(b, h, t, s)) for s in range(S)] for t in range(T)] for h in range(H)] for b in range(B)]
    return torch.tensor(matrix)


def matrix_of(graph: Graph, B: int, H: int, T: int, S: int) -> torch.Tensor:
    mask = graph.mask(range(T), range(S))
    assert mask.dtype == torch.bool
    assert mask.shape == (*graph.shape, T, S)
    assert graph.shape[0] in {1, B}
    assert graph.shape[1] in {1, H}
    return mask.expand(B, H, T, S)


def one(B: int, H: int, T: int, S: int) -> st.SearchStrategy[tuple[Graph, Rule]]:
    """One graph that is no combination, with its rule."""

    def bits(*shape: int) -> st.SearchStrategy[torch.Tensor]:
        number = torch.Size(shape).numel()
        return st.lists(st.booleans(), min_size=number, max_size=number).map(lambda x: torch.tensor(x).view(shape))

    def numbers(low: int, high: int, *shape: int) -> st.SearchStrategy[torch.Tensor]:
        number = torch.Size(shape).numel()
        listed = st.lists(st.integers(low, high), min_size=number, max_size=number)
        return listed.map(lambda x: torch.tensor(x).view(shape))

    def window(size: int) -> tuple[Graph, Rule]:
        return Window(size), lambda b, h, t, s: abs(t - s) <= size - 1

    def prefix(length: int) -> tuple[Graph, Rule]:
        return Prefix(length), lambda b, h, t, s: s in range(length)

    def prefixes(lengths: torch.Tensor) -> tuple[Graph, Rule]:
        return Prefix(lengths), lambda b, h, t, s: s in range(int(lengths[b]))

    def documents(ids: torch.Tensor) -> tuple[Graph, Rule]:
        rows = ids.expand(B, T).tolist()
        return Documents(ids), lambda b, h, t, s: rows[b][t] == rows[b][s] != -1

    def padding(keys: torch.Tensor, queries: torch.Tensor | None) -> tuple[Graph, Rule]:
        real = torch.ones(B, T, dtype=torch.bool) if queries is None else queries
        return Padding(keys, queries), lambda b, h, t, s: bool(keys[b, s] and real[b, t])

    def adjacency(matrix: torch.Tensor) -> tuple[Graph, Rule]:
        rows = (matrix[:, None] if matrix.ndim == 3 else matrix).expand(B, H, T, S).tolist()
        return Adjacency(matrix), lambda b, h, t, s: rows[b][h][t][s]

    choices = [
        st.just((Full(), lambda b, h, t, s: True)),
        st.just((Causal(), lambda b, h, t, s: t - s >= 0)),
        st.integers(1, 9).map(window),
        st.integers(0, 9).map(prefix),
        numbers(0, 9, B).map(prefixes),
        st.builds(padding, bits(B, S), st.none() | bits(B, T)),
        st.sampled_from([(T, S), (1, T, S), (B, T, S), (1, H, T, S), (B, 1, T, S), (B, H, T, S)])
        .flatmap(lambda shape: bits(*shape))
        .map(adjacency),
    ]
    if T == S:
        choices.append((numbers(-1, 2, T) | numbers(-1, 2, B, T)).map(documents))
    return st.one_of(choices)


def any_graph(B: int, H: int, T: int, S: int) -> st.SearchStrategy[Case]:
    """Any graph: one, or several combined with & and |."""

    def combine(first: tuple[Graph, Rule], second: tuple[Graph, Rule], both: bool) -> tuple[Graph, Rule]:
        (graph1, rule1), (graph2, rule2) = first, second
        if both:
            return graph1 & graph2, lambda b, h, t, s: rule1(b, h, t, s) and rule2(b, h, t, s)
        return graph1 | graph2, lambda b, h, t, s: rule1(b, h, t, s) or rule2(b, h, t, s)

    combined = st.recursive(
        one(B, H, T, S), lambda smaller: st.builds(combine, smaller, smaller, st.booleans()), max_leaves=4
    )
    return combined.map(lambda pair: ((B, H, T, S), *pair))


lengths = st.tuples(st.integers(1, 7), st.integers(1, 7)) | st.integers(1, 7).map(lambda n: (n, n))
cases = st.tuples(st.integers(1, 2), st.integers(1, 2), lengths).flatmap(lambda n: any_graph(n[0], n[1], *n[2]))
often = settings(deadline=None, max_examples=100)


@pytest.mark.parametrize("name", CASES)
def test_a_graph_has_the_edges_of_its_definition_and_no_others(name: str) -> None:
    graph, rule = CASES[name]
    graph.check(2, 3, 6, 6)
    assert torch.equal(matrix_of(graph, 2, 3, 6, 6), written_out(rule, 2, 3, 6, 6))


@pytest.mark.parametrize("name", CASES)
def test_the_weights_of_attention_are_above_zero_on_the_edges_and_zero_elsewhere(name: str) -> None:
    graph, rule = CASES[name]
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    weights = attention_weights(query, key, similarity=ScaledDot(), graph=graph)
    assert torch.equal(weights > 0, written_out(rule, 2, 3, 6, 6))


@pytest.mark.parametrize(("T", "S"), [(7, 4), (4, 7)])
def test_queries_and_keys_of_different_number_are_counted_from_the_same_start(T: int, S: int) -> None:
    real = (torch.arange(2 * S).view(2, S) % 3 > 0).tolist()
    expected: list[tuple[Graph, Rule]] = [
        (Full(), lambda b, h, t, s: True),
        (Causal(), lambda b, h, t, s: s <= t),
        (Window(2), lambda b, h, t, s: abs(t - s) < 2),
        (Prefix(5), lambda b, h, t, s: s < 5),
        (Padding(torch.tensor(real)), lambda b, h, t, s: real[b][s]),
    ]
    for graph, rule in expected:
        graph.check(2, 1, T, S)
        assert torch.equal(matrix_of(graph, 2, 1, T, S), written_out(rule, 2, 1, T, S)), graph


@often
@given(case=cases)
def test_any_combination_has_the_edges_that_its_parts_say(case: Case) -> None:
    sizes, graph, rule = case
    graph.check(*sizes)
    assert torch.equal(matrix_of(graph, *sizes), written_out(rule, *sizes))


@often
@given(case=cases)
def test_a_piece_of_the_matrix_is_cut_from_the_whole(case: Case) -> None:
    (B, H, T, S), graph, rule = case
    whole = written_out(rule, B, H, T, S)
    t, s = range(T // 3, T), range(S // 2, S)
    piece = graph.mask(t, s)
    assert torch.equal(piece.expand(B, H, len(t), len(s)), whole[:, :, t.start :, s.start :])


@often
@given(case=cases)
def test_reach_never_loses_an_edge_and_stays_within_the_keys(case: Case) -> None:
    (B, H, T, S), graph, rule = case
    edges = written_out(rule, B, H, T, S)
    for start, stop in itertools.combinations(range(T + 1), 2):
        low, high = graph.reach(start, stop, S)
        assert low >= high or (low >= 0 and high <= S), f"reach {low, high} of {S} keys"
        heard = edges[:, :, start:stop].flatten(0, 2).any(dim=0).nonzero().flatten().tolist()
        assert set(heard) <= set(range(low, high)), f"queries {start}..{stop} hear {heard}, reach says {low, high}"


def test_reach_is_no_wider_than_the_rule_says() -> None:
    """What it leaves out is what is not computed: a reach of everything would be right, and slow."""
    assert Full().reach(10, 12, 20) == (0, 20)
    assert Causal().reach(10, 12, 20) == (0, 12)
    assert Window(3).reach(10, 12, 20) == (8, 14)
    assert (Causal() & Window(3)).reach(10, 12, 20) == (8, 12)
    assert Prefix(4).reach(10, 12, 20) == (0, 4)
    assert (Causal() | Prefix(15)).reach(10, 12, 20) == (0, 15)
    assert (Window(2) | Prefix(3)).reach(10, 12, 20) == (0, 13)
    documents = Documents(torch.tensor([0] * 5 + [-1] * 2 + [1] * 8 + [2] * 5))
    assert documents.reach(0, 3, 20) == (0, 5)
    assert documents.reach(8, 10, 20) == (7, 15)
    assert documents.reach(14, 16, 20) == (7, 20)
    assert (Causal() & documents).reach(8, 10, 20) == (7, 10)
    low, high = documents.reach(5, 7, 20)
    assert low >= high, "padding hears nothing"
    low, high = Window(2).reach(10, 12, 5)
    assert low >= high, "queries far beyond the last key hear nothing"


@often
@given(case=cases)
def test_the_reduced_graph_has_the_same_edges(case: Case) -> None:
    (B, H, T, S), graph, rule = case
    reduced = graph.reduced(T, S)
    reduced.check(B, H, T, S)
    assert torch.equal(matrix_of(reduced, B, H, T, S), written_out(rule, B, H, T, S))


def test_a_graph_is_reduced_to_the_one_that_the_fast_kernel_knows() -> None:
    rows = Documents(torch.tensor([0, 0, 1, 1, 1, 1, 2, 2]))
    assert Window(8).reduced(8, 8) == Full()
    assert Window(7).reduced(8, 8) == Window(7)
    assert Window(7).reduced(5, 8) == Window(7), "the longer of the two counts"
    assert Window(7).reduced(8, 5) == Window(7), "the longer of the two counts"
    assert (Causal() & Window(8)).reduced(8, 8) == Causal()
    assert (Window(8) & Causal()).reduced(8, 8) == Causal()
    assert (Causal() & Causal()).reduced(8, 8) == Causal()
    assert (Causal() | Causal()).reduced(8, 8) == Causal()
    assert (Causal() | Full()).reduced(8, 8) == Full()
    assert (Window(9) | Causal()).reduced(8, 8) == Full()
    assert ((Causal() & rows) & Window(8)).reduced(8, 8) == Causal() & rows
    assert (Causal() & Window(3)).reduced(8, 8) == Causal() & Window(3)


@often
@given(case=cases)
def test_a_graph_that_says_everyone_hears_itself_is_right(case: Case) -> None:
    (B, H, T, S), graph, rule = case
    if graph.reflexive:
        itself = written_out(rule, B, H, T, S).diagonal(dim1=-2, dim2=-1)
        assert itself.all()


def test_the_graphs_of_a_decoder_say_that_everyone_hears_itself() -> None:
    """So that attention need not look for tokens that hear nothing."""
    for graph in (Full(), Causal(), Window(1), Causal() & Window(4), Causal() | Prefix(3), Prefix(3) | Window(2)):
        assert graph.reflexive
    for graph in (
        Prefix(3),
        Causal() & Prefix(3),
        Documents(torch.tensor([0, -1])),
        Causal() & Documents(torch.tensor([1, 1])),
    ):
        assert not graph.reflexive


def test_a_window_on_the_past_looks_like_a_band() -> None:
    assert (Causal() & Window(3)).show(6) == "\n".join(
        [
            "■·····",
            "■■····",
            "■■■···",
            "·■■■··",
            "··■■■·",
            "···■■■",
        ]
    )


def test_a_prefix_looks_like_a_block_in_front_of_the_triangle() -> None:
    assert (Causal() | Prefix(3)).show(5) == "\n".join(
        [
            "■■■··",
            "■■■··",
            "■■■··",
            "■■■■·",
            "■■■■■",
        ]
    )


def test_show_takes_the_number_of_keys_and_the_row_and_the_head() -> None:
    assert Causal().show(2, 4) == "■···\n■■··"
    assert Documents(torch.tensor([[0, 0, 1], [0, -1, 0]])).show(3, row=1) == "■·■\n···\n■·■"
    assert (
        Adjacency(torch.eye(2).bool().logical_xor(torch.tensor([False, True])[:, None, None])[None]).show(2, head=1)
        == "·■\n■·"
    )
    assert Causal().show(2, row=1, head=3) == "■·\n■■", "one graph serves all rows and heads"


REAL = torch.ones(2, 7, dtype=torch.bool)
WRONG: dict[str, tuple[Graph, list[str]]] = {
    "negative prefix": (Prefix(-1), ["prefix=-1", "at least 0"]),
    "a prefix for another number of rows": (Prefix(torch.tensor([1, 2, 3])), ["(3,)", "2 rows"]),
    "a prefix that is a number in a tensor": (Prefix(torch.tensor(3)), ["prefix", "()"]),
    "a prefix of two axes": (Prefix(torch.tensor([[1], [2]])), ["prefix", "(2, 1)"]),
    "documents of another length": (Documents(torch.zeros(5).long()), ["documents", "(5,)", "(7,)", "(2, 7)"]),
    "documents of other rows": (Documents(torch.zeros(3, 7).long()), ["documents", "(3, 7)", "(2, 7)"]),
    "documents of three axes": (Documents(torch.zeros(2, 7, 7).long()), ["documents", "(2, 7, 7)"]),
    "documents in fractions": (Documents(torch.zeros(7)), ["documents", "(7,) float32", "whole numbers"]),
    "documents as yes and no": (Documents(torch.zeros(2, 7).bool()), ["documents", "(2, 7) bool", "whole numbers"]),
    "padding of another length": (Padding(REAL[:, :6]), ["keys", "(2, 6) bool", "(2, 7)"]),
    "padding for all rows": (Padding(REAL[0]), ["keys", "(7,) bool", "(2, 7)"]),
    "padding in numbers": (Padding(REAL.long()), ["keys", "int64", "give (2, 7) bool"]),
    "padding of queries of another length": (Padding(REAL, REAL[:, :4]), ["queries", "(2, 4) bool", "(2, 7)"]),
    "padding of queries in numbers": (Padding(REAL, REAL.float()), ["queries", "float32", "give (2, 7) bool"]),
    "adjacency of another length": (Adjacency(torch.ones(6, 7).bool()), ["adjacency", "(6, 7) bool", "(7, 7)"]),
    "adjacency in numbers": (Adjacency(torch.ones(7, 7)), ["adjacency", "(7, 7) float32", "bool"]),
    "adjacency of one axis": (Adjacency(torch.ones(7).bool()), ["adjacency", "(7,) bool"]),
    "adjacency of five axes": (Adjacency(torch.ones(1, 2, 4, 7, 7).bool()), ["adjacency", "(1, 2, 4, 7, 7)"]),
    "adjacency of other rows": (Adjacency(torch.ones(3, 7, 7).bool()), ["adjacency", "(3, 7, 7)", "(2, 7, 7)"]),
    "adjacency of other heads": (Adjacency(torch.ones(2, 3, 7, 7).bool()), ["(2, 3, 7, 7)", "(2, 4, 7, 7)"]),
    "a mistake on the left": (Documents(torch.zeros(5).long()) & Causal(), ["documents", "(5,)"]),
    "a mistake on the right": (Causal() | Prefix(-2), ["prefix=-2"]),
    "a mistake deep inside": (Causal() & (Window(3) | Adjacency(torch.ones(7, 7))), ["adjacency", "float32"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_graph_that_does_not_fit_is_refused_in_one_line_with_the_sizes(name: str) -> None:
    graph, words = WRONG[name]
    with pytest.raises(UserError) as checked:
        graph.check(2, 4, 7, 7)
    query, key = torch.zeros(2, 4, 7, 8), torch.zeros(2, 2, 7, 8)
    with pytest.raises(UserError) as attended:
        attend(query, key, key, similarity=ScaledDot(), graph=graph)
    with pytest.raises(UserError) as looked_at:
        attention_weights(query, key, similarity=ScaledDot(), graph=graph)
    message = checked.value.args[0]
    assert attended.value.args[0] == looked_at.value.args[0] == message
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_documents_of_queries_do_not_number_other_keys() -> None:
    documents = Documents(torch.zeros(7).long())
    with pytest.raises(UserError, match="there are 5 keys, but one document numbers both"):
        documents.check(2, 4, 7, 5)
    with pytest.raises(UserError, match="there are 5 keys"):
        attend(*(torch.zeros(2, 4, n, 8) for n in (7, 5, 5)), similarity=ScaledDot(), graph=documents)


@pytest.mark.parametrize("size", [0, -4])
def test_a_window_without_the_token_itself_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"window={size}: must be at least 1") as refused:
        Window(size)
    assert "\n" not in refused.value.args[0]
