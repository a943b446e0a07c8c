"""The script of what only a GPU shows: each part stands alone, and all of it runs on a CPU.

A file of its own: it imports torch, and the contenders of test_benchmarks.py import their file.
"""

import subprocess
import sys
from pathlib import Path

import gpu
import harness
import pytest
import torch

from minigpt.errors import UserError

PARTS_OF_GPU = """
import sys, time
if sys.argv[1] == "kernels":
    sys.exit("the kernel broke")
if sys.argv[1] == "decode":
    time.sleep(60)
print(f"measured {sys.argv[1]}")
"""
"""In place of gpu.py where a part is measured: one fails, one hangs."""


def test_a_part_on_the_gpu_that_fails_or_hangs_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parts.py").write_text(PARTS_OF_GPU)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "parts.py"))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "machine", lambda device: "here")
    monkeypatch.setattr(gpu, "SECONDS", dict.fromkeys(gpu.PARTS, 60) | {"decode": 0.5})
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "WANDB_MODE"):
        monkeypatch.setenv(variable, "before")
    with pytest.raises(UserError, match="kernels, decode: failed"):
        gpu.main(["--device", "cpu", "--write"])
    out = capfd.readouterr().out
    assert "kernels failed: exit code 1: the kernel broke" in out
    assert "decode failed: it took more than its 0 seconds" in out
    assert all(f"measured {part}" in out for part in gpu.PARTS if part not in {"kernels", "decode"})
    assert "Failed: exit code 1: the kernel broke." in (tmp_path / "gpu_cpu.md").read_text()


def test_the_parts_on_the_gpu_fit_into_ten_minutes() -> None:
    assert list(gpu.SECONDS) == list(gpu.PARTS)
    assert sum(gpu.SECONDS.values()) <= 600
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no NVIDIA GPU here; --device cpu --quick"):
            gpu.main([])


@pytest.mark.slow  # two minutes
def test_all_that_is_measured_on_a_gpu_runs_on_a_cpu() -> None:
    command = [sys.executable, gpu.__file__, "--device", "cpu", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    assert all(f"## {part}\n" in result.stdout for part in gpu.PARTS)
