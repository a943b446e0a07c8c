"""Things to compare -> medians, quartiles and ratios, as Markdown and JSON: what all benchmarks share.

A time is only compared with times of the same run: what is compared takes turns, round by round, and a ratio is the
median of the rounds' ratios, so that a machine that slows down slows all. In a contest, each contender lives in a
process of its own, which sleeps while another is measured: threads of one library that still wait for work would slow
down the next one's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from minigpt.errors import UserError
from minigpt.files import write_text

RESULTS = Path(__file__).parent / "results"


class Spread(str):
    """Median (lower quartile to upper quartile) as text; the JSON keeps each value."""

    values: list[float]

    def __new__(cls, values: Iterable[float]) -> Spread:
        """Args: at least two, one a round."""
        values = list(values)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        digits = 3 if abs(middle) < 10 else 1 if abs(middle) < 1000 else 0
        text = super().__new__(cls, f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        text.values = values
        return text

    def plain(self) -> dict[str, object]:
        """What JSON can hold."""
        return {"text": str(self), "values": [float(f"{value:.6g}") for value in self.values]}


ABSOLUTE = ("s", "tokens/s")
"""Units of figures that are only compared on one kind of machine."""


class Bound(str):
    """A figure's bound as a cell: "pass", "missed", or "within the noise" where the better quartile alone keeps it.

    The JSON keeps all of it: `summary.py` lists it, and `quick.py` compares it with what is measured later.
    """

    name: str
    values: list[float]
    at_least: float | None
    at_most: float | None
    unit: str
    limited_by: str

    def __new__(
        cls,
        name: str,
        values: Iterable[float] | float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        unit: str = "",
        limited_by: str = "",
    ) -> Bound:
        """Args:
        name: says alone what is measured; no other bound of the benchmark has it.
        values: one a round, or the only one.
        at_least, at_most: the bound; one of them.
        unit: of the values; nothing for a ratio. Those of ABSOLUTE depend on the machine.
        limited_by: what stands in the way of more, in words with a measured share.
        """
        values = [values] if isinstance(values, int | float) else list(values)
        given = {"name": name, "values": values, "at_least": at_least, "at_most": at_most, "unit": unit}
        judged = [_margin(value, at_least, at_most) for value in _quartiles(values)]
        verdict = "pass" if judged[1] >= 0 else "within the noise" if max(judged) >= 0 else "missed"
        bound = super().__new__(cls, f"{verdict}, {_limit(at_least, at_most, unit)}")
        vars(bound).update(given, limited_by=limited_by)
        return bound

    @property
    def limit(self) -> str:
        """As in "at least 1.1"."""
        return _limit(self.at_least, self.at_most, self.unit)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower, median, upper."""
        return _quartiles(self.values)

    @property
    def is_met(self) -> bool:
        """By the median."""
        return self.margin(self.quartiles[1]) >= 0

    def margin(self, value: float) -> float:
        """By how much a value is better than the bound; negative: worse."""
        return _margin(value, self.at_least, self.at_most)

    def plain(self) -> dict[str, object]:
        """What JSON can hold; `Bound(**...)` of it, without the text, is the bound again."""
        known = {name: value for name, value in vars(self).items() if value not in (None, "")}
        return {"text": str(self)} | known | {"values": [float(f"{value:.6g}") for value in self.values]}


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def _margin(value: float, at_least: float | None, at_most: float | None) -> float:
    if (at_least is None) == (at_most is None):
        raise ValueError("a bound is either at_least or at_most")
    return value - at_least if at_least is not None else (at_most or 0.0) - value


def _limit(at_least: float | None, at_most: float | None, unit: str) -> str:
    words, limit = ("at least", at_least) if at_least is not None else ("at most", at_most)
    return f"{words} {limit:.4g} {unit}".rstrip()


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts, some of them a Spread or a Bound."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    runs: object = None
    """What only the JSON keeps."""

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        cells = ([cell.replace("|", r"\|") for cell in line] for line in lines)
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in cells)])

    def plain(self) -> dict[str, object]:
        """What JSON can hold."""
        rows = [[cell.plain() if isinstance(cell, Spread | Bound) else cell for cell in row] for row in self.rows]
        return {"title": self.title, "header": self.header, "rows": rows} | ({"runs": self.runs} if self.runs else {})


Block = Table | str
Part = Callable[[argparse.Namespace], Iterator[Block]]
"""Measures, by what was asked for on the command line; `folder` there is a temporary one, of its own."""


def ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round."""
    return [mine / theirs for mine, theirs in zip(times, others, strict=True)]


class Turn:
    """Called by a contender before each piece of its work; there it sleeps while others are measured."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.pieces, self.began = pipe, 0, 0.0

    def __call__(self) -> None:
        if self.pieces == 0:
            if self.began:
                self.pipe.send(time.perf_counter() - self.began)
            try:
                self.pieces = self.pipe.recv()
            except (EOFError, OSError):  # all is measured
                raise SystemExit(0) from None
            self.began = time.perf_counter()
        self.pieces -= 1


Contender = Callable[[Turn], object]
"""Works for ever. It goes to another process by its name, so it is a function of a module, or a partial of one."""


def serve(contender: Contender, pipe: Connection) -> None:
    """In its process; what it prints is not wanted, but its errors are."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        contender(Turn(pipe))


def turns(
    contenders: Mapping[str, Contender], n_rounds: int, n_pieces: int = 1
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Let all do so many pieces of work in each round.

    Returns:
        Seconds of each contender in the first round, in which it warms up, and in each of the n_rounds after it.

    Raises:
        UserError: a contender ended; it has said why.
    """
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for name, contender in contenders.items():
            pipes[name], theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(contender, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
        for number in tqdm(range(n_rounds + 1), desc="rounds", leave=False, disable=None):
            for name in list(contenders)[:: -1 if number % 2 else 1]:
                try:
                    pipes[name].send(n_pieces)
                    taken[name].append(pipes[name].recv())
                except (EOFError, OSError):
                    raise UserError(f"{name}: ended before it was measured; its message is above") from None
                time.sleep(0.3)  # idle threads of its libraries go to sleep
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(timeout=5)
            process.kill()
            process.join()
    return {name: each[0] for name, each in taken.items()}, {name: each[1:] for name, each in taken.items()}


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def others_seconds() -> float:
    """CPU time of all other programs, and what the machine beneath this one took away; NaN where it is not told."""
    if not Path("/proc/stat").exists():
        return math.nan
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - cpu_seconds()


def machine(device: str) -> str:
    """One line: where, with what, when and of which commit the numbers are."""
    import torch  # only here, so that a contender without it starts at once

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    where = f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}; {where}"
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = " with changes" if git("status", "--porcelain", ":/benchmarks/*.py", ":/src", ":/configs") else ""
    return f"{where}; torch {torch.__version__}; {datetime.date.today()}; commit {commit}{changed}"


def git(*arguments: str) -> str:
    """What git says of this folder; nothing where it is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write(path: Path, title: str, parts: Iterable[str], part: str, blocks: Sequence[Block]) -> None:
    """Put one part into the Markdown file and the JSON file beside it, in the order of all parts; others stay."""
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    sections = {section.partition("\n")[0]: section.partition("\n")[2].strip() for section in old}
    sections[part] = "\n\n".join(map(str, blocks))
    body = "".join(f"\n## {name}\n\n{sections[name]}\n" for name in parts if name in sections)
    write_text(path, f"# {title}\n{body}")
    values = path.with_suffix(".json")
    kept: dict[str, Any] = json.loads(values.read_text(encoding="utf-8")) if values.exists() else {}
    kept[part] = [block.plain() if isinstance(block, Table) else block for block in blocks]
    lines = (f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in parts if name in kept)
    write_text(values, "{\n" + ",\n".join(lines) + "\n}\n")


class Parser(argparse.ArgumentParser):
    """With errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def checkout(name: str) -> Path:
    """For argparse: a folder with nanoGPT in it."""
    if not (Path(name) / "model.py").is_file():
        raise argparse.ArgumentTypeError(f"{name} holds no model.py; name a checkout of nanoGPT")
    return Path(name).absolute()


def main(
    arguments: list[str],
    parts: Mapping[str, Part],
    *,
    name: str,
    title: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    needs: Mapping[str, Sequence[str]] | None = None,
) -> list[Bound]:
    """Measure the parts asked for, print their tables, and keep them if asked to.

    Args:
        arguments: of the command line.
        parts: in the order in which they are measured and stand in the results.
        name: of the results, before the device.
        title: of the results, before the device.
        options: more of the command line, as argparse takes them.
        needs: the options without which a part cannot be measured.

    Returns:
        All bounds that were measured.

    Raises:
        UserError: the command line is wrong, or a part that is named lacks an option.
    """
    parser = Parser(description=f"{title}, as Markdown tables.", allow_abbrev=False)
    parser.add_argument("part", nargs="?", choices=list(parts), help="only this part (default: all)")
    parser.add_argument("--quick", action="store_true", help="small and few rounds: to see that it works")
    parser.add_argument("--write", action="store_true", help=f"also into benchmarks/results/{name}_<device>.md, .json")
    for option, settings in (options or {}).items():
        parser.add_argument(option, **settings)
    parser.set_defaults(device="cpu")
    chosen = parser.parse_args(arguments)
    if chosen.quick and chosen.write:
        raise UserError("--write keeps full measurements only: leave out --quick")
    bounds: list[Bound] = []
    for part in [chosen.part] if chosen.part else parts:
        if missing := [need for need in (needs or {}).get(part, ()) if getattr(chosen, need) is None]:
            needed = f"{part}: needs {' and '.join(f'--{need}' for need in missing)}"
            if chosen.part:
                raise UserError(needed)
            print(f"\n## {part}\n\nleft out; {needed}", flush=True)
            continue
        blocks: list[Block] = [machine(chosen.device)]
        print(f"\n## {part}\n\n{blocks[0]}", flush=True)
        began, others = time.perf_counter(), others_seconds()
        with tempfile.TemporaryDirectory(prefix="minigpt-benchmark-", ignore_cleanup_errors=True) as folder:
            chosen.folder = Path(folder)
            for block in parts[part](chosen):
                blocks.append(block)
                print(f"\n{block}", flush=True)
        tables = [block for block in blocks if isinstance(block, Table)]
        bounds += [cell for table in tables for row in table.rows for cell in row if isinstance(cell, Bound)]
        cores = (others_seconds() - others) / (time.perf_counter() - began)
        if not math.isnan(cores):
            blocks.append(f"Meanwhile other programs used {cores:.2f} of the {os.cpu_count()} cores.")
            print(f"\n{blocks[-1]}", flush=True)
        if chosen.write:
            write(RESULTS / f"{name}_{chosen.device}.md", f"{title} on {chosen.device}", parts, part, blocks)
    return bounds
