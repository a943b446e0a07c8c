"""`minigpt COMMAND ...`: the one program of the package; `python -m minigpt` is the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser

from minigpt.cli.commands import COMMANDS
from minigpt.cli.program import run
from minigpt.cli.recipes import did_you_mean
from minigpt.errors import UserError


def main(*words: str) -> NoReturn:
    """Run the command that the command line names, and exit; `words` go before it: train.py gives "train"."""
    command = [*words, *sys.argv[1:]]
    run(lambda _: dispatch(command), outlives_reader=command[:1] != ["sample"])


def dispatch(arguments: Sequence[str]) -> None:
    """Hand the other arguments to the command, or print which commands there are.

    Raises:
        UserError: there is no such command, or it refuses its arguments.
    """
    name, *rest = arguments or ["--help"]
    if name in {"-h", "--help"}:
        lines = [f"  {each:<14}{command.what}" for each, command in COMMANDS.items()]
        print("\n".join(["usage: minigpt COMMAND ...; each has its own --help", *lines]))
        print("Completion: `minigpt --print_completion shtab-bash` (or -zsh, -tcsh, -fish) prints your shell's script.")
    elif name == "--print_completion":
        print(completion(*rest[:1]))
    elif name not in COMMANDS:
        raise UserError(f"minigpt {name}: write {' or '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}")
    else:
        COMMANDS[name](rest, f"minigpt {name}")


def completion(kind: str = "") -> str:
    """The shell's script that completes all commands, their options and choices, as jsonargparse writes it.

    Raises:
        UserError: a shell that is not known, or the package shtab is missing.
    """
    parser = ArgumentParser(prog="minigpt")
    subcommands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        subcommands.add_subcommand(name, command.parser(f"minigpt {name}"))
    try:
        return parser.get_completion_script(kind)
    except ValueError as error:
        raise UserError(
            f"--print_completion {kind}: {error} Write shtab-bash, shtab-zsh, shtab-tcsh or shtab-fish; it needs the "
            "package shtab (pip install shtab)"
        ) from None
