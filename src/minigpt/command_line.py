"""Formats command lines for messages, so that users can paste them into their shell."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
"""Root of the repository, with train.py and sample.py, if minigpt is used from one."""


def command(program: str, *arguments: object) -> str:
    """A command line for a shell in the working directory, as `minigpt ...` if this process was started so.

    Args:
        program: a command of `minigpt`; train and sample have scripts of their own in a checkout.
        arguments: of any type; a Path is written so that it is not taken for an option.
    """
    if Path(sys.argv[0]).stem == "minigpt":
        return tool("minigpt", program, *arguments)
    return _line(_shown("python", Path(sys.executable)), *_program(program), *arguments)


def tool(name: str, *arguments: object) -> str:
    """As `command`, for a program that a library installs, such as `wandb`."""
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
    """A program of this Python by its name if PATH finds the same one (an activated environment), else by its path."""
    found = shutil.which(name)
    if not sys.executable or (found and Path(found).absolute().parent == path.parent):
        return name
    with contextlib.suppress(OSError):  # the working directory was removed
        if path.is_relative_to(Path.cwd()) and path.parent != Path.cwd():
            return str(path.relative_to(Path.cwd()))
    return str(path)


def _word(argument: object) -> str:
    if isinstance(argument, Path) and (str(argument).startswith("-") or str(argument) == "auto"):
        return str(argument.absolute())  # else it would parse as an option, or as `--resume auto`
    return str(argument)
