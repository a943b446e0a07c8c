"""Handlers for signals that ask a program to stop; by default it exits with code 128 + n."""

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
    """Within the context, the signals call `handler`; the previous handlers are restored at the end."""
    before = handle(handler, numbers)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier or signal.SIG_DFL)  # None: not set by Python


def handle(handler: Handler, numbers: Collection[int] = SIGNALS) -> dict[int, Any]:
    """Install a handler; returns the previous ones. Does nothing outside the main thread, as Python requires.

    An ignored SIGHUP stays ignored, for `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers if not _is_nohup(number)}


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Signals that arrive within the context are handled at its end, so that it is not cut short.

    Blocking them in this thread is not enough: another thread may take a signal, and Python then runs the handler in
    the main thread.
    """
    arrived: list[int] = []
    try:
        with handled_by(lambda number, frame: arrived.append(number)):
            yield
    finally:
        for number in arrived:
            signal.raise_signal(number)


def exit_by_signal(number: int, frame: FrameType | None) -> None:
    """A handler that exits with the code a shell reports for a signal; `finally` and `with` still run."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def not_to_children(*numbers: int) -> Iterator[None]:
    """Child processes started within the context have these signals blocked, unless they unblock them.

    W&B's process unblocks SIGINT and SIGTERM.
    """
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
