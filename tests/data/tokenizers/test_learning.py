"""A BPE that is learned in a process of its own: the same one, and no process stays behind."""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt.data.tokenizers import learning
from minigpt.data.tokenizers.bpe import BPETokenizer
from minigpt.data.tokenizers.learning import learn_bpe
from minigpt.errors import UserError
from minigpt.signals import SIGNALS, exit_by_signal, handled_by

TEXTS = ["a text of some words, some of them twice\n" * 3, "lone \ud800 surrogates", "\r\n\0 東京"]


def stand_in(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a script learn in place of Python."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(learning.sys, "executable", str(path))


def test_another_process_learns_what_this_one_would() -> None:
    assert learn_bpe(iter(TEXTS), 280).to_dict() == BPETokenizer.train(TEXTS, 280).to_dict()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_bpe_is_learned_ends_both_processes(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "learner", monkeypatch, f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; cat")

    def signal_once_it_learns() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=signal_once_it_learns)
    with handled_by(exit_by_signal), pytest.raises(SystemExit) as stopped:
        thread.start()
        learn_bpe(TEXTS, 280)
    thread.join()
    assert stopped.value.code == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_text_that_cannot_be_read_ends_the_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "learner", monkeypatch, "exec cat")

    def texts() -> Iterator[str]:
        yield "a"
        raise UserError("not UTF-8")

    with pytest.raises(UserError, match="not UTF-8"):
        learn_bpe(texts(), 280)


@pytest.mark.parametrize(("script", "ends_with"), [("kill -9 $$", "-9 .no memory"), ("exit 3", "3 .see above")])
def test_a_learner_that_dies_is_one_line(
    script: str, ends_with: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "learner", monkeypatch, script)
    with pytest.raises(UserError, match=f"data.tokenizer=bpe:280: its training process exited with {ends_with}"):
        learn_bpe(["text " * 10_000] * 100, 280)


@pytest.mark.parametrize("sent", [b"", pickle.dumps("a text"), pickle.dumps("a text")[:-3]])
def test_a_learner_whose_parent_dies_ends_without_a_word(sent: bytes) -> None:
    learner = [sys.executable, "-m", "minigpt.data.tokenizers.learning", "280"]
    result = subprocess.run(learner, input=sent, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (1, b"", b"")
