"""Probes: a text is measured in whole windows, and relations from a file stand where its tokens do."""

import itertools

import pytest

from minigpt.data.relations import Example, Relation
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection.probes import PROBE_TOKENS, Probe, read_examples
from minigpt.inspection.relations import Link

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
