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

Change = Callable[[GenerationConfig, dict[str, Any]], GenerationConfig]
"""(config, settings as typed) -> the changed config, or a UserError."""
Turn = tuple[str, str]
"""A prompt and its answer."""

HELP = """\
Type a prompt to continue. A line that ends with \\ continues on the next one; empty lines are ignored.
/temperature 0.7   changes a setting, /temperature shows it; /settings shows all
/again             generates again from the same prompt, with the next seed
/more              continues the last sample
/new               starts a new conversation, with a model of chat messages
/quit              quits, as Ctrl-D does; Ctrl-C stops the current sample
//...              is a prompt that begins with one /"""
COMMANDS = ("again", "help", "more", "new", "quit", "settings")
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
    """State of an interactive session: the model, current settings, the turns before, and the last sample."""

    def __init__(self, writer: Writer, config: SampleConfig, change: Change) -> None:
        self.writer, self.change, self.num_samples = writer, change, config.num_samples
        self.config = config.generation
        """Its seed is that of the next sample."""
        self.turns: list[Turn] = []
        """Prompts and answers before the last prompt, with a model of chat messages; of other models, prompts stand
        alone."""
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
            case "new" if self.writer.form.between is None:
                raise UserError("/new: with this model each prompt stands alone")
            case "new":
                self.turns, self.prompt = [], None
            case _ if self.prompt is None:
                raise UserError(f"/{word}: nothing has been written yet; type a prompt")
            case "again":
                self._write_samples(self.turns, self.prompt)
            case "more":
                self._write_sample(self.turns, self.prompt, self.text)

    def _setting(self, name: str) -> str:
        """A setting as it can be typed."""
        value = self.config.stops if name == "stop" else getattr(self.config, name)
        return f"/{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"

    def write(self, prompt: str) -> None:
        """Print num_samples continuations of a prompt; with a model of chat messages, its answers to the next turn."""
        goes_on = self.writer.form.between is not None and self.prompt is not None
        self._write_samples([*self.turns, (self.prompt, self.text)] if goes_on else [], prompt)  # type: ignore[list-item]

    def _write_samples(self, turns: list[Turn], prompt: str) -> None:
        for _ in range(self.num_samples):
            self._write_sample(turns, prompt)

    def _write_sample(self, turns: list[Turn], prompt: str, text: str = "") -> None:
        """Print a continuation of turns, prompt and text; a text is on the screen already."""
        speed, form = Speed(), self.writer.form
        asked: str | list[int] = self._still_seen(prompt + text) if text else prompt
        if any(form):  # token ids: as a prompt, the text would be put into the form again
            turns, asked = self._in_form(turns, prompt, text)
        texts = speed.stream(self.writer, asked, self.config)
        first = next(texts, "")  # raises for an invalid prompt before the session's state changes
        self.turns, self.prompt, self.text = turns, prompt, text
        self.config = dataclasses.replace(self.config, seed=(self.config.seed + 1) % 2**31)
        try:
            if not text:
                show(form(prompt) if form.between is None else form.after.lstrip())  # a conversation shows its answers
            for piece in itertools.chain([first], texts):
                self.text += piece
                show(piece)
        finally:
            print(flush=True)
            note(speed)

    def _in_form(self, turns: list[Turn], prompt: str, text: str) -> tuple[list[Turn], list[int]]:
        """The last turns that leave a quarter of the context free, and the tokens of all, as in training."""
        form, tokenizer, T = self.writer.form, self.writer.tokenizer, self.writer.model_config.context_length

        def tokens_after(turns: list[Turn]) -> list[int]:
            tokens = list[int]()
            for asked, answer in [*turns, (prompt, text)]:
                between = (form.between or "") if tokens else ""
                tokens += [tokenizer.end_of_text, *tokenizer.encode(between + form(asked)), *tokenizer.encode(answer)]
            return tokens

        kept = turns
        while kept and len(tokens_after(kept)) > 3 * T // 4:
            kept = kept[1:]
        if kept != turns:
            note(f"{len(turns) - len(kept)} of {len(turns)} earlier turns left out: the model reads at most {T} tokens")
        return kept, tokens_after(kept)

    def _still_seen(self, text: str) -> str:
        """A text; where it exceeds the context and overflow is slide, its last 3/4 of a context."""
        T = self.writer.model_config.context_length
        tokens = self.writer.tokenizer.encode(text)
        if self.config.overflow == "stop" or len(tokens) < T:
            return text
        return self.writer.tokenizer.decode_bytes(tokens[-max(1, 3 * T // 4) :]).decode("utf-8", errors="ignore")
