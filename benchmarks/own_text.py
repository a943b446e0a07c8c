"""Texts x budgets x seeds -> bits per byte of `--budget`, of the demo's settings, and of nanoGPT, in the same time.

`make own-text TEXTS="novel.txt ..." NANOGPT=folder`. Each run is kept in results/own_text.json and not made again: the
whole table takes many hours, and an idle machine. Ours and the demo's time is that of the whole command; nanoGPT's is
that of its training steps alone.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nanogpt
from harness import RESULTS, Parser, Table, checkout, machine

from minigpt.cli import program
from minigpt.config.trainer import as_max_time
from minigpt.errors import UserError
from minigpt.files import write_text

SECONDS = {"30s": 30, "1m": 60, "5m": 300, "20m": 1200}
CONTENDERS = ("budget", "demo", "nanoGPT")
VAL_BYTES = 50_000
"""Least held-out bytes: a tenth of a small text would be a noisy measure."""
TEXTS = """The texts are not in the project. bible.txt: the first 150 kB of Debian's `bible-kjv` without verse numbers
(`bible -f gen1:1-rev22:21`). russian.txt: 1.1 MB of Debian's `fortunes-ru`. faq.txt: 11 MB, the pages of Debian's
`anarchism` without their markup. A tenth of each is held out, or 50 kB. The time of `budget` and `demo` is that of the
whole command, but for what comes before and after training where the JSON's seconds are more than the budget's;
nanoGPT's is that of its steps alone. Runs of 20 minutes, and the second and third seeds of 5, have one core each: a run
of `budget` beside one of `demo`, those of nanoGPT beside one another. On 100 kB `budget` ends after 30 passes, so that
5 and 20 minutes are the same run; before 2026-12-01 it took a larger model for 20 minutes, which ended at 1.928. The
second seeds of 5 minutes were compiled with an empty cache, which took half of that time: the rule that chose so is
gone, and they are due again."""
SHAKESPEARE_CHAR = nanogpt.Recipe(
    n_layer=6, n_head=6, n_embd=384, context_length=256, batch_size=64, dropout=0.2, max_steps=5000
)
"""nanoGPT's config/train_shakespeare_char.py."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training."""

    text: str
    """Name of the file."""
    n_bytes: int
    budget: str
    contender: str
    seed: int


def split(path: Path, folder: Path) -> tuple[Path, Path]:
    """The text's end is held out: a tenth, but at least VAL_BYTES. It is cut at the end of a line."""
    text = path.read_bytes()
    at = text.rfind(b"\n", 0, len(text) - max(VAL_BYTES, len(text) // 10)) + 1
    if at == 0:
        raise UserError(f"{path}: is too short; give more than {2 * VAL_BYTES:,} bytes, in lines")
    train, val = folder / f"{path.stem}-train.txt", folder / f"{path.stem}-val.txt"
    train.write_bytes(text[:at])
    val.write_bytes(text[at:])
    return train, val


def train_ours(run: Run, train: Path, val: Path, folder: Path) -> dict[str, Any]:
    """By the command line, in a process of its own; as its user waits for it."""
    name = f"{run.contender}-{run.text}-{run.budget}-{run.seed}"
    words = ["--data.source", train, "--data.val_source", val, "--seed", run.seed, "--name", name]
    words += ["--trainer.logger", "false", "--runs_dir", folder / "runs", "--data.dir", folder / name]
    if run.contender == "budget":
        words += ["--budget", run.budget]
    else:
        words = ["demo", *words, "--trainer.max_time", as_max_time(SECONDS[run.budget]), "--trainer.max_steps", 10**6]
    began = time.perf_counter()
    command = [sys.executable, "-m", "minigpt", "train", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout[-500:]}")
    with (folder / "runs" / name / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val/bits_per_byte"]]
    points = [(float(row["val/bits_per_byte"]), int(row["step"]), int(row["tokens"] or 0)) for row in rows]
    best, step, _ = min(points)
    said = [line.strip() for line in done.stdout.splitlines()]
    first = next((number for number, line in enumerate(said) if line.startswith("budget ")), None)
    return {
        "best": best,
        "best_step": step,
        "last": points[-1][0],
        "steps": points[-1][1],
        "seconds": round(time.perf_counter() - began, 1),
        "said": [] if first is None else said[first : first + 3],
    }


def train_theirs(run: Run, train: Path, val: Path, folder: Path, against: Path) -> dict[str, Any]:
    """nanoGPT's own defaults for characters, stopped when the time is over."""
    import numpy as np

    texts = [path.read_text(encoding="utf-8") for path in (train, val)]
    ids = {character: number for number, character in enumerate(sorted(set("".join(texts))))}
    tokens = folder / "theirs.bin"
    np.array([ids[each] for each in texts[0]], dtype=np.uint16).tofile(tokens)
    held_out = np.array([ids[each] for each in texts[1]], dtype=np.int64)
    recipe = dataclasses.replace(SHAKESPEARE_CHAR, vocab_size=len(ids), seed=run.seed)
    limit, began = SECONDS[run.budget], time.perf_counter()
    for step, model in nanogpt.training(against, recipe, tokens):  # noqa: B007
        if time.perf_counter() - began >= limit:
            break
    seconds = time.perf_counter() - began
    bits = nats(model, held_out, recipe.context_length) / math.log(2) / len(texts[1].encode())
    return {"best": bits, "best_step": step, "last": bits, "steps": step, "seconds": round(seconds, 1), "said": []}


def nats(model: Any, tokens: Any, T: int) -> float:
    """Of a whole text but its first token, in windows that do not overlap."""
    import torch
    import torch.nn.functional as F

    model.eval()
    total, all_tokens = 0.0, torch.from_numpy(tokens)
    with torch.no_grad():
        for at in range(0, len(tokens) - 1, T):
            x, y = all_tokens[at : at + T][None], all_tokens[at + 1 : at + T + 1]
            total += F.cross_entropy(model(x[:, : len(y)], y[None])[0][0], y, reduction="sum").item()
    return total


def kept_in(store: Path) -> dict[str, dict[str, Any]]:
    """All results by the run's fields, joined by spaces."""
    return json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}


def make_missing(runs: list[Run], texts: dict[str, Path], against: Path | None, store: Path) -> None:
    """Make and keep each run that has no result yet."""
    kept = kept_in(store)
    with tempfile.TemporaryDirectory(prefix="minigpt-own-text-") as name:
        for number, run in enumerate(runs, 1):
            key = " ".join(map(str, dataclasses.astuple(run)))
            if key not in kept:
                print(f"{number}/{len(runs)}  {key}", flush=True)
                train, val = split(texts[run.text], Path(name))
                if run.contender == "nanoGPT":
                    assert against is not None
                    made = train_theirs(run, train, val, Path(name), against)
                else:
                    made = train_ours(run, train, val, Path(name))
                kept[key] = made | {"machine": machine("cpu")}
                lines = ",\n".join(f"{json.dumps(each)}: {json.dumps(kept[each])}" for each in sorted(kept))
                write_text(store, f"{{\n{lines}\n}}\n")


def table(kept: dict[str, dict[str, Any]]) -> Table:
    """A row for each text and budget: medians over the seeds, and differences of medians."""
    groups: dict[tuple[int, str, str], dict[str, list[dict[str, Any]]]] = {}
    for key, result in kept.items():
        text, n_bytes, budget, contender, _ = key.rsplit(" ", 4)
        groups.setdefault((int(n_bytes), text, budget), {}).setdefault(contender, []).append(result)
    rows = []
    for (n_bytes, text, budget), group in sorted(groups.items(), key=lambda each: (each[0][0], SECONDS[each[0][2]])):
        ours, demo, theirs = (group.get(name, []) for name in CONTENDERS)
        row = [f"{text}, {n_bytes / 1e6:.2f} MB", budget, _cell(ours, "best"), _cell(ours, "last")]
        row += [_cell(demo, "best"), _cell(demo, "last"), _cell(theirs, "last")]
        for others, which in ((demo, "best"), (demo, "last"), (theirs, "last")):
            known = bool(ours and others)
            row.append(f"{_median(ours, 'best') - _median(others, which):+.3f}" if known else "")
        rows.append(row)
    header = ["text", "time", "budget", "its last", "demo, best", "demo, last", "nanoGPT"]
    header += ["budget - demo, best", "budget - demo, last", "budget - nanoGPT"]
    return Table("bits per byte of the whole held-out part, median (number of seeds: least to greatest)", header, rows)


def _median(group: list[dict[str, Any]], which: str) -> float:
    return statistics.median(each[which] for each in group)


def _cell(group: list[dict[str, Any]], which: str) -> str:
    if not group:
        return ""
    values = [each[which] for each in group]
    return f"{_median(group, which):.3f} ({len(values)}: {min(values):.3f} to {max(values):.3f})"


def main(arguments: list[str]) -> None:
    """Make the runs that are missing, and the table of all.

    Raises:
        UserError: the command line is wrong, or a text too short.
    """
    parser = Parser(description="`--budget` against the demo's settings and nanoGPT, on texts of one's own.")
    parser.add_argument("texts", nargs="+", type=Path, help="text files; a tenth of each is held out")
    parser.add_argument("--against", type=checkout, help="checkout of nanoGPT")
    parser.add_argument("--budgets", nargs="+", default=["1m", "5m", "20m"], choices=list(SECONDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--store", type=Path, default=RESULTS / "own_text.json", help="keeps each run's result")
    chosen = parser.parse_args(arguments)
    wanted = [name for name in chosen.contenders if name != "nanoGPT" or chosen.against]
    texts = {path.stem: path for path in chosen.texts}
    runs = [
        Run(text, path.stat().st_size, budget, contender, seed)
        for seed in chosen.seeds
        for budget in chosen.budgets
        for text, path in texts.items()
        for contender in wanted
    ]
    make_missing(runs, texts, chosen.against, chosen.store)
    made = table(kept_in(chosen.store))
    print(made)
    if chosen.store == RESULTS / "own_text.json":
        where = "The machine and the commit of each run are in the JSON beside this file, with what the budget chose."
        write_text(RESULTS / "own_text.md", f"# A text of one's own\n\n{where}\n\n{made}\n\n{TEXTS}\n")


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    program.run(main)
