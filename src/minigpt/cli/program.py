"""Runs a program: standard streams that survive a closed reader, signals, and mistakes as one line with exit code 2."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from minigpt.cli.streams import drop, outlive_reader
from minigpt.environment import is_ours, refuse_missing
from minigpt.errors import UserError, is_out_of_memory, memory_reason
from minigpt.files import reason, shown
from minigpt.signals import SIGNALS, exit_by_signal, handled_by


def run(main: Callable[[list[str]], None], *, outlives_reader: bool = True) -> NoReturn:
    """Call a program's main with the command line; exit with 0, 2 (one line said why) or 128 + the signal's number.

    Args:
        main: the program.
        outlives_reader: continue after the reader of standard output has closed it (`train.py | head`); False exits
            quietly with code 0, for programs whose result is their output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as in `sample.py <&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 (open to the end)
    for stream in (sys.stdout, sys.stderr):  # an ASCII-only pipe gets other characters as \\u00e9
        with contextlib.suppress(AttributeError, OSError):  # a replaced stream may lack reconfigure
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    outlive_reader("stderr")
    if outlives_reader:
        outlive_reader("stdout")
    try:
        with handled_by(exit_by_signal, set(SIGNALS) - {signal.SIGINT}):  # Ctrl-C is Python's KeyboardInterrupt
            main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        _flush()
        print(f"error: {shown(error, sys.stderr)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _flush()
        sys.exit(130)
    except ModuleNotFoundError as error:
        if not is_ours(error):
            raise
        refuse_missing(error)
    except BrokenPipeError:
        if outlives_reader:  # not standard output: another pipe, such as a worker's
            raise
        drop(sys.stdout.fileno())  # else Python's flush at exit fails again
        sys.exit(0)
    except Exception as error:
        if is_out_of_memory(error):
            _flush()
            print(
                f"error: too little memory ({shown(memory_reason(error), sys.stderr)}): take a smaller model, "
                "batch, context or text, or end other programs",
                file=sys.stderr,
            )
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            drop(sys.stdout.fileno())
            print(f"error: no space left to write output ({reason(error)}): free some", file=sys.stderr)
        else:
            raise
        sys.exit(2)
    sys.exit(0)


def _flush() -> None:
    """Flush standard output; drop it if its pipe is closed, since a failed flush at exit would change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        drop(sys.stdout.fileno())
