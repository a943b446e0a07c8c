"""Trains recipes on the same text with the same seeds and budget, and prints one table of losses and speeds.

    minigpt compare configs/attention/*.yaml --seeds 1 2

Finished runs are recorded in OUT/runs.csv and not trained again, so a stopped comparison can be continued and recipes
can be added later. Speeds are measured separately, all recipes in turn in one process: on a busy machine, speeds of
runs at different times are not comparable.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from minigpt import markdown
from minigpt.config import CompareConfig, Config
from minigpt.cores import usable_cores
from minigpt.errors import UserError
from minigpt.files import reason, write_atomically, write_csv, write_text


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished run."""

    recipe: str
    seed: int
    config_digest: str
    """Hash of the config without name and runs_dir: a changed recipe is trained again."""
    parameters: int
    val_loss: float
    """Nats per token, over the whole val split, after the last step."""
    bits_per_byte: float
    peak_memory_bytes: int
    """Of the training process: resident memory, or on a GPU the memory that torch allocated."""
    folder: str


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """A row of the table: one recipe, over its seeds."""

    recipe: str
    parameters: int
    val_loss: list[float]
    bits_per_byte: list[float]
    tokens_per_second: float
    peak_memory_bytes: float


def compare_recipes(compare_config: CompareConfig, files: list[tuple[str, Config]]) -> None:
    """Check that the recipes can be compared, train what is not trained yet, measure speeds, write the table.

    Args:
        compare_config: what is asked for.
        files: the recipes' files and configs.
    """
    recipes = by_name(files)
    out = Path(compare_config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be created ({reason(error)}); give another folder") from None
    results = train_missing(recipes, compare_config, out)
    print("measuring speeds, each recipe in turn", flush=True)
    speeds = measure_speeds(recipes)
    rows = make_rows(recipes, results, speeds)
    table = format_table(rows)
    write_text(out / "table.md", table + "\n")
    write_atomically(out / "table.png", lambda path: draw_curves(rows, Path(path)))
    print(f"\n{table}\n\n  table   {out / 'table.md'}, {out / 'table.png'}\n  runs    {out / 'runs.csv'}")


def by_name(files: list[tuple[str, Config]]) -> dict[str, Config]:
    """The recipes' configs by name, which may differ only in model and optimizer.

    Raises:
        UserError: two have one name, or text, budget or context length differ.
    """
    recipes: dict[str, Config] = {}
    for path, config in files:
        if config.name in recipes:
            raise UserError(f"{path}: name={config.name} is another recipe's name too: change one of them")
        if config.trainer.max_time is not None:
            raise UserError(
                f"{path}: trainer.max_time={config.trainer.max_time} gives a faster run more steps: "
                "compare by steps, as with --max_steps 300"
            )
        recipes[config.name] = config
    first = next(iter(recipes))
    for name, config in recipes.items():
        for section in ("data", "trainer"):
            ours, theirs = getattr(config, section), getattr(recipes[first], section)
            for field in dataclasses.fields(ours):
                a, b = getattr(theirs, field.name), getattr(ours, field.name)
                if a != b:
                    raise UserError(
                        f"{section}.{field.name} is {a} in {first} and {b} in {name}: make them equal; only model and "
                        "optimizer may differ"
                    )
        if config.model.context_length != recipes[first].model.context_length:
            raise UserError(
                f"model.context_length is {recipes[first].model.context_length} in {first} and "
                f"{config.model.context_length} in {name}: make them equal, so that both train on the same tokens"
            )
    return recipes


def train_missing(recipes: dict[str, Config], compare_config: CompareConfig, out: Path) -> list[Result]:
    """Train each (recipe, seed) that is not yet in runs.csv; return the results of all of them."""
    from minigpt.data.open import open_data

    open_data(next(iter(recipes.values())).data)  # prepare the text once, before several processes do
    wanted = {
        (name, seed): dataclasses.replace(config, seed=seed, name=f"{name}-seed{seed}", runs_dir=str(out))
        for seed in compare_config.seeds
        for name, config in recipes.items()
    }
    digests = {key: _digest(config) for key, config in wanted.items()}
    known = {(r.recipe, r.seed): r for r in _read(out / "runs.csv")}
    results = {key: known[key] for key in wanted if key in known and known[key].config_digest == digests[key]}
    missing = {key: config for key, config in wanted.items() if key not in results}
    print(f"{len(wanted)} runs, {len(results)} of them finished before, {compare_config.jobs} at a time", flush=True)
    threads = max(1, usable_cores() // compare_config.jobs)
    # One process per run, so that peak memory is the run's own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(compare_config.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(_train_one, config, threads): key for key, config in missing.items()}
        try:
            for future in as_completed(futures):
                key = futures[future]
                result = Result(key[0], key[1], digests[key], **future.result())
                results[key] = known[key] = result
                _write(out / "runs.csv", list(known.values()))
                print(
                    f"  {len(results)}/{len(wanted)}  {result.recipe}, seed {result.seed}: val/loss "
                    f"{result.val_loss:.4f}, {result.bits_per_byte:.4f} bits per byte",
                    flush=True,
                )
        except (KeyboardInterrupt, SystemExit, BrokenProcessPool) as end:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # Ctrl-C signals them too, a scheduler may not
                process.terminate()
            print("stopped; finished runs are kept; repeat the command to continue", file=sys.stderr, flush=True)
            if isinstance(end, SystemExit):
                raise
            raise KeyboardInterrupt from None
        except UserError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return list(results.values())


def _train_one(config: Config, threads: int) -> dict[str, Any]:
    """Train in this process, which does nothing else; returns the fields of `Result` that the run determines."""
    import torch

    from minigpt.runs.loading import load_model
    from minigpt.training.run import train

    torch.set_num_threads(threads)
    trainer = dataclasses.replace(config.trainer, enable_progress_bar=False)
    # The output of parallel runs would interleave.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        folder = train(dataclasses.replace(config, trainer=trainer))
    with folder.metrics.open() as file:
        last = [row for row in csv.DictReader(file) if row["val/loss"]][-1]
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "parameters": load_model(folder.last).model.n_parameters,
        "val_loss": float(last["val/loss"]),
        "bits_per_byte": float(last["val/bits_per_byte"]),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else resident,
        "folder": str(folder.path),
    }


def measure_speeds(recipes: dict[str, Config], rounds: int = 9) -> dict[str, float]:
    """Tokens per second of a training step (forward, backward, update) without Lightning, by recipe.

    Each round takes one step of every recipe, in random order; the result is the median over the rounds, after two
    warm-up rounds.
    """
    import torch

    from minigpt.data.open import open_data
    from minigpt.model.gpt import GPT
    from minigpt.training.loss import model_loss
    from minigpt.training.optimizer import make_optimizer
    from minigpt.training.run import filled_in

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {}
    for name, config in recipes.items():
        torch.manual_seed(config.seed)
        filled = filled_in(config, open_data(config.data, quiet=True))
        model = GPT(filled.model).to(device)
        shape = (config.data.batch_size, config.model.context_length + 1)
        tokens = torch.randint(filled.model.vocab_size or 1, shape, device=device)
        models[name] = model, make_optimizer(model, config.optimizer), tokens

    def seconds_of_a_step(name: str) -> float:
        model, optimizer, tokens = models[name]
        began = time.perf_counter()
        model_loss(model, tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds: dict[str, list[float]] = {name: [] for name in models}
    order, shuffler = list(models), random.Random(0)
    for round_ in range(rounds + 2):
        shuffler.shuffle(order)
        for name in order:
            taken = seconds_of_a_step(name)
            if round_ >= 2:
                seconds[name].append(taken)
    return {
        name: config.data.batch_size * config.model.context_length / statistics.median(seconds[name])
        for name, config in recipes.items()
    }


def make_rows(recipes: dict[str, Config], results: Sequence[Result], speeds: dict[str, float]) -> list[ComparisonRow]:
    """A row for each recipe, lowest bits per byte first."""
    rows = []
    for name in recipes:
        runs = sorted((r for r in results if r.recipe == name), key=lambda r: r.seed)
        losses, bits = [r.val_loss for r in runs], [r.bits_per_byte for r in runs]
        rows.append(
            ComparisonRow(name, runs[0].parameters, losses, bits, speeds[name], max(r.peak_memory_bytes for r in runs))
        )
    return sorted(rows, key=lambda row: statistics.mean(row.bits_per_byte))


def format_table(rows: Sequence[ComparisonRow]) -> str:
    """A Markdown table, aligned to be read as plain text. ± is half the range over the seeds."""
    columns = {
        "recipe": lambda row: row.recipe,
        "parameters": lambda row: f"{row.parameters:,}",
        "val/loss": lambda row: _with_spread(row.val_loss),
        "bits per byte": lambda row: _with_spread(row.bits_per_byte),
        "tokens/s": lambda row: f"{row.tokens_per_second:,.0f}",
        "peak memory": lambda row: f"{row.peak_memory_bytes / 1e6:,.0f} MB",
    }
    return markdown.table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _with_spread(values: Sequence[float]) -> str:
    spread = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")


def draw_curves(rows: Sequence[ComparisonRow], path: Path) -> None:
    """Plot bits per byte of every seed, and speed, to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, places = [row.recipe for row in rows], range(len(rows))
    figure, (losses, speeds) = pyplot.subplots(
        1, 2, sharey=True, figsize=(9, 1 + 0.32 * len(rows)), width_ratios=(2, 1), layout="constrained"
    )
    for place, row in zip(places, rows, strict=True):
        losses.plot(row.bits_per_byte, [place] * len(row.bits_per_byte), "o", color="#3b6ea8", markersize=5)
        losses.plot(statistics.mean(row.bits_per_byte), place, "|", color="black", markersize=12)
    speeds.barh(places, [row.tokens_per_second for row in rows], color="#c9d7e8")
    losses.set_yticks(places, names)
    losses.invert_yaxis()
    losses.set_xlabel("bits per byte (each seed, and their mean)")
    speeds.set_xlabel("tokens per second")
    for axes in (losses, speeds):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, format="png", dpi=130)
    pyplot.close(figure)


def _digest(config: Config) -> str:
    content = config.to_dict()
    del content["name"], content["runs_dir"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> list[Result]:
    if not path.exists():
        return []
    kinds = {"seed": int, "parameters": int, "peak_memory_bytes": int, "val_loss": float, "bits_per_byte": float}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Result(**{k: kinds.get(k, str)(v) for k, v in row.items()}) for row in csv.DictReader(file)]
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the results of a comparison ({error}): give another --out") from None


def _write(path: Path, results: Sequence[Result]) -> None:
    names = [field.name for field in dataclasses.fields(Result)]
    write_csv(path, names, [list(dataclasses.asdict(result).values()) for result in results])
