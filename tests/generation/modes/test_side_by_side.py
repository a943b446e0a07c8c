"""Two texts in two columns: the layout in cells of the terminal, and each model's opinion of both."""

import pytest
from fakes import BYTES, LETTERS, Counting, Saying, real

from minigpt.config import SampleConfig
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.generation.modes.side_by_side import columns, compare, n_cells, wrapped


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("abcdef", ["abcd", "ef"]),
        ("abcd\n\ne", ["abcd", "", "e"]),
        ("日本語", ["日本", "語"]),
        ("a日本", ["a日", "本"]),
        ("e\u0301e\u0301e\u0301e\u0301e", ["e\u0301e\u0301e\u0301e\u0301", "e"]),
        ("a\tb", ["a   ", "b"]),
        ("\x1b[m\u2028", [r"\x1b", "[m\u2028"]),
    ],
)
def test_lines_are_broken_by_the_cells_they_take(text: str, lines: list[str]) -> None:
    assert wrapped(text, 4) == lines


def test_columns_stand_straight_whatever_characters_are_in_them() -> None:
    lines = list(columns("日本語です\nab", "x\ny\nz\nw", 6))
    assert lines == ["日本語 │ x", "です   │ y", "ab     │ z", "       │ w"]
    assert {n_cells(line.split("│")[0]) for line in lines} == {7}


def test_each_model_judges_both_texts(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "83")
    writers = Writer(real(), BYTES), Writer(real(n_layer=1), BYTES)
    config = SampleConfig("one", compare="two", seed=3, num_samples=2, max_new_tokens=6)
    compare(writers, "ab\x1b", config)
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["one", "│", "two"]
    assert "─ sample 1 of 2, seed 3 ─" in out
    assert "─ sample 2 of 2, seed 4 ─" in out
    assert "\x1b" not in out
    texts = ["ab\x1b" + writer.generate("ab\x1b", seed=4, max_new_tokens=6).text for writer in writers]
    for name, writer, line in zip(("one", "two"), writers, out.splitlines()[-2:], strict=True):
        assert line.split(" │ ")[0].strip() == f"{writer.score(texts[0]).bits_per_byte:.2f} bits per byte by {name}"
        assert line.split(" │ ")[1] == f"{writer.score(texts[1]).bits_per_byte:.2f} bits per byte by {name}"


def test_a_text_that_the_other_model_cannot_read_has_no_score(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "163")
    writers = Writer(Saying(BYTES, "z"), BYTES), Writer(real(vocab_size=10), LETTERS)  # type: ignore[arg-type]
    writers[0].score = Writer(real(), BYTES).score  # type: ignore[method-assign] (a fake reads no whole texts)
    compare(writers, "a", SampleConfig("one", compare="two", temperature=0.0))
    assert "no score by two: character 'z'" in capsys.readouterr().out.replace(" │", "").replace("\n", " ")


@pytest.mark.parametrize(("prompts", "begin"), [(("a", "b"), "a"), (("z", "b"), "b"), (("z", "z"), "")])
def test_without_a_prompt_both_continue_the_first_that_both_can_read(
    prompts: tuple[str, str], begin: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "163")
    first = Writer(real(), BYTES, first_prompt=prompts[0])
    second = Writer(real(vocab_size=10), LETTERS, first_prompt=prompts[1])
    config = SampleConfig("one", compare="two", temperature=0.0, max_new_tokens=2)
    compare((first, second), None, config)
    said = capsys.readouterr().out
    compare((first, second), begin, config)
    assert said == capsys.readouterr().out


def test_a_prompt_that_one_model_refuses_names_its_run() -> None:
    writers = Writer(real(), BYTES), Writer(Counting(10), LETTERS)
    with pytest.raises(UserError, match=r"^runs/two: character 'z'"):
        compare(writers, "z", SampleConfig("runs/one", compare="runs/two"))  # type: ignore[arg-type]
