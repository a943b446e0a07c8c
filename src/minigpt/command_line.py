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
        program: a command of `minigpt`; train and sample have scripts of their own in a checkout.
        arguments: of any type; a Path is written so that it is not taken for an option.
    """
    return _line(_shown("python", Path(sys.executable)), *_program(program), *arguments)


def tool(name: str, *arguments: object) -> str:
    """A command line of a program that a library brings, as `wandb`; otherwise as `command`."""
    beside = Path(sys.executable).with_name(name)
    return _line(_shown(name, beside) if beside.exists() else name, *arguments)


def _line(*words: object) -> str:
    texts = [_word(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def _program(name: str) -> list[str]:
    script = f"{name}.py"
    with contextlib.suppress(OSError):  # not there: another working directory, or installed without the scripts
        if Path(script).samefile(CHECKOUT / script):
            return [script]
    return ["-m", "minigpt", name]


def _shown(name: str, path: Path) -> str:
    """The name of a program of this Python's where it is found by it, as in an activated environment; else its path."""
    found = shutil.which(name)
    if not sys.executable or (found and Path(found).absolute().parent == path.parent):
        return name
    with contextlib.suppress(OSError):  # the working directory was removed
        if path.is_relative_to(Path.cwd()) and path.parent != Path.cwd():
            return str(path.relative_to(Path.cwd()))
    return str(path)


def _word(argument: object) -> str:
    if isinstance(argument, Path) and (str(argument).startswith("-") or str(argument) == "auto"):
        return str(argument.absolute())  # else an option, or what `--resume auto` looks for
    return str(argument)
