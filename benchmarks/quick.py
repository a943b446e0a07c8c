"""The cases that matter of each benchmark, in five minutes: is a bound lost? `make bench-quick`.

A bound is lost where the median of the kept results keeps it, and now even the better quartile of the rounds misses it
by more than the kept quartiles are apart. Seconds and tokens/s are compared on the kept results' kind of machine only,
ratios everywhere. Bounds that were never kept are listed, and fail nothing.
"""

from __future__ import annotations

import importlib
import sys
import time

import harness
from harness import ABSOLUTE, Bound
from summary import Kept, kept_bounds

from minigpt.cli import program
from minigpt.errors import UserError

BUDGET = {
    "training": {"steps": 55, "startup": 30},
    "attention": {"cost": 25, "graphs": 20},
    "data": {"prepare": 35, "feeding": 15},
    "inspection": {"looks": 30, "causes": 5},
    "loss": {"small": 5},
    "generation": {"large": 35, "small": 30},
}
"""Benchmark -> part -> seconds on two cores, with warm caches; five minutes in all."""
COMPARED = {"training": ("against", "text"), "generation": ("against",)}
"""Options of this program that a benchmark is given."""


def lost(now: Bound, kept: Kept | None, machine: str) -> tuple[bool, str]:
    """Whether a bound is lost, and the line that says how it stands.

    Args:
        now: as measured now.
        kept: as measured before, and where.
        machine: this one, as `harness.machine` says it.
    """
    middle, unit = now.quartiles[1], now.unit and f" {now.unit}"
    line = f"{now.name}: {middle:.4g}{unit}, {now.limit}"
    if kept is None:
        return False, f"new      {line}"
    before, where = kept
    line += f"; kept {before.quartiles[1]:.4g}"
    if now.unit in ABSOLUTE and where.partition(";")[0] != machine.partition(";")[0]:
        return False, f"skipped  {line} on another kind of machine"
    low, median, high = before.quartiles
    if now.margin(median) < 0:
        return False, f"open     {line}, never kept"
    if max(map(now.margin, now.quartiles)) < low - high:
        return True, f"LOST     {line}, noise {high - low:.2g}"
    return False, f"{'kept' if now.is_met else 'noise':<8} {line}"


def main(arguments: list[str]) -> None:
    """Measure and compare; exit code 1 where a bound is lost or a part fails."""
    parser = harness.Parser(description="The cases that matter of each benchmark, in five minutes.")
    parser.add_argument("--against", type=harness.checkout, help="a checkout of nanoGPT, which takes part")
    parser.add_argument("--text", help="a text to train on by character, such as nanoGPT's input.txt")
    chosen = vars(parser.parse_args(arguments))
    began, machine, lines, slow, failed = time.perf_counter(), harness.machine("cpu"), [], [], 0
    for name, parts in BUDGET.items():
        given = [f"--{option}={chosen[option]}" for option in COMPARED.get(name, ()) if chosen[option]]
        module, kept = importlib.import_module(name), kept_bounds(f"{name}_cpu")
        left_out = dict(kept)
        for part, budget in parts.items():
            started = time.perf_counter()
            try:
                for bound in module.main([part, "--quick", *given]):
                    is_lost, line = lost(bound, kept.get(bound.name), machine)
                    failed += is_lost
                    lines.append(line)
                    left_out.pop(bound.name, None)
            except UserError as error:
                failed += 1
                lines.append(f"FAILED   {name} {part}: {error}")
            seconds = time.perf_counter() - started
            if seconds > budget:
                slow.append(f"{name} {part} {seconds:.0f} of {budget} s")
        lines += [f"left out {each}" for each in left_out]
    print("\n## Bounds\n", *lines, sep="\n")
    print(f"\n{time.perf_counter() - began:.0f} s; longer than planned: {', '.join(slow) or 'none'}")
    if failed:
        print(f"{failed} lost or failed: measure it alone on an idle machine, as in benchmarks/NAME.py PART --quick")
        sys.exit(1)


if __name__ == "__main__":
    program.run(main)
