"""Standard output and error -> streams that do not fail once nobody reads them: what is written then is dropped."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


def drop(descriptor: int) -> None:
    """Send what is written to a descriptor nowhere from now on, also what other programs or libraries write there."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Outlived(io.FileIO):
    """A descriptor whose reader may go: the end of a pipe that `head` or Ctrl-C closed, a terminal that was closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.EIO}:  # a full disk is something that the user has to know
                raise
            drop(self.fileno())
            return memoryview(data).nbytes


def outlive_reader(name: str) -> None:
    """Replace sys.stdout or sys.stderr by a stream that does not fail where its reader has gone.

    At the lowest layer, so that it holds for `print`, progress bars, warnings and logging alike. A stream that another
    program has put there, as in a notebook, stays.
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
