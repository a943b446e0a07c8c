"""`sample.py --compare`: samples of two models in two columns, each scored by both models."""

from __future__ import annotations

import contextlib
import shutil
import unicodedata
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

from minigpt.config import SampleConfig
from minigpt.errors import UserError
from minigpt.files import visible

if TYPE_CHECKING:  # imports torch, which is loaded only with a model
    from minigpt.generation.generator import Writer

BAR = " │ "
LEAST_WIDTH = 12
"""Minimum width of a column; a narrower terminal wraps lines itself."""


def compare(writers: tuple[Writer, Writer], prompt: str | None, config: SampleConfig) -> None:
    """Print samples of both models for one prompt and the same seeds.

    Under each text stand the bits per byte of prompt and sample under each model. A model scores its own samples well,
    so compare the scores on the other's.

    Args: a prompt of None takes the first sampling prompt of a run that both can encode.

    Raises:
        UserError: the prompt or a setting is invalid for one of the models, naming the run.
    """
    names = (config.run, str(config.compare))
    prompt = _common_prompt(writers, config) if prompt is None else prompt
    for name, writer in zip(names, writers, strict=True):
        try:
            writer.check(prompt, config)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    width = max(LEAST_WIDTH, (shutil.get_terminal_size().columns - len(BAR)) // 2)
    for line in columns(names[0], names[1], width):
        print(line)
    for number in range(config.num_samples):
        settings = config.of_sample(number)
        samples = [writer.generate(prompt, settings) for writer in writers]
        texts = [sample.prompt + sample.text for sample in samples]
        print(_rule(f" sample {number + 1} of {config.num_samples}, seed {settings.seed} ", width))
        for line in columns(texts[0], texts[1], width):
            print(line)
        print(_rule("", width))
        scores = [[_scored(writer, name, text) for writer, name in zip(writers, names, strict=True)] for text in texts]
        for line in columns("\n".join(scores[0]), "\n".join(scores[1]), width):
            print(line, flush=True)


def _common_prompt(writers: tuple[Writer, Writer], config: SampleConfig) -> str:
    """The first of the runs' sampling prompts that both models can encode; otherwise the empty prompt."""
    for prompt in [writer.first_prompt for writer in writers]:
        with contextlib.suppress(UserError):
            for writer in writers:
                writer.check(prompt, config)
            return prompt
    return ""


def columns(left: str, right: str, width: int) -> Iterator[str]:
    """Lines of two texts side by side, each in a column of `width` terminal cells."""
    for ours, theirs in zip_longest(wrapped(left, width), wrapped(right, width), fillvalue=""):
        yield (ours + " " * (width - n_cells(ours)) + BAR + theirs).rstrip()


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a text, at most `width` cells (2 or more) wide; tabs become spaces, control characters visible."""
    lines = []
    for line in text.expandtabs(4).split("\n"):
        cells, current = 0, ""
        for character in visible(line):
            if cells + n_cells(character) > width:
                lines.append(current)
                cells, current = 0, ""
            current += character
            cells += n_cells(character)
        lines.append(current)
    return lines


def n_cells(text: str) -> int:
    """Width of a text in terminal cells: East Asian wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.category(each) in {"Mn", "Me", "Cf"} else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )


def _rule(title: str, width: int) -> str:
    return f"──{title}".ljust(width + 1, "─") + "┼" + "─" * (width + 1)


def _scored(writer: Writer, name: str, text: str) -> str:
    try:
        return f"{writer.score(text).bits_per_byte:.2f} bits per byte by {name}"
    except UserError as error:  # an empty text, or a character that only the other's tokenizer knows
        return f"no score by {name}: {error}"
