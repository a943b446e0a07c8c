"""Text at the terminal: nothing of it is obeyed, stdout holds nothing but text, and speed is that of writing."""

import io
import time

import pytest
from fakes import BYTES, LETTERS, Counting, Saying, real

from minigpt.config import SampleConfig
from minigpt.errors import UserError
from minigpt.files import visible
from minigpt.generation.generator import Writer
from minigpt.generation.modes.terminal import Speed, show, write


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("é日\u200d🙂\u0301", "é日\u200d🙂\u0301"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\r\b\x00\x7f\x9b31m", r"\r\x08\x00\x7f\x9b31m"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_pipe_gets_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((io.StringIO(), "\x1b[2J"), (Terminal(), r"\x1b[2J")):
        monkeypatch.setattr("sys.stdout", stream)
        show("\x1b[2J")
        assert stream.getvalue() == expected


def test_where_no_prompt_is_given_the_runs_first_one_is_continued(capsys: pytest.CaptureFixture) -> None:
    writer = Writer(Counting(10), LETTERS, first_prompt="ab")  # type: ignore[arg-type]
    for prompt, expected in ((None, "abcde\n"), ("b", "bcde\n")):
        write(writer, prompt, SampleConfig("r", temperature=0.0, max_new_tokens=3))
        assert capsys.readouterr().out == expected


def test_the_text_is_on_stdout_and_its_speed_on_stderr(capsys: pytest.CaptureFixture) -> None:
    writer = Writer(Counting(10), LETTERS)  # type: ignore[arg-type]
    write(writer, "ab", SampleConfig("r", temperature=0.0, max_new_tokens=3))
    out, err = capsys.readouterr()
    assert out == "abcde\n"
    assert err.startswith("3 tokens in ")
    assert "tokens/s (prompt read in " in err
    assert err.count("\n") == 1


def test_samples_have_the_seeds_from_the_first_on(capsys: pytest.CaptureFixture) -> None:
    writer = Writer(real(), BYTES)
    write(writer, "ab", SampleConfig("r", seed=5, num_samples=2, max_new_tokens=8))
    texts = [writer.generate("ab", seed=seed, max_new_tokens=8).text for seed in (5, 6)]
    assert capsys.readouterr().out == "".join(
        f"──── sample {i + 1} of 2, seed {i + 5}\nab{text}\n" for i, text in enumerate(texts)
    )


def test_of_a_prompt_that_is_refused_nothing_is_printed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="reads at most 32"):
        write(Writer(real(), BYTES), "x" * 40, SampleConfig("r", num_samples=2))
    assert capsys.readouterr() == ("", "")


def test_speed_counts_neither_who_reads_nor_less_than_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, writer = Speed(), Writer(Saying(BYTES, "é!"), BYTES)  # type: ignore[arg-type]
    clock, seconds_read = time.perf_counter, 0
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + seconds_read)
    for _ in speed.stream(writer, "x", SampleConfig("r", temperature=0.0)):
        seconds_read += 1000
    assert speed.n_tokens == 4  # two bytes, one, and the end of the document
    assert 0 < speed.prefill_seconds <= speed.seconds < 1000
