"""Makes standard output and error survive a closed pipe or terminal: later output is dropped."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


def drop(descriptor: int) -> None:
    """Redirect a file descriptor to the null device, also for libraries and child processes that write to it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Outlived(io.FileIO):
    """A file descriptor that tolerates a closed reader: a pipe into `head`, or a terminal that was closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.EIO}:  # others, such as a full disk, must reach the user
                raise
            drop(self.fileno())
            return memoryview(data).nbytes


def outlive_reader(name: str) -> None:
    """Replace sys.stdout or sys.stderr by a stream that tolerates a closed reader.

    It works at the lowest layer, so that it covers `print`, progress bars, warnings and logging. A stream that was
    already replaced, as in a notebook, is left alone.
    """
    stream = getattr(sys, name)
    if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
        return
    stream.flush()
    raw = _Outlived(stream.fileno(), "wb", closefd=False)
    replaced = io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    setattr(sys, name, replaced)
