"""Standard output and error whose reader goes: what is written then is dropped, and nothing fails."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt.cli.streams import outlive_reader


def a_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    return reader, writer


@pytest.mark.parametrize("ends", [a_pipe, os.openpty], ids=["a pipe's reader", "a terminal"])
@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_whose_reader_has_gone_is_dropped(
    ends: Callable[[], tuple[int, int]], unbuffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = ends()
    raw = io.FileIO(writer, "wb")
    stream = io.TextIOWrapper(raw if unbuffered else io.BufferedWriter(raw), "utf-8", write_through=unbuffered)
    for name in ("stdout", "__stdout__"):
        monkeypatch.setattr(sys, name, stream)
    outlive_reader("stdout")
    print("é, then", flush=True)
    assert os.read(reader, 100).split() == ["é,".encode(), b"then"]
    os.close(reader)
    for _ in range(3):
        print("nobody reads this", flush=True)
    assert os.write(writer, b"nor what a library writes there") == 31
    sys.stdout.flush()


def test_a_full_disk_is_no_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, full)
        outlive_reader("stdout")
        with pytest.raises(OSError, match="No space left"):
            print("this has no room", flush=True)
        monkeypatch.undo()


def test_a_stream_that_another_program_has_put_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    outlive_reader("stdout")
    assert sys.stdout is stream
