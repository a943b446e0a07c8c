"""nanoGPT's CPU recipe and ours on one text -> val loss against time, kept run by run, as rows and a picture.

Time is steps times the ratio of the steps' costs, measured side by side: neighbours on the machine disturb the clock of
a whole run. Validation is not counted. Runs and costs are kept, and not made again while settings and code stay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import nanogpt
from contenders import CHARS, ENDLESS, ROOT, like, ours, parse, prepared, theirs
from harness import Block, Bound, Contender, Spread, Table, ratios, turns

from minigpt.files import write_atomically, write_text

BASELINES = {
    "nanoGPT": nanogpt.Recipe(),
    "nanoGPT, learning rate tuned": nanogpt.Recipe(learning_rate=4e-3, final_lr_fraction=0.02),
}
BOUNDS: dict[float, str | float] = {1 / 6: "nanoGPT", 1 / 3: "nanoGPT, learning rate tuned", 1.0: 1.68}
"""The loss to reach in a share of nanoGPT's time: a baseline's on the val split's second half, or one on all of it."""
SOURCES = ("model", "training", "data/batches.py", "data/order.py")
"""What of our code decides how a run goes."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is to be trained: a baseline, or a recipe of ours as changes to the command line of `train.py`."""

    name: str
    seed: int
    max_steps: int
    n_points: int
    cost: float
    """Of a step, in steps of nanoGPT's."""
    vocab_size: int
    changes: tuple[str, ...] = ()
    checkout: str = ""
    tokens: str = ""
    """The train split as nanoGPT reads it; ours reads the prepared text."""
    val: str = ""
    """The val split in the same form, for both."""

    @property
    def time(self) -> float:
        """In nanoGPT's 2000 steps."""
        return self.max_steps * self.cost / nanogpt.Recipe.max_steps

    @property
    def digest(self) -> str:
        """Changes with all that decides the result, but not with where things lie."""
        known = dataclasses.asdict(self) | {"tokens": _digest(Path(self.tokens)), "val": _digest(Path(self.val))}
        if self.checkout:
            recipe = dataclasses.asdict(BASELINES[self.name])
            known |= {"checkout": _digest(Path(self.checkout) / "model.py"), "recipe": recipe}
        else:
            known |= {"changes": settings(self.changes), "code": our_code()}
        del known["cost"]
        return _digest(known)


def _digest(content: Path | object) -> str:
    """Of a file, or of what JSON can hold."""
    known = content.read_bytes() if isinstance(content, Path) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(known).hexdigest()[:12]


def settings(changes: Sequence[str]) -> dict[str, Any]:
    """All of a recipe, but not where things lie."""
    config = parse(changes).to_dict()
    del config["runs_dir"], config["data"]["dir"], config["data"]["source"]
    return config


def our_code() -> list[str]:
    """A digest of each file of SOURCES."""
    roots = [ROOT / "src" / "minigpt" / source for source in SOURCES]
    return [_digest(file) for root in roots for file in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file has, made first if it is not there."""
    if not path.exists():
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


def results(runs: Sequence[Run], store: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    """The result of each run, kept or made now in a process of its own."""
    for number, run in enumerate(runs, 1):
        place = f"{number}/{len(runs)}  {label(run)}, seed {run.seed}"

        def make(run: Run = run, place: str = place) -> Any:
            print(f"{place}: training", flush=True)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                return pool.submit(train_theirs if run.checkout else train_ours, run).result()

        result = kept(store / f"{label(run).replace(' ', '_')}-seed{run.seed}-{run.digest}.json", make)
        print(f"{place}: {result['curve'][-1][1]:.4f}, {result['curve'][-1][2]:.4f}", flush=True)
        yield run, result


def train_ours(run: Run) -> dict[str, Any]:
    """By `train.py`'s own code; validation at each point of the curve is this benchmark's."""
    import lightning as L

    from minigpt.training import run as training
    from minigpt.training.callbacks import seconds_of_training

    result: dict[str, Any] = {"curve": []}

    class Halves(L.Callback):
        def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            losses = halves(module.model, run, module.model.config.context_length)
            result["curve"].append((trainer.global_step, *losses))
            result.update(seconds=seconds_of_training(trainer), parameters=module.model.n_parameters)

    changes = [*run.changes, f"seed={run.seed}", f"trainer.max_steps={run.max_steps}", "trainer.max_time=null"]
    changes += [f"trainer.val_check_interval={run.max_steps // run.n_points}", "trainer.limit_val_batches=1"]
    changes += ["trainer.logger=false", "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false"]
    changes += ["attention.enabled=false", "sampling.prompts=[]"]
    make = training.make_callbacks
    # First, so that it sees the weights that are validated where another callback puts averages in their place.
    with mock.patch.object(training, "make_callbacks", lambda *given: [Halves(), *make(*given)]), silence():
        training.train(parse(changes))
    return result


def train_theirs(run: Run) -> dict[str, Any]:
    """By nanoGPT's loop."""
    own = {"seed": run.seed, "max_steps": run.max_steps, "vocab_size": run.vocab_size}
    recipe = dataclasses.replace(BASELINES[run.name], **own)
    curve, seconds, began = [], 0.0, 0.0
    with silence():
        for step, model in nanogpt.training(Path(run.checkout), recipe, Path(run.tokens)):
            if step and step % (run.max_steps // run.n_points) == 0:
                seconds += time.perf_counter() - began
                curve.append((step, *halves(lambda x, model=model: model(x, x)[0], run, recipe.context_length)))
                began = time.perf_counter()
            began = began or time.perf_counter()
    return {"curve": curve, "seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Of what is printed; this process does nothing else."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def halves(logits: Callable[[Any], Any], run: Run, T: int) -> tuple[float, float]:
    """Nats a token over each half of the val split, in windows that do not overlap.

    Args:
        logits: tokens (B, T) -> (B, T, V).
        run: whose val split it is; what is left over after the last window counts for nothing.
        T: length of a window.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    tokens = torch.from_numpy(np.fromfile(run.val, np.uint16).astype(np.int64))
    n = (len(tokens) - 1) // T
    rows, targets = tokens[: n * T].view(n, T), tokens[1 : n * T + 1].view(n, T)
    sums = []
    with torch.no_grad():
        for begin, end in ((0, n // 2), (n // 2, n)):
            parts = [
                F.cross_entropy(logits(x).flatten(0, 1), y.flatten(), reduction="sum").item()
                for x, y in zip(rows[begin:end].split(64), targets[begin:end].split(64), strict=True)
            ]
            sums.append(sum(parts) / ((end - begin) * T))
    return sums[0], sums[1]


def loss_table(done: Sequence[tuple[Run, dict[str, Any]]], shares: dict[str, float]) -> Table:
    """A row for the seeds of each recipe and number of steps: mean (least to greatest).

    Args:
        done: runs and their results.
        shares: of nanoGPT's time, by label.
    """
    every: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run, result in done:
        every.setdefault(label(run), []).append((run, result))
    finals = {name: [result["curve"][-1][1:] for _, result in group] for name, group in every.items()}
    rows = []
    for name, group in every.items():
        (run, result), share = group[0], shares.get(name)
        columns = [[sum(final) / 2 for final in finals[name]], *zip(*finals[name], strict=True)]
        seconds = statistics.mean(each["seconds"] for _, each in group)
        reached: str = ""
        if (bound := BOUNDS.get(share or 0.0)) is not None:
            wanted = bound if isinstance(bound, float) else statistics.mean(second for _, second in finals[bound])
            what = f"{run.name}: val loss in {100 * (share or 0.0):.0f} % of nanoGPT's time"
            if isinstance(bound, str):
                what += f", against {bound}, second half of val"
            values = columns[0] if isinstance(bound, float) else columns[2]
            limited = f"a step costs {run.cost:.2f} of nanoGPT's; compiling comes on top"
            reached = Bound(what, values, at_most=wanted, unit="nats", limited_by=limited)
        row = [name, f"{result['parameters']:,}", f"{run.max_steps}", f"{run.cost:.2f}", f"{100 * run.time:.0f}"]
        rows.append([*row, f"{seconds:.0f}", *map(_mean, columns), reached])
    header = ["", "parameters", "steps", "a step's cost", "% of nanoGPT's time", "seconds of training"]
    header += ["val loss", "its first half", "its second half", "bound"]
    curves = [
        {"name": label(run), "seed": run.seed, "max_steps": run.max_steps, "cost": run.cost, **result}
        for run, result in done
    ]
    n_seeds = len({run.seed for run, _ in done})
    return Table(f"nats a character, mean (least to greatest) of {n_seeds} seeds", header, rows, curves)


def label(run: Run) -> str:
    return run.name if run.checkout else f"{run.name}, {run.max_steps} steps"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def draw(done: Sequence[tuple[Run, dict[str, Any]]], path: Path) -> None:
    """Val loss against time, a line for each run, a colour for each recipe and number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    names = list(dict.fromkeys(label(run) for run, _ in done))
    for run, result in done:
        number = names.index(label(run))
        first = (run, result) == next(each for each in done if label(each[0]) == label(run))
        times = [100 * step * run.cost / nanogpt.Recipe.max_steps for step, *_ in result["curve"]]
        losses = [(one + other) / 2 for _, one, other in result["curve"]]
        axes.plot(times, losses, color=f"C{number}", linewidth=1, label=names[number] if first else None)
    axes.set_xlabel("training time, in % of nanoGPT's 2000 steps")
    axes.set_ylabel("val loss, nats a character")
    axes.set_ylim(top=2.6)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
    pyplot.close(figure)


def loss(chosen: Namespace) -> Iterator[Block]:
    """Val loss against time: nanoGPT's CPU recipe, the same with a better learning rate, and ours."""
    import numpy as np

    from minigpt.data.open import open_data

    store = chosen.folder if chosen.quick else chosen.runs
    seeds, n_points = (chosen.seeds[:1], 5) if chosen.quick else (chosen.seeds, 20)
    where = [f"data.dir={chosen.folder}/data", f"runs_dir={chosen.folder}/runs"]
    chars = [f"data.source={chosen.text}", *CHARS, "compile=true", *where]
    own = {each.stem: [f"config={each}", *chars] for each in chosen.recipes}
    config, tokens = prepared(next(iter(own.values())), chosen.folder)
    split = open_data(config.data, quiet=True).val.tokens
    val = chosen.folder / "val.bin"
    split.read(0, len(split) - 1).astype(np.uint16).tofile(val)  # without the end of the text

    n_symbols = like(config).vocab_size
    recipe = nanogpt.Recipe(vocab_size=n_symbols, max_steps=10**6)
    contenders: dict[str, Contender] = {"nanoGPT": partial(theirs, chosen.against, recipe, tokens)}
    for name, changes in own.items():
        contenders[name] = partial(ours, [*changes, *ENDLESS, "trainer.logger=false"], False)

    def measure() -> dict[str, tuple[list[float], float]]:
        """Each round's ratio to nanoGPT's step, and the seconds that the first round takes longer."""
        empty = {"TORCHINDUCTOR_CACHE_DIR": str(chosen.folder / "compiled")}  # so that compiling is cold
        with mock.patch.dict(os.environ, empty):
            first, taken = turns(contenders, *((2, 3) if chosen.quick else (15, 20)))
        return {
            name: (ratios(seconds, taken["nanoGPT"]), first[name] - statistics.median(seconds))
            for name, seconds in taken.items()
        }

    digest = _digest([[settings(changes) for changes in own.values()], our_code()])
    measured = kept(store / f"costs-{digest}.json", measure)  # of another day they would give other numbers of steps
    costs = {name: each for name, (each, _) in measured.items()}
    rows = [[name, Spread(each), f"{more:.1f}" if name in own else ""] for name, (each, more) in measured.items()]
    yield Table("cost of a step, in nanoGPT's", ["", "times", "compiling cold, s (not counted)"], rows)

    most = 50 if chosen.quick else nanogpt.Recipe.max_steps
    files = {"tokens": str(tokens), "val": str(val), "vocab_size": n_symbols}
    runs, shares = [], {}
    for seed in seeds:
        for name in BASELINES:
            runs.append(Run(name, seed, most, n_points, 1.0, checkout=str(chosen.against), **files))
        for name, changes in own.items():
            for share in chosen.budgets:
                cost = statistics.median(costs[name])
                n_steps = max(1, int(share * most / cost / n_points)) * n_points
                runs.append(Run(name, seed, n_steps, n_points, cost, changes=tuple(changes), **files))
                shares[label(runs[-1])] = share
    done = list(results(list(dict.fromkeys(runs)), store))
    picture = harness.RESULTS / "training_cpu.png" if chosen.write else store / "curves.png"
    draw(done, picture)
    yield loss_table(done, {} if chosen.quick else shares)
    yield f"The curves are in {picture.name}."
