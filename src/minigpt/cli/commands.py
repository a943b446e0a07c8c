"""The commands of `minigpt`. Each parses its arguments before it imports anything heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minigpt.cli import parsing
from minigpt.config import Config
from minigpt.files import shown

if TYPE_CHECKING:  # loads numpy
    from minigpt.data.shards import PreparedData


def train(arguments: list[str], program: str = "train.py") -> None:
    """Parse the command line, then train.

    Args:
        arguments: of the command line.
        program: name to show in --help.

    Raises:
        UserError: invalid arguments, or a run that cannot start.
    """
    config, resume = parsing.parse_training(arguments, program)

    from minigpt.training.run import train

    train(config, resume)


def sample(arguments: list[str], program: str = "sample.py") -> None:
    """Parse the command line, load the model and generate in the chosen mode. Lightning is not imported.

    Args:
        arguments: of the command line.
        program: name to show in --help.

    Raises:
        UserError: invalid arguments, or a model that cannot be loaded.
    """
    config = parsing.parse_sampling(arguments, program)
    if config.prompts is not None:
        from minigpt.generation.modes.texts_file import run

        run(config, parsing.read_text(config.prompts, "--prompts"), parsing.change)
        return
    prompt = config.prompt if config.prompt_file is None else parsing.read_text(config.prompt_file, "--prompt_file")

    from minigpt.files import note, require_page, write_text
    from minigpt.generation.generator import Writer

    def load(path: str) -> Writer:
        return Writer.load(path, config.device, int8=config.int8, compile=config.compile)

    if config.interactive:
        from minigpt.generation.modes.interactive import converse

        converse(load(config.run), prompt, config, parsing.change)
    elif config.compare is not None:
        from minigpt.generation.modes.side_by_side import compare

        compare((load(config.run), load(config.compare)), prompt, config)
    elif config.explain is not None:
        from minigpt.generation.modes.terminal import show
        from minigpt.pages.explanation import explain
        from minigpt.runs.folder import name_of

        require_page(Path(config.explain))
        writer = load(config.run)
        prompt = writer.first_prompt if prompt is None else prompt
        written, page = explain(writer, prompt, config, title=name_of(config.run))
        write_text(Path(config.explain), page)  # before printing, which a closed pipe would end
        show(f"{prompt}{written.text}\n")
        note(f"{config.explain}: explains each of these {len(written.tokens)} tokens")
    elif config.checkpoints is not None:
        from minigpt.pages.film import film

        require_page(Path(config.checkpoints))
        write_text(Path(config.checkpoints), film(config.run, prompt, config, config.device))
        note(f"{config.checkpoints}: samples of each checkpoint of {config.run}")
    else:
        from minigpt.generation.modes.terminal import write

        write(load(config.run), prompt, config)


def inspect(arguments: list[str], program: str) -> None:
    """Parse, capture attention, write the page, print the tables."""
    config = parsing.parse_inspecting(arguments, program)
    text = config.text if config.file is None else parsing.read_text(config.file, "--file")

    from minigpt.pages.model_report import write_inspection

    print(shown(write_inspection(config, text)))


def report(arguments: list[str], program: str) -> None:
    """Parse, and write what a run left into one HTML file. Neither torch nor Lightning is imported."""
    config = parsing.parse_reporting(arguments, program)

    from minigpt.pages.report import report_run

    print(shown(report_run(config)))


def prepare(arguments: list[str], program: str) -> None:
    """Parse, tokenise the text, and print its size and folder."""
    _, data = _prepared(arguments, program, COMMANDS["prepare"].what)
    print(shown(f"train  {data.train}\nval    {data.val}\n-> {data.folder}"))


def peek(arguments: list[str], program: str) -> None:
    """Parse, tokenise the text, and print what is in it."""
    config, data = _prepared(arguments, program, COMMANDS["peek"].what)

    from minigpt.data.peek import peek as describe  # loads torch

    print(shown(describe(data, config)))


def _prepared(arguments: list[str], program: str, what: str) -> tuple[Config, PreparedData]:
    config = parsing.parse_data(arguments, program, what)

    from minigpt.data.open import open_data
    from minigpt.data.sources.stdin import keep_stdin

    data = open_data(keep_stdin(config.data))
    if config.data.streaming:
        print("the beginning of the stream:")
    return config, data


def compare(arguments: list[str], program: str) -> None:
    """Parse, train what is not trained yet, print the table."""
    config = parsing.parse_comparing(arguments, program)

    from minigpt.lab.compare import compare_recipes

    compare_recipes(config)


def doctor(arguments: list[str], program: str) -> None:
    """Parse, and print what this machine can do and what a run would need; exit code 2 where it would fail."""
    config, resume = parsing.parse_training(arguments, program, COMMANDS["doctor"].what)

    from minigpt.lab.doctor import diagnose

    diagnose(config, resume)


def prove_resume(arguments: list[str], program: str) -> None:
    """Parse, train, kill, resume, compare; exit code 1 where the resumed run differs."""
    config, asked = parsing.parse_proof(arguments, program)

    from minigpt.lab.prove_resume import prove_and_print

    prove_and_print(config, asked)


class Command(NamedTuple):
    """A command of `minigpt`."""

    run: Callable[[list[str], str], None]
    what: str
    """One line of help."""


COMMANDS = {
    "train": Command(train, "Train a GPT on your text."),
    "sample": Command(sample, "Write text with a trained model."),
    "inspect": Command(inspect, "Show what the attention of a trained model does."),
    "report": Command(report, "Make one HTML file of what a run left."),
    "prepare": Command(prepare, "Tokenise a text into a folder, once; training then starts at once."),
    "peek": Command(peek, "Show what is in a text: how much, which tokens, and what a batch looks like."),
    "compare": Command(compare, "Train recipes on the same text, seeds and budget, and make one table of them."),
    "doctor": Command(doctor, "Say what this machine can do, and what a run would need."),
    "prove-resume": Command(prove_resume, "Kill and resume a run, and compare it with one that was never stopped."),
}
