"""The split: an honest one, from one look at all documents, that stays when others come or go."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig
from minigpt.data.prepare import prepare
from minigpt.data.sources.reading import Chunk
from minigpt.data.splitting import LEFT_OUT, TRAIN, VAL, Survey, assign, cut_single_text, survey
from minigpt.errors import UserError

MANY = [f"text number {i}" for i in range(400)]


def look(texts: Iterable[str]) -> Survey:
    return survey(Chunk(text) for text in texts)


def split(texts: Sequence[str], val_fraction: float = 0.1, **settings: object) -> tuple[list[str], list[str]]:
    """The texts of train and of val."""
    config = DataConfig(val_fraction=val_fraction, **settings)  # type: ignore[arg-type]
    sides, _ = assign(look(texts), None, config)
    chosen = [[text for text, found in zip(texts, sides, strict=True) if found == side] for side in (TRAIN, VAL)]
    return chosen[0], chosen[1]


def cut(text: str, val_fraction: float, length: int = 10**9) -> tuple[str, str]:
    """The two parts of a single text that comes in chunks of so many characters."""
    starts = range(0, len(text), length)
    chunks = [Chunk(text[start : start + length], start + length >= len(text)) for start in starts]
    parts, ended = ["", ""], [False, False]
    for side, chunk in cut_single_text(chunks, len(text.encode()), val_fraction):
        assert not ended[side]
        assert side == VAL or not parts[VAL]
        parts[side] += chunk.text
        ended[side] = chunk.ends
    assert ended == [True, True]
    return parts[0], parts[1]


def test_train_and_val_share_no_document_and_lose_none() -> None:
    train, val = split(MANY)
    assert sorted([*train, *val]) == sorted(MANY)
    assert 20 <= len(val) <= 60


def test_equal_texts_end_on_the_same_side() -> None:
    train, val = split([*MANY, *MANY])
    assert not set(train) & set(val)
    assert len(train) + len(val) == 800


def test_documents_stay_on_their_side_when_others_are_added() -> None:
    (few_train, few_val), (train, val) = split(MANY[::2]), split(MANY)
    assert set(few_train) <= set(train)
    assert set(few_val) <= set(val)


def test_a_larger_val_fraction_only_adds_to_val() -> None:
    assert set(split(MANY, 0.1)[1]) < set(split(MANY, 0.3)[1])


@pytest.mark.parametrize("val_fraction", [1e-9, 0.5, 1 - 1e-9, 1 - 1e-16])
def test_of_two_documents_one_is_on_each_side(val_fraction: float) -> None:
    assert [len(side) for side in split(MANY[:2], val_fraction)] == [1, 1]


def test_a_limited_number_of_documents_is_the_same_choice_each_time_and_grows() -> None:
    few, more, backwards = (
        {text for side in split(texts, max_documents=n) for text in side}
        for texts, n in ((MANY, 10), (MANY, 20), (MANY[::-1], 10))
    )
    assert few == backwards
    assert (len(few), len(more)) == (10, 20)
    assert few < more


def test_a_limit_prefers_neither_side() -> None:
    train, val = split(MANY, 0.5, max_documents=200)
    assert 70 <= len(val) <= 130
    assert len(train) + len(val) == 200


def test_a_limit_counts_equal_documents_one_by_one() -> None:
    sides, _ = assign(look(["equal"] * 5), None, DataConfig(max_documents=1))
    assert (sides != LEFT_OUT).sum() == 1


def test_a_limit_is_one_for_each_source() -> None:
    sources = survey(map(Chunk, MANY[:300]), map(Chunk, MANY[300:]))
    sides, _ = assign(sources, None, DataConfig(source=["a", "b"], max_documents=30))
    assert [(sides[:300] != LEFT_OUT).sum(), (sides[300:] != LEFT_OUT).sum()] == [30, 30]


def test_a_limit_beyond_what_is_there_keeps_all() -> None:
    assert sum(map(len, split(MANY, max_documents=1000))) == 400


def test_the_look_is_the_same_whatever_pieces_a_document_comes_in() -> None:
    text = "naïve 🙂 " * 50
    whole = look([text, "x", text]).documents
    chunks = [*(Chunk(c, False) for c in text[:-1]), Chunk(text[-1]), Chunk("x"), Chunk(text, False), Chunk("")]
    assert np.array_equal(survey(chunks).documents, whole)
    assert whole[:, 2].tolist() == [len(text.encode()), 1, len(text.encode())]


def test_a_text_of_its_own_validates_without_the_documents_that_train_has() -> None:
    sides, n_duplicates = assign(look(MANY), look(["new", MANY[7], "newer", MANY[9], MANY[7]]), DataConfig())
    assert n_duplicates == 3
    assert sides.tolist() == [TRAIN] * 400 + [VAL, LEFT_OUT, VAL, LEFT_OUT, LEFT_OUT]


def test_documents_that_a_limit_leaves_out_of_train_may_be_in_val() -> None:
    sides, n_duplicates = assign(look(MANY), look(MANY), DataConfig(max_documents=100))
    assert n_duplicates == 100
    train, val = sides[:400] == TRAIN, sides[400:] == VAL
    assert train.sum() == 100
    assert np.array_equal(val, ~train)


@pytest.mark.parametrize(("val", "reason"), [(MANY[:2], "each text of it is in the train split too"), ([], "no text")])
def test_a_val_source_of_which_nothing_is_left_is_refused(val: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=f"data.val_source=held.txt: {reason}"):
        assign(look(MANY), look(val), DataConfig(val_source="held.txt"))


def test_no_document_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="data.source=a.txt: no text in it, nothing but white space"):
        assign(look([]), None, DataConfig(source="a.txt"))


def test_a_document_given_often_is_one_text_to_be_cut() -> None:
    sides, _ = assign(look(["equal"] * 3), None, DataConfig())
    assert sides.tolist() == [TRAIN, LEFT_OUT, LEFT_OUT]


@pytest.mark.parametrize("length", [1, 7, 64, 10**9])
def test_a_single_document_is_cut_near_its_end_where_a_line_begins(length: int) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    train, val = cut(text, 0.1, length)
    assert train + val == text
    if length > 64:
        assert val.startswith("line 90\n")
    assert 0.1 <= len(val) / len(text) < 0.12


@pytest.mark.parametrize("length", [1, 10, 25, 10**9])
def test_a_single_document_without_lines_is_cut_at_the_fraction(length: int) -> None:
    train, val = cut("x" * 100, 0.25, length)
    assert (len(train), len(val)) == (75, 25)


@pytest.mark.parametrize("val_fraction", [0.1, 0.33, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("length", [1, 3, 10**9])
def test_no_character_is_cut(length: int, val_fraction: float) -> None:
    text = "🙂é日" * 10
    train, val = cut(text, val_fraction, length)
    assert train + val == text
    assert train
    assert val


def test_a_line_is_kept_whole_only_behind_the_middle_of_the_text() -> None:
    train, _ = cut("a line\n" + "x" * 1000, 0.1)
    assert len(train) > 800


@pytest.mark.parametrize("text", ["x", "é", "🙂"])
def test_a_text_too_short_to_hold_out_a_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"data\.source: the text is too short \(\d bytes\) to hold out a part of it"):
        cut(text, 0.5)


NOVEL = "".join(f"Line {i} of a naïve text.\n" + "\n" * (i % 7 == 0) for i in range(9000))  # 240 kB


def stretches(text: str, n_parts: int, length: int = 10**9) -> list[tuple[int, str]]:
    """(side, text) by turns."""
    chunks = [Chunk(text[i : i + length], i + length >= len(text)) for i in range(0, len(text), length)]
    found, ended = [(TRAIN, "")], False
    for side, chunk in cut_single_text(chunks, len(text.encode()), 0.1, n_parts):
        assert (side == found[-1][0]) != ended
        found = [*found, (side, chunk.text)] if ended else [*found[:-1], (side, found[-1][1] + chunk.text)]
        ended = chunk.ends
    assert ended
    return found


@pytest.mark.parametrize("length", [997, 20_000, 10**9])
def test_parts_are_held_out_over_the_whole_text_each_a_document_of_its_own(length: int) -> None:
    found = stretches(NOVEL, 5, length)
    assert [side for side, _ in found] == [TRAIN, VAL] * 5
    assert "".join(text for _, text in found) == NOVEL
    parts = [len(text) for side, text in found if side == VAL]
    assert all(0.5 <= part / (len(NOVEL) / 50) <= 1.5 for part in parts)
    assert max(len(text) for side, text in found if side == TRAIN) < len(NOVEL) / 5
    if length > 997:  # a chunk too short for a blank line near the cut has none
        assert all(text.startswith("Line") and text.endswith("\n\n") for _, text in found[:-1])


def test_one_part_is_the_end_of_the_text() -> None:
    assert [text for _, text in stretches(NOVEL, 1)] == list(cut(NOVEL, 0.1))


def test_parts_of_a_text_without_lines_lose_no_character() -> None:
    text = "🙂é日" * 9000
    found = stretches(text, 8, 1000)
    assert "".join(part for _, part in found) == text
    assert len(found) == 16


def test_a_spread_val_split_is_said_and_has_its_own_folder_and_exact_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "novel.txt"
    source.write_text(NOVEL, encoding="utf-8")
    config = DataConfig(source=str(source), tokenizer="bytes", val_fraction=0.1, dir=str(tmp_path / "data"))
    spread, end = prepare(dataclasses.replace(config, val_from="spread")), prepare(config, quiet=True)
    assert "note: held out: 3 parts of about 8 kB, spread over the text" in capsys.readouterr().err
    assert spread.folder != end.folder
    assert "val_from" not in end.manifest.settings  # folders of earlier versions keep their key
    for data, n_documents in ((spread, 3), (end, 1)):
        for split in (data.train, data.val):
            assert len(split.document_starts) == n_documents
            assert len(split.tokens) == split.n_bytes + n_documents  # a byte is a token, and each document has an end
        assert data.train.n_bytes + data.val.n_bytes == len(NOVEL.encode())


def test_a_text_too_short_for_parts_holds_out_its_end_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text(NOVEL[:9000], encoding="utf-8")
    config = DataConfig(source=str(tmp_path / "a.txt"), tokenizer="bytes", dir=str(tmp_path / "d"), val_from="spread")
    assert len(prepare(config).val.document_starts) == 1
    assert "held out: the end of the text, too short for several parts of 8 kB" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data\.val_from=spread: not with data\.streaming"):
        dataclasses.replace(config, streaming=True)
