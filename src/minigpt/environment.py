"""Importing packages: the message for a missing one, and no garbage collection meanwhile.

Imports only the standard library and uses no new syntax, since it runs on any Python, without the packages.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent.parent
"""Root of the checkout, if minigpt is installed from one."""
INSTALL = "pip install -c constraints.txt -e ."


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Inside, no garbage is collected: torch's import makes a million objects, each collection goes through them all.

    That is a fifth of the time to import torch and Lightning.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def refuse_missing(error: ModuleNotFoundError) -> NoReturn:
    """Print which package is missing and the remedy, and exit with code 2."""
    print(f"error: {sys.executable} has no package {error.name!r}: {_advice(ROOT)}", file=sys.stderr)
    sys.exit(2)


def is_ours(error: ModuleNotFoundError) -> bool:
    """Whether minigpt itself imported the missing package, not a library or a user's class."""
    traceback, file = error.__traceback__, ""
    while traceback is not None:
        file, traceback = traceback.tb_frame.f_code.co_filename, traceback.tb_next
    return Path(__file__).resolve().parent in Path(file).resolve().parents


def _advice(root: Path) -> str:
    environment = root / ".venv"
    activate = environment / ("Scripts/activate" if os.name == "nt" else "bin/activate")
    if Path(sys.prefix).resolve() == environment.resolve():
        return f"complete the environment with `make demo`, or {INSTALL}"
    if not activate.exists():
        return f"install minigpt with `make demo`, or activate an environment and {INSTALL}"
    shown = activate.relative_to(Path.cwd()) if Path.cwd() in activate.parents else activate
    command = str(shown) if os.name == "nt" else f". {shlex.quote(str(shown))}"
    return f"activate the environment with `{command}`, and run this again"
