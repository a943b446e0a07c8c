"""Save step x death step x accumulation x validation interval x workers x compile -> is each run, resumed, the same?

`make resume-grid`. Runs of 12 steps in this process, which die of an exception in a micro-batch, where nothing is saved
on the way out; it needs the tests' folders on PYTHONPATH, for their small configs.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import RESULTS, Parser, Table, machine

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny models lose time with more

from small_runs import small_settings, train_and_die

from minigpt.cli import program
from minigpt.errors import UserError
from minigpt.files import write_text
from minigpt.runs.folder import RunFolder

STEPS = 12


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to save, to die and to go on."""

    save_every: int
    """Steps."""
    death: int
    """Steps that are done when the process dies, in the next one's last micro-batch."""
    accumulate: int
    validate_every: int
    """Steps; 20 is at the end alone."""
    workers: int
    compile: bool
    """With two threads, and a model that is large enough for both to work."""

    @property
    def straight(self) -> Cell:
        """The same for all cells whose runs are one as long as nobody dies."""
        return dataclasses.replace(self, death=0)


PLAIN = [Cell(*axes, False) for axes in itertools.product((2, 3, 5), (5, 6, 7, 8, 11), (1, 2), (4, 5, 20), (0, 1))]
COMPILED = [Cell(*axes, 0, True) for axes in itertools.product((3, 5), (7, 11), (1, 2), (4, 5, 20))]
THIN = [*PLAIN[::60], COMPILED[5]]
"""A few of them, to see that it works."""


def main(arguments: list[str]) -> None:
    """Train, die, resume, compare; exit code 1 where a run is another one."""
    parser = Parser(description="Resume from many places, and compare everything.", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a few cells")
    parser.add_argument("--write", action="store_true", help="also into benchmarks/results/resume_grid.md")
    chosen = parser.parse_args(arguments)
    cells, began = THIN if chosen.quick else [*PLAIN, *COMPILED], time.monotonic()
    rows: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures = list[str]()
    with tempfile.TemporaryDirectory(prefix="minigpt-grid-") as folder:
        for number, (cell, found, n_validations) in enumerate(tried(cells, Path(folder)), 1):
            failures += [f"{cell}: {line}" for line in found]
            key = ("yes" if cell.compile else "no", str(cell.workers), str(cell.accumulate))
            rows[key] += collections.Counter(cells=1, exact=not found, validations=n_validations)
            if number % 10 == 0 or found:
                print(f"{number}/{len(cells)} cells, {len(failures)} differences", flush=True)
    names = ("cells", "exact", "validations")
    lines = [[*key, *(str(counts[name]) for name in names)] for key, counts in rows.items()]
    lines.append(["all", "", "", *(str(sum(counts[name] for counts in rows.values())) for name in names)])
    header = ["compiled", "workers", "accumulation", "cells", "bitwise equal", "validation points, none lost"]
    axes = {field.name: sorted({getattr(cell, field.name) for cell in cells}) for field in dataclasses.fields(Cell)}
    text = (
        f"# Resume grid: runs of {STEPS} steps that die and are resumed\n\n{machine('cpu')}; "
        f"{(time.monotonic() - began) / 60:.0f} minutes\n\nSave every {axes['save_every']} steps and at each "
        f"validation, every {axes['validate_every']} steps; dead in step {axes['death']}, with accumulation within "
        "it;\ncompiled ones (torch.compile on the CPU, two threads) with fewer of each. Every file is compared with "
        f"those of the run that was never stopped.\n\n{Table('cells', header, lines)}\n\n"
        + ("\n".join(failures) or f"{len(cells)} of {len(cells)} cells are bitwise equal.")
    )
    print(f"\n{text}")
    if chosen.write:
        write_text(RESULTS / "resume_grid.md", text + "\n")
    if failures:
        sys.exit(1)


def tried(cells: list[Cell], folder: Path) -> Iterator[tuple[Cell, list[str], int]]:
    """Each cell with its differences and the number of its validation points, those at equal settings one by one."""
    from minigpt.lab.differences import differences

    for straight, group in itertools.groupby(sorted(cells, key=order), key=lambda cell: cell.straight):
        reference, run = (RunFolder(folder / "runs" / name) for name in ("small", "small-2"))
        train_cell(straight, folder)
        for cell in group:
            train_cell(cell, folder, death=(cell.death + 1) * cell.accumulate - 1)
            train_cell(cell, folder, resume=run.path)
            with reference.metrics.open(newline="") as file:
                n_validations = sum(bool(row["val/loss"]) for row in csv.DictReader(file))
            yield cell, differences(reference, run), n_validations
            shutil.rmtree(run.path)
        shutil.rmtree(reference.path)


def train_cell(cell: Cell, folder: Path, death: int | None = None, resume: Path | None = None) -> None:
    """A run of the cell's kind: a new one, one that dies in a micro-batch, or one that goes on.

    Raises:
        UserError: it was to be compiled, and was not.
    """
    import torch

    from minigpt.training.run import train

    config = config_of(cell, folder)
    torch.set_num_threads(2 if cell.compile else 1)
    torch._dynamo.reset()  # or the ninth run's model would not be compiled any more
    torch._dynamo.utils.counters.clear()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile failed")
        if death is not None:
            train_and_die(config, death)
        else:
            train(config, resume)
    if cell.compile and not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
        raise UserError(f"{cell}: torch.compile did not compile")


def order(cell: Cell) -> tuple[Any, ...]:
    return cell.compile, *dataclasses.astuple(cell.straight), cell.death


def config_of(cell: Cell, folder: Path) -> Any:
    """Of a run of the cell's kind."""
    return small_settings(
        folder,
        model={"dropout": 0.1} | ({"context_length": 64, "n_embd": 64} if cell.compile else {}),
        data={"num_workers": cell.workers, "batch_size": 12 if cell.compile else 4},
        trainer={
            "max_steps": STEPS,
            "accumulate_grad_batches": cell.accumulate,
            "val_check_interval": cell.validate_every * cell.accumulate,
            "log_every_n_steps": 2,  # so that a logged loss may span a checkpoint
        },
        attention={"enabled": False},
        checkpoint_every_n_steps=cell.save_every,
        compile=cell.compile,
    )


if __name__ == "__main__":
    program.run(main)
