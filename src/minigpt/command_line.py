"""A program of minigpt's and its arguments -> the command line to print, which works as it stands where it is typed."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
"""Where train.py and sample.py lie, if minigpt is used from its repository."""


def command(program: str, *arguments: object) -> str:
    """A command line for a shell in the working directory.

    Args:
        program: `train` or `sample`, or the dotted name of a module that is run with `python -m`.
        arguments: of any type; a Path is written so that it is not taken for an option.
    """
    words = [_python(), *_program(program), *map(_word, arguments)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _program(name: str) -> list[str]:
    if "." in name:
        return ["-m", name]
    script = f"{name}.py"
    with contextlib.suppress(OSError):  # not there: another working directory, or installed without the scripts
        if Path(script).samefile(CHECKOUT / script):
            return [script]
    return ["-m", "minigpt", name]


def _python() -> str:
    """`python` where that is this Python, as in an activated environment; else where this one lies."""
    found, running = shutil.which("python"), Path(sys.executable)
    if not sys.executable or (found and Path(found).absolute().parent == running.parent):
        return "python"
    with contextlib.suppress(OSError):  # the working directory was removed
        if running.is_relative_to(Path.cwd()) and running.parent != Path.cwd():
            return str(running.relative_to(Path.cwd()))
    return str(running)


def _word(argument: object) -> str:
    if isinstance(argument, Path) and (str(argument).startswith("-") or str(argument) == "auto"):
        return str(argument.absolute())  # else an option, or what `--resume auto` looks for
    return str(argument)
