"""A run in a terminal: lines stand above the progress bar, and nothing that a model writes is obeyed."""

import contextlib
import dataclasses
import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from small_runs import small_settings

from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.training.run import train

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\u202e"


class Talking(Callback):
    """Says something in each of the ways there are, while the bar is there."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            print("printed in", end=" ")
            print("two parts")
            print("warned of", file=sys.stderr)  # as `warnings` does it, which pytest keeps for itself
            logging.getLogger("anybody").warning("logged once")
            logging.getLogger("anybody.handled").warning("logged twice")


class Failing(Callback):
    def on_validation_batch_end(self, *_: Any) -> None:
        raise UserError("this ends it")


class Terminal:
    """A pseudo-terminal, and the lines that its screen shows of what was written."""

    def __init__(self, columns: int) -> None:
        self.columns, self._written = columns, b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(self._master, 65536):
                self._written += chunk

    def close(self) -> str:
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        return self._written.decode()

    def lines(self) -> list[str]:
        """Carriage returns, line breaks and steps up, which is all that the bars use; long lines are not wrapped."""
        screen, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+|\x1b", self.close()):
            if part == "\x1b[A":
                row -= 1
            elif part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                screen += [""] * (row + 1 - len(screen))
            else:
                line = screen[row].ljust(column)
                screen[row] = line[:column] + part + line[column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in screen]


@contextlib.contextmanager
def in_terminal(columns: int = 80) -> Iterator[Terminal]:
    """Meanwhile stdout, stderr and two logging handlers are a terminal's (pytest would undo a fixture's)."""
    terminal = Terminal(columns)
    with contextlib.redirect_stdout(terminal.stream), contextlib.redirect_stderr(terminal.stream):
        loggers = [logging.getLogger("anybody"), logging.getLogger("anybody.handled")]
        for logger in loggers:
            logger.handlers, logger.propagate = [logging.StreamHandler()], False
        try:
            yield terminal
        finally:
            for logger in loggers:
                logger.handlers, logger.propagate = [], True


def talking(tmp_path: Path, *callbacks: str, **trainer: Any) -> Any:
    given = [{"class_path": f"{__name__}.{name}"} for name in callbacks]
    settings = {"enable_progress_bar": True, "max_steps": 4, "val_check_interval": 2, "callbacks": given}
    return small_settings(tmp_path, trainer=settings | trainer, attention={"enabled": False})


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_stand_above_the_bar_and_the_bar_fits(columns: int, tmp_path: Path) -> None:
    with in_terminal(columns) as terminal:
        train(talking(tmp_path, "Talking"))
        assert sys.stdout is terminal.stream
    lines = terminal.lines()
    for expected in (
        "printed in two parts",
        "warned of",
        "logged once",
        "logged twice",
        "──── step 2, prompt '1 plus'",
    ):
        assert expected in lines
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["2/4", "4/4"]
    (bar,) = [line for line in lines if "%|" in line]
    assert re.fullmatch(r"100%\|█+\| 4/4 \[.*, train/loss=\d.\d{3}, val/loss=\d.\d{3}, tokens/s=[\d,]+\]", bar)
    assert len(bar) <= columns
    assert lines[lines.index(bar) + 1] == ""


def test_the_output_of_a_cell_has_one_bar_below_whole_lines(tmp_path: Path) -> None:
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    with contextlib.redirect_stdout(cell):
        train(talking(tmp_path))
    assert "\x1b" not in cell.getvalue()  # moves of a terminal's cursor
    lines = [line.rpartition("\r")[2] for line in cell.getvalue().split("\n")]  # as a notebook shows them
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["2/4", "4/4"]
    assert "──── step 2, prompt '1 plus'" in lines
    assert len([line for line in lines if "%|" in line]) == 1
    assert not [line for line in lines if "Validation" in line]


def test_the_bar_of_a_resumed_run_has_its_length(tmp_path: Path) -> None:
    config = talking(tmp_path)
    run = train(config)
    longer = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_steps=6))
    with in_terminal() as terminal:
        train(longer, run.path)
    (bar,) = [line for line in terminal.lines() if "|" in line and "[" in line]
    assert re.match(r"100%\|█+\| 6/6 \[", bar)


def test_the_line_of_an_error_in_the_middle_of_a_validation_begins_below_the_bars(tmp_path: Path) -> None:
    with in_terminal() as terminal:
        with pytest.raises(UserError, match="this ends it"):
            train(talking(tmp_path, "Failing"))
        print("error: this ends it")
    assert "error: this ends it" in terminal.lines()


def test_what_a_model_writes_is_shown_harmlessly_and_kept_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Writer.generate_many

    def generate_many(self: Writer, *given: Any, **more: Any) -> Any:
        return [dataclasses.replace(sample, text=HOSTILE) for sample in real(self, *given, **more)]

    monkeypatch.setattr(Writer, "generate_many", generate_many)
    with in_terminal() as terminal:
        run = train(talking(tmp_path, enable_progress_bar=False))
    written = terminal.close()
    assert r"1 plus\x1b[2J\x1b]0;owned\x07\r\u202e" in written
    assert "\x1b" not in written
    assert HOSTILE in run.samples(4).read_bytes().decode()


def test_without_a_bar_a_terminal_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.training.callbacks.PLAIN_LINE_SECONDS", 0)
    with in_terminal() as terminal:
        train(talking(tmp_path, enable_progress_bar=False))
    lines = terminal.lines()
    assert not [line for line in lines if "%|" in line]
    assert [line for line in lines if line.startswith("step 3/4   train/loss") and line.endswith("tokens/s")]


def test_a_bar_is_for_a_terminal_on_stdout_alone(tmp_path: Path) -> None:
    """In `train.py | tee log` the log gets lines and no bar, though stderr is a terminal still."""
    log = io.StringIO()
    with in_terminal() as terminal, contextlib.redirect_stdout(log):
        train(talking(tmp_path))
    assert "step 4/4" in log.getvalue()
    assert "%|" not in log.getvalue() + terminal.close()
