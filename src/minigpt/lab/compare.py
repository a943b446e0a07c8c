"""Trains recipes on the same text with the same seeds and budget, and prints one table of losses and speeds.

    minigpt compare configs/attention/*.yaml --seeds 1 2
    minigpt compare configs/tiny.yaml --set optimizer.learning_rate=4e-3,8e-3 --seeds 1 2 3

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
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from minigpt.config import CompareConfig, Config, Variant
from minigpt.cores import usable_cores
from minigpt.errors import UserError
from minigpt.files import reason, write_atomically, write_csv, write_text
from minigpt.lab.comparison_table import ComparisonRow, draw_curves, format_table


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


VARIED = {
    "model.context_length",
    "data.tokenizer",
    "data.batch_size",
    "trainer.max_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.precision",
}
"""Settings that two recipes may not differ in, but that `--set` may vary: the val text stays the same."""


def compare_variants(compare_config: CompareConfig, variants: Sequence[Variant]) -> None:
    """Check that the variants can be compared, train what is not trained yet, measure speeds, write the table.

    Args:
        compare_config: what is asked for.
        variants: a row of the table each.
    """
    recipes = by_name(variants)
    labels = {variant.config.name: variant.label for variant in variants}
    out = Path(compare_config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be created ({reason(error)}); give another folder") from None
    results = train_missing(recipes, compare_config, out, {v.config.name: v.settings for v in variants})
    print("measuring speeds, each recipe in turn", flush=True)
    speeds = measure_speeds(recipes)
    rows = make_rows(recipes, results, speeds, labels)
    table = format_table(rows, in_bits=len({config.data.tokenizer for config in recipes.values()}) > 1)
    write_text(out / "table.md", table + "\n")
    write_atomically(out / "table.png", lambda path: draw_curves(rows, Path(path)))
    print(f"\n{table}\n\n  table   {out / 'table.md'}, {out / 'table.png'}\n  runs    {out / 'runs.csv'}")


def by_name(variants: Sequence[Variant]) -> dict[str, Config]:
    """The configs by name. They may differ in model and optimizer, and in what `--set` varies of `VARIED`.

    Raises:
        UserError: two have one name, or text, budget or context length differ.
    """
    recipes: dict[str, Config] = {}
    for path, config, *_ in variants:
        if config.name in recipes:
            raise UserError(f"{path}: name={config.name} is another recipe's name too: change one of them")
        if config.trainer.max_time is not None:
            raise UserError(
                f"{path}: trainer.max_time={config.trainer.max_time} gives a faster run more steps: "
                "compare by steps, as with --max_steps 300"
            )
        recipes[config.name] = config
    first = variants[0]
    for variant in variants:
        _refuse_differences(first, variant, VARIED & variant.settings.keys())
    return recipes


def _refuse_differences(first: Variant, other: Variant, varied: Collection[str]) -> None:
    ones, others = first.config.to_dict(), other.config.to_dict()
    names = [f"{section}.{name}" for section in ("data", "trainer") for name in ones[section]]
    for key in [*names, "model.context_length"]:
        section, name = key.split(".")
        one, value = ones[section][name], others[section][name]
        if one == value or key in varied:
            continue
        why = "so that both train on the same tokens" if section == "model" else "only model and optimizer may differ"
        if key in other.settings:
            raise UserError(f"--set {key}={one},{value}: varies what must be equal; give one value ({why})")
        raise UserError(
            f"{key} is {one} in {first.config.name} and {value} in {other.config.name}: make them equal"
            f"{', ' if section == 'model' else '; '}{why}"
        )


def train_missing(
    recipes: dict[str, Config], compare_config: CompareConfig, out: Path, settings: Mapping[str, Mapping[str, str]]
) -> list[Result]:
    """Train each (recipe, seed) that is not yet in runs.csv; return the results of all of them.

    Args:
        recipes: configs by name.
        compare_config: what is asked for.
        out: folder of the runs.
        settings: what is varied, by the recipe's name, for dashboards.
    """
    from minigpt.data.open import open_data

    texts = [config.data for config in recipes.values()]
    for number, text in enumerate(texts):
        if text not in texts[:number]:
            open_data(text)  # prepare it once, before several processes do
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
        futures = {
            pool.submit(_train_one, config, threads, dashboard_names(out, key[0], settings[key[0]])): key
            for key, config in missing.items()
        }
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


def dashboard_names(out: Path, recipe: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Environment variables by which W&B groups the runs of one comparison, and the seeds of one variant in it.

    The user's own variables and arguments of the logger take precedence; the user's tags are kept beside these.
    """
    # W&B splits tags at commas, and takes up to 64 characters.
    tags = [f"{key.rsplit('.', 1)[-1]}={value}".replace(",", " ")[:64] for key, value in settings.items()] or [recipe]
    mine = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
    names = {"WANDB_RUN_GROUP": out.resolve().name, "WANDB_JOB_TYPE": recipe}
    return {name: os.environ.get(name) or value for name, value in names.items()} | {
        "WANDB_TAGS": ",".join(dict.fromkeys([*mine, *tags]))
    }


def _train_one(config: Config, threads: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """Train in this process, which does nothing else; returns the fields of `Result` that the run determines."""
    os.environ.update(environment)
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
    """Tokens per second of a training step (forward, backward, update) on its device, without Lightning, by recipe.

    Each round takes one step of every recipe, in random order; the result is the median over the rounds, after two
    warm-up rounds.
    """
    import torch

    from minigpt.data.open import open_data
    from minigpt.model.gpt import GPT
    from minigpt.training.loss import model_loss
    from minigpt.training.optimizer import make_optimizer
    from minigpt.training.run import check_before_text, filled_in
    from minigpt.training.step_times import time_when_done
    from minigpt.training.trainer import quieten

    quieten()
    models = {}
    for name, config in recipes.items():
        torch.manual_seed(config.seed)
        filled = filled_in(config, open_data(config.data, quiet=True))
        trainer = check_before_text(config)  # for its device and precision
        device, precision = trainer.strategy.root_device, trainer.precision_plugin
        model = GPT(filled.model)
        precision.convert_module(model).to(device)  # both in place
        shape = (config.data.batch_size, config.model.context_length + 1)
        tokens = torch.randint(filled.model.vocab_size or 1, shape, device=device)
        models[name] = model, make_optimizer(model, config.optimizer), tokens, precision

    def seconds_of_a_step(name: str) -> float:
        model, optimizer, tokens, precision = models[name]
        began = time_when_done(tokens.device)
        with precision.forward_context():
            loss = model_loss(model, tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time_when_done(tokens.device) - began

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


def make_rows(
    recipes: dict[str, Config], results: Sequence[Result], speeds: dict[str, float], labels: Mapping[str, str]
) -> list[ComparisonRow]:
    """A row for each recipe with its label, lowest bits per byte first; losses in the order of the seeds."""
    rows = []
    for name in recipes:
        runs = sorted((r for r in results if r.recipe == name), key=lambda r: r.seed)
        losses, bits = [r.val_loss for r in runs], [r.bits_per_byte for r in runs]
        memory = max(r.peak_memory_bytes for r in runs)
        rows.append(ComparisonRow(labels[name], runs[0].parameters, losses, bits, speeds[name], memory))
    return sorted(rows, key=lambda row: statistics.mean(row.bits_per_byte))


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
