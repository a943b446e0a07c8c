"""Heads: what is measured in pieces is what whole maps say, labels follow the scores, and looking changes nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection import ablation as ablation_module
from minigpt.inspection import heads, statistics
from minigpt.inspection.ablation import KINDS, Kind, ablation, losses
from minigpt.inspection.capture import capture_attention
from minigpt.inspection.heads import (
    TEXT_STATISTICS,
    affordable_windows,
    head_table,
    in_context_score,
    measure_repeated,
    relation_scores,
    repeated_ablation,
    repeated_tokens,
    score_heads,
    summary,
)
from minigpt.inspection.labels import label_heads
from minigpt.inspection.measuring import measure
from minigpt.inspection.probes import Probe
from minigpt.inspection.relations import Link, RelationScore, RelationTally
from minigpt.model.gpt import GPT
from minigpt.model.variants import attend

TINY: dict[str, Any] = {"vocab_size": 257, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
CODE = "add(add(a), add(b))\n" * 3


def tiny(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**TINY | changes))


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("kind", [{}, {"similarity": "linear"}, {"window": 5}, {"n_kv_head": 2}], ids=str)
def test_a_context_measured_in_pieces_gives_what_its_maps_say(
    kind: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "ROWS_PER_CHUNK", rows)
    model, tokens = tiny(**kind).eval(), torch.randint(257, (3, 25))
    found = measure(model, tokens, TEXT_STATISTICS)
    with torch.no_grad(), capture_attention(model) as maps:
        model(tokens[:, :-1])
    for name, statistic in TEXT_STATISTICS.items():
        whole = torch.stack([statistic(weights, torch.arange(24)).nanmean(dim=(0, 2)) for weights in maps])
        np.testing.assert_allclose(found.scores[name], whole.double().numpy(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.losses, losses(model, tokens).detach())


@pytest.mark.parametrize("rows", [5, 100])
def test_relations_are_measured_in_each_row_as_in_its_own_map(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "ROWS_PER_CHUNK", rows)
    monkeypatch.setattr(ablation_module, "TOKENS", 50)  # two rows at a time
    model, tokens = tiny().eval(), torch.randint(257, (3, 25))
    links = [[Link("a", 9, (2, 3)), Link("b", 20, (4,))], [], [Link("a", 23, (0,))]]
    found = measure(model, tokens, {}, links).relations
    with torch.no_grad(), capture_attention(model) as maps:
        model(tokens[:, :-1])
    tally = RelationTally()
    for row, own in enumerate(links):
        tally.add(torch.stack(maps)[:, row].numpy(), own)
    expected = tally.scores()
    assert {name: score.n_links for name, score in found.items()} == {"a": 2, "b": 1}
    for name, score in expected.items():
        np.testing.assert_allclose(found[name].mass, score.mass, rtol=1e-4)
        np.testing.assert_allclose(found[name].lift, score.lift, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found[name].deviation, score.deviation, rtol=1e-3, atol=1e-6)


def test_the_largest_score_is_that_of_all_pairs_before_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "ROWS_PER_CHUNK", 5)
    model = tiny(logit_softcap=2.0, qk_norm=False)
    model.blocks[0].attn.qkv.weight.data *= 100
    largest = measure(model, torch.randint(257, (3, 25)), {}).scores["largest_score"]
    assert largest[0] == pytest.approx(2.0)
    assert (largest[1] < 1).all()


def test_looking_changes_neither_model_nor_random_state() -> None:
    model = tiny(dropout=0.5).train()
    model.blocks[0].eval()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    tokenizer = BytesTokenizer()
    score_heads(model, tokenizer, Probe.of(tokenizer, tokenizer.encode(CODE), 24, 20), 7, everything=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.blocks[0].training
    assert all(p.grad is None for p in model.parameters())


def test_a_look_says_all_that_it_can() -> None:
    tokenizer = BytesTokenizer()
    probe = Probe.of(tokenizer, tokenizer.encode(CODE * 5), 100, 90)
    seen = score_heads(tiny(context_length=100), tokenizer, probe, 7, everything=True)
    snapshot, numbers = seen.snapshot, seen.snapshot.numbers
    assert snapshot.step == 7
    assert "".join(snapshot.tokens) == (CODE * 5)[:90]
    assert snapshot.value_norms is not None
    assert snapshot.value_norms.shape == (2, 4, 90)
    assert len(snapshot.next_tokens) == 90
    relations = {"relation: bracket", "relation: previous occurrence"}
    assert snapshot.scores.keys() >= TEXT_STATISTICS.keys() | relations | {
        "induction",
        "copying",
        "ablation",
        "ablation_spread",
    }
    assert "ablation_repeated" not in snapshot.scores, "an untrained model does not copy"
    assert seen.ablated_tokens == 100 * len(probe.windows)
    assert all(score.shape == (2, 4) for score in snapshot.scores.values())
    names = {"icl_score", "second_copy_loss", "entropy_mean", "entropy_min", "largest_score", "sink_rate"}
    assert numbers.keys() >= names | {"max/induction", "max/bracket"}
    assert len(numbers) <= 20
    assert all(np.isfinite(list(numbers.values())))


@pytest.mark.parametrize("n_tokens", [1, 2, 3])
def test_the_shortest_texts_and_contexts_are_looked_at_too(n_tokens: int) -> None:
    tokenizer = BytesTokenizer()
    seen = score_heads(
        tiny(context_length=3), tokenizer, Probe.of(tokenizer, [65] * n_tokens, 3, 20), 0, everything=True
    )
    snapshot = seen.snapshot
    assert len(snapshot.tokens) == n_tokens
    assert "induction" not in snapshot.scores, "two copies of two tokens do not fit"


def test_a_repeated_sequence_is_random_tokens_twice_without_end_of_text() -> None:
    tokens = repeated_tokens(tiny(vocab_size=4), 2, 10)
    assert (tokens[:, 0] == 2).all()
    assert torch.equal(tokens[:, 1:11], tokens[:, 11:])
    assert set(tokens[:, 1:].unique().tolist()) == {0, 1, 3}
    assert torch.equal(tokens, repeated_tokens(tiny(vocab_size=4), 2, 10))


def test_copies_have_the_losses_of_their_own_tokens() -> None:
    model = tiny(context_length=21)
    scores, numbers = measure_repeated(model, 256)
    tokens = repeated_tokens(model, 256, 10)
    each = losses(model.eval(), tokens).detach()
    assert numbers["first_copy_loss"] == pytest.approx(float(each[:, 1:10].mean()), rel=1e-5)
    assert numbers["second_copy_loss"] == pytest.approx(float(each[:, 11:20].mean()), rel=1e-5)
    with torch.no_grad(), capture_attention(model) as maps:
        model(tokens[:, :-1])
    expected = statistics.induction(10, 1)(torch.stack(maps), torch.arange(20)).nanmean(dim=(1, 3))
    np.testing.assert_allclose(scores["induction"], expected.numpy(), rtol=1e-4)


def test_the_in_context_score_compares_late_with_early_predictions() -> None:
    each = torch.ones(2, 100)
    each[:, 10:20], each[:, 90:] = 3.0, 0.5
    assert in_context_score(each) == pytest.approx(-2.5)
    assert in_context_score(torch.ones(2, 19)) is None


def test_a_label_is_the_score_that_exceeds_its_threshold_by_most() -> None:
    scores = {
        "induction": np.array([[0.29, 0.9, 0.31, np.nan]]),
        "previous_token": np.array([[0.39, 0.5, 0.8, np.nan]]),
        "relation: bracket": np.array([[0.19, 0.1, 0.1, 0.2]]),
        "entropy": np.array([[1.0, 1.0, 1.0, 1.0]]),
        "relation: copy": np.array([[0.9, 0.9, 0.9, 0.9]]),
    }
    assert label_heads(scores) == [[None, "induction", "previous token", "bracket"]]
    assert label_heads({"entropy": scores["entropy"]}) == []
    columns, rows = head_table(scores)
    assert columns == ["layer", "head", "label", *scores]
    assert rows[1] == [0, 1, "induction", 0.9, 0.5, 0.1, 1.0, 0.9]
    assert rows[3][3] is None


def test_relations_that_occur_seldom_have_a_score_that_says_so_and_give_no_label() -> None:
    score = RelationScore(4, np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
    often = RelationScore(5, np.full((1, 1), 0.75), np.full((1, 1), 0.5), np.zeros((1, 1)))
    scores = relation_scores({"seldom": score, "often": often})
    assert scores == {"relation, few links: seldom": np.array([[1.0]]), "relation: often": np.array([[0.25]])}
    assert label_heads(scores) == [["often"]]
    assert summary(scores) == {"max/often": 0.25}


@pytest.mark.parametrize("kind", KINDS)
def test_the_ablation_shown_on_a_text_is_the_one_on_that_text(kind: Kind) -> None:
    tokenizer, model = BytesTokenizer(), tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4
    shown = []
    for text in (CODE * 2, "the cat sat on the mat, and the mat was flat. " * 3):
        probe = Probe.of(tokenizer, tokenizer.encode(text), 24, 20)
        seen = score_heads(model, tokenizer, probe, 0, everything=True, ablation_kind=kind)
        changes = ablation(model, probe.windows, kind=kind).changes.mean(dim=(1, 2)).view(2, 4)
        np.testing.assert_allclose(seen.snapshot.scores["ablation"], changes.numpy(), atol=1e-6)
        assert seen.ablation_kind == kind
        columns, rows = head_table(seen.snapshot.scores, kind)
        assert columns[-1] == "ablation_kind"
        assert {row[-1] for row in rows} == {kind}
        shown.append(seen.snapshot.scores["ablation"])
    assert np.abs(shown[0] - shown[1]).max() > 0.01


@pytest.mark.parametrize(
    ("first", "second", "is_there"), [(5.6, 2.0, True), (9.0, 5.5, False), (5.0, 4.95, False), (12.0, 9.0, False)]
)
def test_ablation_on_repeated_tokens_is_there_only_where_the_model_copies(
    first: float, second: float, is_there: bool
) -> None:
    model = tiny()
    found = repeated_ablation(model, 256, {"first_copy_loss": first, "second_copy_loss": second})
    assert ("ablation_repeated" in found) == is_there, "chance is ln 257 = 5.55"
    if is_there:
        tokens = repeated_tokens(model, 256, 12)
        expected = ablation(model, tokens).changes[..., 13:].mean(dim=(1, 2)).view(2, 4)
        np.testing.assert_allclose(found["ablation_repeated"], expected.numpy(), atol=1e-6)


def test_a_large_model_is_ablated_on_fewer_and_then_shorter_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = tiny(), torch.zeros(10, 25, dtype=torch.long)
    monkeypatch.setattr(heads, "ABLATION_OPERATIONS", math.inf)
    assert affordable_windows(model, windows).shape == (10, 25)
    monkeypatch.setattr(heads, "FEWEST_ABLATED", 16)
    for most, shape in ((239, (9, 25)), (48, (2, 25)), (30, (2, 16)), (15, (0, 25))):
        monkeypatch.setattr(heads, "MOST_ABLATED", most)
        assert affordable_windows(model, windows).shape == shape
    assert affordable_windows(model, windows[:1, :9]).shape == (1, 9), "a short text is ablated as a whole"


def test_numbers_of_the_whole_do_not_grow_with_the_model() -> None:
    scores = {name: np.random.default_rng(0).random((12, 12)) for name in (*TEXT_STATISTICS, "largest_score")}
    numbers = summary(scores | {"relation: bracket": np.full((12, 12), np.nan)})
    assert len(numbers) < 15
    assert numbers["max/previous_token"] == scores["previous_token"].max()
    assert numbers["entropy_min"] == scores["entropy"].min()
    assert "max/bracket" not in numbers
