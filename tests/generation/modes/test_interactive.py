"""The prompt line: what is typed is written after or obeyed, and no mistake ends or changes anything."""

import dataclasses
import os
import pty
import select
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import BYTES, LETTERS, Counting, Saying, real
from scripts import ROOT, run_script

from minigpt.cli import parsing
from minigpt.config import SampleConfig
from minigpt.data.answers import CHAT, PAIR
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.generation.modes.interactive import SETTINGS, Conversation


def conversation(**changes: Any) -> Conversation:
    return Conversation(Writer(real(), BYTES), SampleConfig("r", **{"max_new_tokens": 5} | changes), parsing.change)


def text_of(prompt: str, **changes: Any) -> str:
    return Writer(real(), BYTES).generate(prompt, **{"max_new_tokens": 5} | changes).text


def test_each_prompt_gets_the_next_seed(capsys: pytest.CaptureFixture) -> None:
    ours = conversation(seed=7)
    for line in ("ab", "", "/again", "/seed 20", "//quit"):
        ours.answer(line)
    prompts = (("ab", 7), ("ab", 8), ("/quit", 20))
    assert capsys.readouterr().out == "".join(f"{p}{text_of(p, seed=seed)}\n" for p, seed in prompts)
    assert ours.config.seed == 21


def chatting(n_tokens: int = 64, **changes: Any) -> Conversation:
    """A model that answers "Ho." and end of text, whatever it reads, and remembers what it read."""
    model = Saying(BYTES, "Ho.")
    model.config = dataclasses.replace(model.config, context_length=n_tokens)
    writer = Writer(model, BYTES, from_start=True, form=CHAT)  # type: ignore[arg-type]
    return Conversation(writer, SampleConfig("r", **{"max_new_tokens": 9} | changes), parsing.change)


def read_first(ours: Conversation) -> str:
    """What the model read before the first token of its last answer; the end of text as |."""
    return "".join("|" if token == BYTES.end_of_text else chr(token) for token in ours.writer.model.read[0])  # type: ignore[union-attr, index]


def test_a_conversation_goes_on_turn_by_turn_in_the_form_of_training(capsys: pytest.CaptureFixture) -> None:
    ours, read = chatting(), []
    for line in ("Hi", "You?", "/again", "/new", "Hi"):
        ours.writer.model.read.clear()  # type: ignore[union-attr, operator]
        ours.answer(line)
        read += [read_first(ours)] if line != "/new" else []
    first, second = "|user: Hi\nassistant: ", "|user: Hi\nassistant: Ho.|\nuser: You?\nassistant: "
    assert read == [first, second, second, first]
    assert capsys.readouterr().out == "assistant: Ho.\n" * 4


def test_more_goes_on_inside_the_last_answer() -> None:
    ours = chatting(max_new_tokens=2)
    ours.answer("Hi")
    ours.writer.model.read.clear()  # type: ignore[union-attr, operator]
    ours.answer("/more")
    assert read_first(ours) == "|user: Hi\nassistant: Ho"


def test_the_first_turns_are_left_out_where_the_context_is_full(capsys: pytest.CaptureFixture) -> None:
    ours = chatting()
    for line in ("Hi", "You?", "Me?"):
        ours.writer.model.read.clear()  # type: ignore[union-attr, operator]
        ours.answer(line)
    assert read_first(ours) == "|user: Me?\nassistant: "
    assert "2 of 2 earlier turns left out: the model reads at most 64 tokens" in capsys.readouterr().err


def test_a_prompt_that_does_not_fit_leaves_a_conversation_as_it_was() -> None:
    ours = chatting()
    ours.answer("Hi")
    before = dict(vars(ours))
    with pytest.raises(UserError, match="the prompt has 223 tokens"):
        ours.answer("x" * 204)
    assert vars(ours) == before


def test_after_the_highest_seed_comes_the_lowest() -> None:
    ours = conversation(seed=2**31 - 1)
    ours.answer("ab")
    assert ours.config.seed == 0


def test_more_goes_on_with_what_was_written_also_beyond_the_context(capsys: pytest.CaptureFixture) -> None:
    ours = Conversation(
        Writer(Counting(10), LETTERS),  # type: ignore[arg-type]
        SampleConfig("r", max_new_tokens=2, temperature=0.0, forbidden_tokens=[LETTERS.end_of_text]),
        parsing.change,
    )
    ours.answer("ab")
    for _ in range(6):
        ours.answer("/more")
    assert (ours.prompt, ours.text) == ("ab", "cdefgh abcdefg"[:14])
    assert capsys.readouterr().out.replace("\n", "") == "ab" + ours.text


def test_more_stops_at_the_context_where_overflow_is_stop() -> None:
    ours = conversation(overflow="stop", max_new_tokens=100)
    ours.answer("ab")
    assert len(BYTES.encode(ours.prompt + ours.text)) >= 32  # type: ignore[operator]
    with pytest.raises(UserError, match="the model reads at most 32"):
        ours.answer("/more")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/temperature 0.7", "temperature", 0.7),
        ("/temperature=1e-3", "temperature", 0.001),
        ("/top_k null", "top_k", None),
        ('/stop ["\\n\\n", a]', "stop", ["\n\n", "a"]),
        ("/stop END", "stop", "END"),
        ("/max_new_tokens  50 ", "max_new_tokens", 50),
        ("/Overflow stop", "overflow", "stop"),
        ("/forbidden_tokens [1]", "forbidden_tokens", [1]),
    ],
)
def test_settings_are_changed_as_on_the_command_line(line: str, name: str, value: object) -> None:
    ours = conversation()
    ours.answer(line)
    assert getattr(ours.config, name) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/tempratur 1", "/tempratur: no such command: did you mean /temperature?"),
        ("/agian", "did you mean /again?"),
        ("/usr/bin/env", "/usr: no such command: /help lists them (type // for a prompt that begins with /)"),
        ("/", "/: no such command"),
        ("/again 5", "/again takes no value"),
        ("/more", "/more: nothing has been written yet"),
        ("/new", "/new: with this model each prompt stands alone"),
        ("/temperature hot", "temperature=hot: expected float"),
        ("/temperature nan", "temperature=nan: must be a finite number"),
        ("/top_k 0", "top_k=0: must be at least 1"),
        ("/stop_tokens [999]", "stop_tokens: there is no token 999"),
        ("x" * 40, "the prompt has 40 tokens"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(line: str, message: str, capsys: pytest.CaptureFixture) -> None:
    ours = conversation()
    before = dict(vars(ours))
    with pytest.raises(UserError) as caught:
        ours.answer(line)
    assert message in str(caught.value)
    assert vars(ours) == before
    assert capsys.readouterr() == ("", "")


def test_all_settings_can_be_seen_and_typed_again(capsys: pytest.CaptureFixture) -> None:
    ours = conversation(stop=["\n"], top_p=0.5)
    ours.answer("/settings")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == [f"/{name}" for name in SETTINGS]
    again = conversation()
    for line in lines:
        again.answer(line)
    assert again.config == ours.config


def test_lines_of_a_pipe_are_answered_without_signs_and_codes(tiny_run: Path) -> None:
    lines = b"/nonsense\n\ndef \\\n  x\n\xff\n//y\n/quit\nnever\n"
    result = run_script("sample.py", tiny_run, "--interactive", "--max_new_tokens", 4, text=False, input=lines)
    assert result.returncode == 0
    out, err = result.stdout.decode(), result.stderr.decode()
    assert out.startswith("def \n  x")
    assert "\n/y" in out
    assert not {"\x1b", ">"} & set(out)
    assert "never" not in out
    assert [line.split(":")[0] for line in err.splitlines() if "tokens" not in line] == ["error"] * 2


class Session:
    """A program at a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, "sample.py", *map(str, arguments)])
        self.seen, self.read = b"", 0

    def type(self, keys: bytes, answer: bytes) -> None:
        """Send keys, and wait until the answer is on the screen."""
        os.write(self.terminal, keys)
        self.wait_for(answer, keys == b"\x03")

    def wait_for(self, answer: bytes, impatient: bool = False) -> None:
        """Python may pass over a Ctrl-C in the moment in which readline starts: who is impatient presses it again.

        One read may bring two answers: each is sought behind the one that was found before it.
        """
        end = time.monotonic() + 240
        while answer not in self.seen[self.read :]:
            assert time.monotonic() < end, self.seen
            if select.select([self.terminal], [], [], 1)[0]:
                self.seen += os.read(self.terminal, 4096)
            elif impatient:
                os.write(self.terminal, b"\x03")
        self.read = self.seen.index(answer, self.read) + len(answer)

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_stops_a_text_or_clears_a_line_and_ctrl_d_ends(tiny_run: Path) -> None:
    session = Session(tiny_run, "--interactive", "--max_new_tokens", 1_000_000)
    session.wait_for(b"\r\n> ")
    session.type(b"def \r", b"def \r\ndef ")
    session.wait_for(b"e")
    session.type(b"\x03", b"tokens/s")
    session.wait_for(b"> ")
    session.type(b"half", b"half")
    session.type(b"\x03", b"\r\n> ")
    session.type(b"/max_new_tokens 3\r", b"/max_new_tokens 3\x1b[0m\r\n> ")
    session.type(b"\x1b[A\x1b[A", b"def ")  # the history
    session.type(b"\r", b"3 tokens in")
    session.wait_for(b"> ")
    session.type(b"\x04", b"\r\n")
    assert session.end() == 0


def test_a_line_is_asked_in_the_form_of_the_run(capsys: pytest.CaptureFixture) -> None:
    writer = Writer(real(), BYTES, from_start=True, form=PAIR)
    ours = Conversation(writer, SampleConfig("r", max_new_tokens=5, seed=7), parsing.change)
    ours.answer("ab")
    plain = Writer(real(), BYTES, from_start=True).generate("ab\n", max_new_tokens=5, seed=7)
    assert capsys.readouterr().out == f"ab\n{plain.text}\n"
