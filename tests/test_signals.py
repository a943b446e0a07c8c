"""Signals that ask a program to stop, and who gets them."""

import os
import signal
import subprocess
import threading
import time

import pytest

from minigpt.cli import program
from minigpt.signals import SIGNALS, deferred, exit_by_signal, handled_by, not_to_children


@pytest.mark.parametrize("number", SIGNALS)
def test_any_program_ends_with_the_code_of_the_signal_that_stopped_it(number: int) -> None:
    cleaned_up = []

    def main(arguments: list[str]) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned_up.append(True)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        program.run(main)
    assert stopped.value.code == 128 + number
    assert cleaned_up
    assert signal.getsignal(number) == before


def test_a_hangup_that_nohup_made_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled_by(exit_by_signal):
            assert signal.getsignal(signal.SIGTERM) is exit_by_signal
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_child_that_is_not_to_get_signals_outlives_them() -> None:
    with not_to_children(*SIGNALS):
        child = subprocess.Popen(["sleep", "60"])
    try:
        for number in SIGNALS:
            child.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.1)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


def test_a_signal_that_another_thread_takes_waits_for_the_end_of_what_must_not_be_cut_short() -> None:
    done = []
    with handled_by(exit_by_signal), pytest.raises(SystemExit) as ended:
        with deferred():
            thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
            thread.start()
            thread.join()
            time.sleep(0.01)  # where Python would run the handler
            done.append("started")
        done.append("after")
    assert (ended.value.code, done) == (143, ["started"])
