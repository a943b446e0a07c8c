"""Probes: a text is measured in whole windows, and relations from a file stand where its tokens do."""

import itertools

import numpy as np
import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.data.relations import Example, Relation
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection.ablation import UNKNOWN, ablation
from minigpt.inspection.measuring import measure
from minigpt.inspection.probes import PROBE_TOKENS, Probe, read_examples
from minigpt.inspection.relations import Link
from minigpt.inspection.statistics import entropy
from minigpt.model.gpt import GPT

EXAMPLES: list[Example] = [
    ("Ann is 7; she rests.", [Relation("pronoun", (10, 13), (0, 3))]),
    ("Zoë sings. She is fine.", [Relation("pronoun", (11, 14), (0, 3)), Relation("verb", (15, 17), (4, 9))]),
]


@pytest.mark.parametrize("n_tokens", [2, 30, 31, 300, 5000])
def test_a_probe_is_measured_on_whole_windows_that_follow_one_another(n_tokens: int) -> None:
    tokens = list(itertools.islice(itertools.cycle(range(200)), n_tokens))
    windows = Probe.of(BytesTokenizer(), tokens, 30, 10).windows
    T = windows.shape[1] - 1
    assert T == min(30, n_tokens - 1)
    assert windows[:, :-1].flatten().tolist() == tokens[: len(windows) * T]
    assert (windows[1:, 0] == windows[:-1, -1]).all()
    assert len(windows) * T <= max(T, PROBE_TOKENS)
    assert len(windows) == max(1, min(PROBE_TOKENS, n_tokens - 1) // T)


def test_texts_with_relations_follow_one_another_and_each_begins_behind_an_end_of_text() -> None:
    tokenizer = BytesTokenizer()
    tokens, found = read_examples(tokenizer, EXAMPLES, 1000)
    end = tokenizer.end_of_text
    assert tokens == [end, *tokenizer.encode(EXAMPLES[0][0]), end, *tokenizer.encode(EXAMPLES[1][0])]
    assert [(link.name, chr(tokens[link.query])) for link in found] == [
        ("pronoun", "e"),
        ("pronoun", "e"),
        ("verb", "s"),
    ]
    assert [bytes(tokens[key] for key in link.keys).decode() for link in found] == ["Ann", "Zoë", "sings"]


def test_texts_are_read_until_there_are_enough_tokens() -> None:
    tokens, found = read_examples(BytesTokenizer(), itertools.cycle(EXAMPLES), 50)
    assert 50 <= len(tokens) < 80
    assert len(found) == 4


def test_known_relations_take_the_place_of_those_of_python() -> None:
    tokenizer = BytesTokenizer()
    tokens = tokenizer.encode("add(add) # not ()")
    assert {link.name for link in Probe.of(tokenizer, tokens, 12, 10).links} == {"bracket", "previous occurrence"}
    known = [Link("mine", 2, (0,)), Link("mine", 11, (5,))]
    probe = Probe.of(tokenizer, tokens, 5, 4, known=known)
    assert probe.links == (known[0],)
    assert probe.window_links == ((known[0],), (), ())
    assert Probe.of(tokenizer, tokens, 5, 4, known=[]).links == ()


def test_texts_one_by_one_are_windows_of_their_own_and_the_longest_is_shown() -> None:
    tokenizer = BytesTokenizer()
    end = tokenizer.end_of_text
    tokens, known = read_examples(tokenizer, EXAMPLES, 1000)
    probe = Probe.of(tokenizer, tokens, 30, 10, known=known, one_by_one=True)
    first, second = ([end, *tokenizer.encode(text)] for text, _ in EXAMPLES)
    assert probe.windows.tolist() == [[*first, end, *[UNKNOWN] * 3], second]
    assert list(probe.tokens) == second[:10]
    assert [[link.name for link in links] for links in probe.window_links] == [["pronoun"], ["pronoun", "verb"]]
    again = Probe.of(tokenizer, probe.text, 30, 10, known=probe.text_links, one_by_one=True)
    assert torch.equal(again.windows, probe.windows)
    assert again.window_links == probe.window_links
    cut = Probe.of(tokenizer, tokens, 8, 10, known=known, one_by_one=True)
    assert cut.windows[0].tolist() == [*first[:8], first[8]]
    assert [row.tolist()[0] for row in cut.windows] == [first[0], first[8], first[16], second[0], second[8], second[16]]
    assert len(Probe.of(tokenizer, [end], 8, 10, one_by_one=True).windows) == 0


def test_what_is_measured_on_texts_of_different_lengths_is_what_each_says_on_its_own() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, context_length=30, n_layer=2, n_head=2, n_embd=16))
    tokenizer = BytesTokenizer()
    tokens, known = read_examples(tokenizer, EXAMPLES * 2, 1000)
    probe = Probe.of(tokenizer, tokens, 30, 10, known=known, one_by_one=True)
    lengths = (probe.windows[:, 1:] != UNKNOWN).sum(dim=1).tolist()
    alone = [row[None, : n + 1] for row, n in zip(probe.windows, lengths, strict=True)]
    found = measure(model, probe.windows, {"entropy": entropy}, probe.window_links)
    each = [measure(model, row, {"entropy": entropy}) for row in alone]
    shares = [(n - 1) / (sum(lengths) - len(lengths)) for n in lengths]
    expected = sum(share * one.scores["entropy"] for share, one in zip(shares, each, strict=True))
    np.testing.assert_allclose(found.scores["entropy"], expected, rtol=1e-5)
    largest = np.max([one.scores["largest_score"] for one in each], axis=0)
    np.testing.assert_allclose(found.scores["largest_score"], largest, rtol=1e-5)
    for row, n, one in zip(found.losses, lengths, each, strict=True):
        torch.testing.assert_close(row[:n], one.losses[0])
        assert row[n:].isnan().all()
    whole = ablation(model, probe.windows)
    for b, row in enumerate(alone):
        torch.testing.assert_close(whole.changes[:, b, : lengths[b]], ablation(model, row).changes[:, 0])
    changes = torch.cat([whole.changes[:, b, :n] for b, n in enumerate(lengths)], dim=1)
    torch.testing.assert_close(whole.mean, changes.double().mean(dim=1))
    mean = ablation(model, probe.windows, kind="mean").changes
    padded = torch.cat([probe.windows, torch.full((len(lengths), 4), UNKNOWN)], dim=1)[:, :31]
    torch.testing.assert_close(
        ablation(model, padded, kind="mean").changes[:, :, : mean.shape[2]], mean, equal_nan=True
    )
    assert found.relations["pronoun"].n_links == 4
