"""Texts -> a BPE learned in a process of its own, so that Ctrl-C and other signals are answered meanwhile.

The `tokenizers` library learns for seconds to minutes in one call into native code, which no signal handler interrupts
and nothing cancels but the end of its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterable

from minigpt.data.tokenizers.bpe import BPETokenizer
from minigpt.errors import UserError
from minigpt.signals import SIGNALS, not_to_children


def learn_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """`BPETokenizer.train` in a child process, which ends with this call, however that ends.

    Raises:
        UserError: the process was killed, as by the system when memory runs out.
    """
    # The same packages as here, also where the caller has changed sys.path; -P leaves out the current folder.
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-m", "minigpt.data.tokenizers.learning", str(vocab_size)]
    # A terminal or a scheduler signals this process too, and it ends the child.
    with not_to_children(*SIGNALS):
        learner = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    assert learner.stdin is not None
    assert learner.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it is dead, which its exit code says
            for text in texts:
                pickle.dump(text, learner.stdin)
            pickle.dump(None, learner.stdin)
            learner.stdin.flush()  # and left open: the child ends when it is closed
        answer = learner.stdout.read()
        if code := learner.wait():
            why = "no memory?" if code < 0 else "see above"
            raise UserError(f"data.tokenizer=bpe:{vocab_size}: the process that learns it ended with {code} ({why})")
        return BPETokenizer.from_dict(json.loads(answer))
    finally:
        learner.kill()
        learner.wait()
        for pipe in (learner.stdin, learner.stdout):
            with contextlib.suppress(OSError):  # what is still to be written to it
                pipe.close()


def _main() -> None:
    """The child: pickled texts and a None on stdin -> the tokenizer as JSON on stdout."""
    texts = iter(lambda: pickle.load(sys.stdin.buffer), None)
    tokenizer = BPETokenizer.train(_and_then_watch(texts), int(sys.argv[1]))
    sys.stdout.write(json.dumps(tokenizer.to_dict()))


def _and_then_watch(texts: Iterable[str]) -> Iterable[str]:
    """The texts; behind them, end this process when stdin ends, as the parent has then died."""
    try:
        yield from texts
    except (EOFError, pickle.UnpicklingError):  # none there, or half of one
        os._exit(1)

    def end_with_the_parent() -> None:
        os.read(sys.stdin.fileno(), 1)  # not through sys.stdin, whose lock this thread would hold at the program's end
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()


if __name__ == "__main__":
    _main()
