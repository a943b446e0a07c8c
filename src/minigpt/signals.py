"""Signals that ask a program to stop -> exit code 128 + n, or what the program makes of them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

# Windows has neither SIGUSR1 nor SIGHUP, which a closing terminal sends.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def handled_by(handler: Handler, numbers: Collection[int] = SIGNALS) -> Iterator[None]:
    """Signals to stop call a function meanwhile."""
    before = handle(handler, numbers)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier or signal.SIG_DFL)  # None: not Python's own


def handle(handler: Handler, numbers: Collection[int] = SIGNALS) -> dict[int, Any]:
    """Returns the handlers that were there before; nothing outside the main thread, where Python allows no handlers.

    A SIGHUP that is ignored stays so: that is what `nohup` asks for.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers if not _is_nohup(number)}


def exit_by_signal(number: int, frame: FrameType | None) -> None:
    """A handler that ends the program as a shell reports a signal, after what `finally` and `with` clean up."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def not_to_children(*numbers: int) -> Iterator[None]:
    """What is started meanwhile does not get these signals, unless it asks for them: W&B's does for SIGINT, SIGTERM."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_nohup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
