"""BPE training in a child process, so that Ctrl-C and other signals are handled meanwhile.

The `tokenizers` library learns for seconds to minutes in one call into native code. No signal handler interrupts it;
only the end of its process does.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import subprocess
import sys
import threading
from collections.abc import Iterable

from minigpt.data.tokenizers.bpe import BPETokenizer
from minigpt.errors import UserError
from minigpt.signals import SIGNALS, deferred, not_to_children


def learn_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """`BPETokenizer.train` in a child process, which is always killed when this call ends.

    Raises:
        UserError: the process failed or was killed, for example by the system when memory runs out.
    """
    # The same packages as here, even if the caller changed sys.path; -P excludes the current folder.
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-m", "minigpt.data.tokenizers.learning", str(vocab_size)]
    with contextlib.ExitStack() as cleanup:
        # This process gets the signals of a terminal or scheduler too, and kills the child.
        with deferred(), not_to_children(*SIGNALS):
            learner = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": paths},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            cleanup.callback(_kill, learner)
        assert learner.stdin is not None
        assert learner.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the child died: its exit code is checked below
            for text in texts:
                pickle.dump(text, learner.stdin)
            pickle.dump(None, learner.stdin)
            learner.stdin.flush()  # left open: the child exits when it is closed
        answer = _read_to_end(learner.stdout.fileno())
        if code := learner.wait():
            why = "no memory?" if code < 0 else "see above"
            raise UserError(f"data.tokenizer=bpe:{vocab_size}: its training process exited with {code} ({why})")
        return BPETokenizer.from_dict(json.loads(answer))


def _read_to_end(pipe: int) -> bytes:
    """What a pipe holds, waking up twice a second.

    A signal that another thread took while this one had it blocked does not interrupt a read of this one, and its
    handler waits until this thread runs again.
    """
    parts = []
    while True:
        if os.name != "nt" and not select.select([pipe], [], [], 0.5)[0]:
            continue
        parts.append(os.read(pipe, 1 << 20))
        if not parts[-1]:
            return b"".join(parts)


def _kill(learner: subprocess.Popen[bytes]) -> None:
    learner.kill()
    learner.wait()
    for pipe in (learner.stdin, learner.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # flushing may fail: the child is dead
                pipe.close()


def _main() -> None:
    """The child: pickled texts and a None on stdin -> the tokenizer as JSON on stdout."""
    texts = iter(lambda: pickle.load(sys.stdin.buffer), None)
    tokenizer = BPETokenizer.train(_and_then_watch(texts), int(sys.argv[1]))
    sys.stdout.write(json.dumps(tokenizer.to_dict()))


def _and_then_watch(texts: Iterable[str]) -> Iterable[str]:
    """The texts; then a thread that exits when stdin closes, which means that the parent died."""
    try:
        yield from texts
    except (EOFError, pickle.UnpicklingError):  # stdin ended early: the parent died
        os._exit(1)

    def end_with_the_parent() -> None:
        os.read(sys.stdin.fileno(), 1)  # not through sys.stdin: this thread would hold its lock at exit
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()


if __name__ == "__main__":
    _main()
