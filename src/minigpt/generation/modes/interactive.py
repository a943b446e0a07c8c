"""`sample.py --interactive`: a prompt loop with commands that change settings."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import json
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minigpt.config import GenerationConfig, SampleConfig
from minigpt.errors import UserError
from minigpt.files import note, shown
from minigpt.generation.modes.terminal import Speed, show

if TYPE_CHECKING:  # imports torch, which is loaded only with a model
    from minigpt.generation.generator import Writer
    from minigpt.generation.text import Prompt

Change = Callable[[GenerationConfig, dict[str, Any]], GenerationConfig]
"""(config, settings as typed) -> the changed config, or a UserError."""

HELP = """\
Type a prompt to continue. A line that ends with \\ continues on the next one; empty lines are ignored.
/temperature 0.7   changes a setting, /temperature shows it; /settings shows all
/again             generates again from the same prompt, with the next seed
/more              continues the last sample
/quit              quits, as Ctrl-D does; Ctrl-C stops the current sample
//...              is a prompt that begins with one /"""
COMMANDS = ("again", "help", "more", "quit", "settings")
SETTINGS = tuple(each.name for each in dataclasses.fields(GenerationConfig))


def converse(writer: Writer, prompt: str | None, config: SampleConfig, change: Change) -> None:
    """Answer lines until end of input: from a terminal with line history, or from a pipe without a prompt sign.

    Args:
        writer: the model.
        prompt: continued at once; None to wait for input.
        config: initial settings.
        change: parses settings as typed.
    """
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # `input` then has history and line editing

            readline.parse_and_bind("tab: self-insert")  # prompts of code have tabs
        note("/help lists the commands, Ctrl-D ends")
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    conversation = Conversation(writer, config, change)
    steps: list[Callable[[], None]] = [] if prompt is None else [lambda: conversation.write(prompt)]
    while True:
        try:
            if steps:
                steps.pop()()
            else:
                conversation.answer(read(typed))
        except EOFError:
            if typed:
                print()
            return
        except UserError as error:
            print(f"error: {shown(error, sys.stderr)}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            if not typed:  # a pipe has no user to type the next line: end the program
                raise
            print()


def read(typed: bool) -> str:
    r"""The next line, joined with those after it while a line ends with \.

    Raises:
        EOFError: end of input.
        UserError: the line is not UTF-8 text.
    """
    lines: list[str] = []
    while True:
        try:
            lines.append(_line("> " if not lines else ". ", typed))
        except EOFError:
            if not lines:
                raise
            break
        if not lines[-1].endswith("\\"):
            break
        lines[-1] = lines[-1][:-1]
    text = "\n".join(lines)
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogateescape decodes invalid bytes as lone surrogates
        raise UserError("this line is not UTF-8 text") from None
    return text


def _line(sign: str, typed: bool) -> str:
    if typed and sys.stdout.isatty():
        return input(sign)
    if typed:  # stdout is redirected, and `input` would write the sign into it
        print(sign, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


class Conversation:
    """State of an interactive session: the model, current settings, and the last sample."""

    def __init__(self, writer: Writer, config: SampleConfig, change: Change) -> None:
        self.writer, self.change, self.num_samples = writer, change, config.num_samples
        self.config = config.generation
        """Its seed is that of the next sample."""
        self.prompt: str | None = None
        self.text = ""
        """The last sample, also where Ctrl-C cut it short."""

    def answer(self, line: str) -> None:
        """Continue a prompt, or run a command.

        Raises:
            UserError: the prompt or command is invalid; nothing has changed.
            EOFError: /quit.
            KeyboardInterrupt: generation was stopped; the text so far is kept.
        """
        if line.startswith("//") or not line.startswith("/"):
            if line:
                self.write(line.removeprefix("/"))
            return
        word, value = re.fullmatch(r"/(\w*)\s*=?\s*(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        word = word.lower()
        if word in SETTINGS:
            if value:
                changed = self.change(self.config, {word: value.strip()})
                self.writer.check("", changed)  # refuses token ids outside the vocabulary
                self.config = changed
            note(self._setting(word))
        elif word not in COMMANDS:
            close = difflib.get_close_matches(word, [*COMMANDS, *SETTINGS], n=1)
            hint = f"did you mean /{close[0]}?" if close else "/help lists them"
            raise UserError(f"/{word}: no such command: {hint} (type // for a prompt that begins with /)")
        elif value:
            raise UserError(f"/{word} takes no value")
        else:
            self._command(word)

    def _command(self, word: str) -> None:
        match word:
            case "quit":
                raise EOFError
            case "help":
                note(HELP)
            case "settings":
                note("\n".join(self._setting(name) for name in SETTINGS))
            case _ if self.prompt is None:
                raise UserError(f"/{word}: nothing has been written yet; type a prompt")
            case "again":
                self.write(self.prompt)
            case "more":
                self._write_sample(self.prompt, self.text)

    def _setting(self, name: str) -> str:
        """A setting as it can be typed."""
        value = self.config.stops if name == "stop" else getattr(self.config, name)
        return f"/{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"

    def write(self, prompt: str) -> None:
        """Print num_samples continuations of a prompt."""
        for _ in range(self.num_samples):
            self._write_sample(prompt)

    def _write_sample(self, prompt: str, text: str = "") -> None:
        """Print a continuation of prompt + text; with a text, which is on the screen already, only what is new."""
        speed = Speed()
        texts = speed.stream(self.writer, self._still_seen(prompt, text) if text else prompt, self.config)
        first = next(texts, "")  # raises for an invalid prompt before the session's state changes
        self.prompt, self.text = prompt, text
        self.config = dataclasses.replace(self.config, seed=(self.config.seed + 1) % 2**31)
        try:
            if not text:
                show(self.writer.form(prompt))
            for piece in itertools.chain([first], texts):
                self.text += piece
                show(piece)
        finally:
            print(flush=True)
            note(speed)

    def _still_seen(self, prompt: str, text: str) -> Prompt:
        """Prompt + text; where these exceed the context and overflow is slide, their last 3/4 of a context."""
        T = self.writer.model.config.context_length
        if any(self.writer.form):  # token ids: as a prompt, the text would be put into the form again
            asked, encode = self.writer.form(prompt), self.writer.tokenizer.encode
            return [self.writer.tokenizer.end_of_text, *encode(asked), *encode(text)]
        tokens = self.writer.tokenizer.encode(prompt + text)
        if self.config.overflow == "stop" or len(tokens) < T:
            return prompt + text
        return self.writer.tokenizer.decode_bytes(tokens[-max(1, 3 * T // 4) :]).decode("utf-8", errors="ignore")
