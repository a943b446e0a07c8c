"""`minigpt COMMAND ...`: the one program of the package; `python -m minigpt` is the same."""

from __future__ import annotations

import sys
from typing import NoReturn

from minigpt.cli import parsing
from minigpt.cli.commands import COMMANDS


def main() -> NoReturn:
    """Run the command that the command line names, and exit."""
    parsing.run(dispatch, outlives_reader=sys.argv[1:2] != ["sample"])


def dispatch(arguments: list[str]) -> None:
    """Hand the other arguments to the command, or print which commands there are.

    Raises:
        UserError: there is no such command, or it refuses its arguments.
    """
    name, *rest = arguments or ["--help"]
    if name in {"-h", "--help"}:
        lines = [f"  {each:<14}{command.what}" for each, command in COMMANDS.items()]
        print("\n".join(["usage: minigpt COMMAND ...; each has its own --help", *lines]))
        return
    parsing.require_command(name, COMMANDS, "minigpt")
    COMMANDS[name].run(rest, f"minigpt {name}")
