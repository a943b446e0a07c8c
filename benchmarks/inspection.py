"""What looking at attention costs a training run -> a table: `python benchmarks/inspection.py --quick`.

The demo's run is trained for some steps with and without looks, in turn, in one process, everything else as by default:
the probe, its files, pictures and page, and an offline W&B run.
"""

from __future__ import annotations

import os
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import harness
import lightning as L
from harness import Block, Spread, Table

from minigpt.cli import parsing, program
from minigpt.training import run as training
from minigpt.training.callbacks import AttentionMaps

EVERY = 100
"""Steps between two looks whose cost is asked for."""
BOUND = 0.01
"""Of the training time, what they may take."""
WARM_UP = 10
"""Steps that are not timed."""


class Clock(L.Callback):
    """Takes the time at the start of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.times.append(time.perf_counter())


def looks(chosen: Namespace) -> Iterator[Block]:
    """Rounds of two runs, one of which looks every `between` steps."""
    n_rounds, n_steps, between = (2, 10, 5) if chosen.quick else (6, 100, 25)
    plain, looking, each = [], [], []
    for number in range(n_rounds):
        for enabled in (True, False) if number % 2 else (False, True):
            taken, own = trained(chosen.folder, n_steps, between if enabled else None)
            (looking if enabled else plain).append(taken)
            each += own
    n_looks = (WARM_UP + n_steps) // between - WARM_UP // between
    more = [(one - other) / n_looks for one, other in zip(looking, plain, strict=True)]
    step = statistics.median(plain) / n_steps
    rows = []
    for what, seconds in (("by its own clock", each), ("by the difference of the runs", more)):
        share = statistics.median(seconds) / (EVERY * step)
        rows.append([what, Spread(seconds), f"{share:.2%}", "pass" if share < BOUND else "above"])
    yield Table(
        f"one look: {n_rounds} pairs of runs of {n_steps} steps of {1e3 * step:.0f} ms, {n_looks} looks in one of each",
        ["cost of a look", "seconds", f"share of training, every {EVERY} steps", f"bound {BOUND:.0%}"],
        rows,
    )


def trained(folder: Path, n_steps: int, between: int | None) -> tuple[float, list[float]]:
    """Seconds of some steps of the demo's run, and what its own clock says of each look between them."""
    changes = [f"data.dir={folder}/data", f"runs_dir={folder}/runs", "trainer.max_time=null", "sampling.prompts=[]"]
    changes += [f"trainer.max_steps={WARM_UP + n_steps + 1}", "trainer.limit_val_batches=1"]
    changes += ["attention.enabled=false"] if between is None else [f"attention.every_n_steps={between}"]
    config, _ = parsing.parse_training(["--config=configs/demo.yaml", *(f"--{change}" for change in changes)])
    clock, make_callbacks, own = Clock(), training.make_callbacks, []

    def looked(self: AttentionMaps, trainer: L.Trainer, module: L.LightningModule, *, is_last: bool) -> None:
        began = time.perf_counter()
        look(self, trainer, module, is_last=is_last)
        if not is_last:
            own.append(time.perf_counter() - began)

    look = AttentionMaps._look
    with (
        mock.patch.object(training, "make_callbacks", lambda *given: [*make_callbacks(*given), clock]),
        mock.patch.object(AttentionMaps, "_look", looked),
    ):
        training.train(config)
    return clock.times[WARM_UP + n_steps] - clock.times[WARM_UP], own


def main(arguments: list[str]) -> None:
    """Measure."""
    os.environ["WANDB_MODE"] = "offline"
    harness.main(arguments, {"looks": looks}, name="inspection", title="Looking at attention: what it costs training")


if __name__ == "__main__":
    program.run(main)
