"""How many threads a run computes with, and that none of them keeps numbers next to zero."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_settings

from minigpt.config import Config
from minigpt.training import threads
from minigpt.training.run import train
from minigpt.training.threads import denormals_as_zero


def zeros_among_denormals() -> float:
    """The share, of numbers so many that all threads take part."""
    return float((torch.full((1000, 1000), 1e-39) == 0).double().mean())


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor always keeps them")
def test_no_thread_keeps_denormals_while_a_run_lasts_and_all_do_again_afterwards() -> None:
    before, n_threads = torch.get_num_threads(), 2
    torch.set_num_threads(n_threads)
    try:
        assert zeros_among_denormals() == 0.0  # and the threads are there
        with denormals_as_zero():
            assert zeros_among_denormals() == 1.0
            with denormals_as_zero():  # a run within a run
                assert zeros_among_denormals() == 1.0
            assert zeros_among_denormals() == 1.0
            assert torch.get_num_threads() == n_threads
        assert zeros_among_denormals() == 0.0
        with pytest.raises(ZeroDivisionError), denormals_as_zero():
            raise ZeroDivisionError
        assert zeros_among_denormals() == 0.0
    finally:
        torch.set_num_threads(before)


def test_a_resumed_run_takes_as_many_threads_as_before_and_says_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def brief(folder: Path, max_steps: int) -> Config:
        """Threads that wait for each other on a busy machine are slow."""
        off: dict[str, Any] = {"sampling": {"prompts": []}, "attention": {"enabled": False}}
        return small_settings(folder, trainer={"max_steps": max_steps, "limit_val_batches": 1}, **off)

    now = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(threads, "usable_cores", lambda: 3)
        torch.set_num_threads(2)
        folder = train(brief(tmp_path, 2))
        torch.set_num_threads(1)
        train(brief(tmp_path, 4), folder.path)
        assert torch.get_num_threads() == 2
        assert "threads where" not in capsys.readouterr().err
        monkeypatch.setattr(threads, "usable_cores", lambda: 1)
        train(brief(tmp_path, 6), folder.path)
        assert torch.get_num_threads() == 1
        assert "note: 1 threads, the run had 2" in capsys.readouterr().err
    finally:
        torch.set_num_threads(now)
