"""Pieces and groups: nothing is lost, sizes are kept, and no cut shows in the tokens."""

import itertools

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data.sources.chunking import cut_up, grouped
from minigpt.data.tokenizers.bpe import SPLITS

PAIRS = [bytes([byte]) for byte in range(256)]
PAIRS += [bytes(pair) for pair in itertools.product(b"aSs1! '\r\n\t", repeat=2)]
"""A vocabulary in which any two of some bytes join unless the split parts them: another split gives other tokens."""
ENCODINGS = {
    name: tiktoken.Encoding(
        name, pat_str=split, mergeable_ranks={token: i for i, token in enumerate(PAIRS)}, special_tokens={}
    )
    for name, split in SPLITS.items()
}
texts = st.text(alphabet="aSs1! '\r\n\té²東\u3000", max_size=60)


@given(text=texts, least=st.integers(1, 9), most=st.none() | st.integers(9, 12))
def test_pieces_make_the_text_and_keep_their_sizes(text: str, least: int, most: int | None) -> None:
    chunks = list(cut_up(text, least, most))
    assert "".join(chunks) == text
    assert all(len(chunk) >= least for chunk in chunks[:-1])
    assert most is None or all(len(chunk) <= most for chunk in chunks)


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=300, deadline=None)
@given(text=texts, least=st.integers(1, 9))
def test_pieces_have_the_tokens_of_the_whole(split: str, text: str, least: int) -> None:
    encode = ENCODINGS[split].encode_ordinary
    chunks = cut_up(text.replace("S", "s a\na"), least)
    assert [token for chunk in chunks for token in encode(chunk)] == encode(text.replace("S", "s a\na"))


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("one two three", ["one", " two", " three"]),
        ("one\ntwo\n  three", ["one\n", "two\n  three"]),
        ("naïve\r\nété été", ["naïve\r\nété", " été"]),
        ("1 2 3 !? ...", ["1 2 3 !? ..."]),
        ("", [""]),
    ],
)
def test_cuts_are_at_the_beginnings_of_words_and_lines(text: str, chunks: list[str]) -> None:
    assert list(cut_up(text, 1)) == chunks


def test_a_piece_without_a_certain_place_is_cut_where_it_must_be_or_not_at_all() -> None:
    assert list(cut_up("x" * 25, 5, 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(cut_up("x" * 25, 5)) == ["x" * 25]


@given(sizes=st.lists(st.integers(0, 9)), limit=st.integers(1, 20), most=st.integers(1, 5))
def test_groups_keep_the_order_and_end_when_they_are_full(sizes: list[int], limit: int, most: int) -> None:
    groups = list(grouped(sizes, int, limit, most))
    assert [size for group in groups for size in group] == sizes
    for number, group in enumerate(groups):
        assert 0 < len(group) <= most
        assert sum(group[:-1]) < limit
        assert number == len(groups) - 1 or sum(group) >= limit or len(group) == most


def test_groups_take_no_more_than_they_need() -> None:
    numbers = itertools.count()
    assert next(grouped(numbers, lambda _: 1, 3)) == [0, 1, 2]
    assert next(numbers) == 3
