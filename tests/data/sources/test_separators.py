"""Separators: documents are those of a split of the whole text, wherever the parts are cut."""

import random
import re
from itertools import pairwise

import pytest

from minigpt.data.sources import separators
from minigpt.data.sources.separators import Splitter, pattern_of


def split(text: str, separator: str | None, cuts: list[int]) -> list[str]:
    """The documents of a text fed in parts, without empty ones."""
    splitter, documents = Splitter(separator), [""]
    ends = [0, *sorted(cuts), len(text)]
    parts = [text[a:b] for a, b in pairwise(ends)]
    for number, part in enumerate([*parts, ""]):
        for piece, is_end in splitter.feed(part, final=number == len(parts)):
            documents[-1] += piece
            documents += [""] if is_end else []
    return [document for document in documents if document]


@pytest.mark.parametrize(
    ("separator", "pieces"),
    [
        ("line", ["a", "\n", "\r\n", "b "]),
        ("blank_lines", ["a", "\n", "\r\n", " ", "b"]),
        ("##", ["#", "a", "\n"]),
        ("/^(?=C)/", ["C", "a", "\n"]),
        ("/^-$/", ["-", "a", "\n"]),
        (None, ["<|endoftext|>", "a", "\n", '"', "`", "."]),
    ],
)
def test_documents_do_not_depend_on_where_the_text_is_cut(
    separator: str | None, pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separators, "LONGEST", 24)
    pattern, choice = pattern_of(separator), random.Random(0)
    assert pattern is not None
    for _ in range(300):
        text = "".join(choice.choice(pieces) for _ in range(choice.randrange(60)))
        cuts = [choice.randrange(len(text) + 1) for _ in range(choice.randrange(6))]
        assert split(text, separator, cuts) == [document for document in re.split(pattern, text) if document]


def test_the_usual_separator_is_recognised_unless_it_is_only_mentioned() -> None:
    assert split("a.\n<|endoftext|>\nb<|endoftext|>c", None, []) == ["a.\n", "b", "c"]
    assert split('"Bye."<|endoftext|>"Hi!"', None, []) == ['"Bye."', '"Hi!"']
    assert len(split("the token `<|endoftext|>` ends a text", None, [])) == 1
    assert len(split("a<|endoftext|>b", "none", [])) == 1
