"""What training costs, beside nanoGPT, the machine's peak and a bare loop: `benchmarks/training.py steps --quick`.

Our runs are those of `train.py`, Lightning and callbacks included; only a callback that waits for its turn is added.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import harness
from contenders import (
    CHARS,
    ENDLESS,
    ROOT,
    SIDE,
    characters,
    earlier,
    like,
    ours,
    parse,
    prepared,
    product,
    raw,
    theirs,
)
from harness import Block, Bound, Contender, Spread, Table, ratios, turns
from time_to_loss import BOUNDS, loss

from minigpt.cli import program
from minigpt.errors import UserError

GPT2 = [
    "model.position=learned",
    "model.norm=layernorm",
    "model.mlp=gelu_exact",
    "model.qk_norm=false",
    "model.bias=false",
    "model.tie_embeddings=true",
    "optimizer.name=adamw",
    "optimizer.learning_rate=1e-3",
]
"""nanoGPT's architecture, and its learning rate: with another the numbers may take longer to compute with."""
NANOGPT, DEMO, LARGE = "nanoGPT's CPU recipe", "the demo's shape", "10M parameters"
PEAK, THEIRS, FAMILY, BEFORE = "matrix product", "nanoGPT", "minigpt, gpt2 family", "minigpt before issue 24"
COMPILED = ", compiled"
SHAKESPEARE, DEMO_RECIPE = "minigpt, shakespeare_char.yaml", "minigpt, demo.yaml"
SPEEDS = {
    NANOGPT: [
        (SHAKESPEARE + COMPILED, THEIRS, 1.1),
        (SHAKESPEARE + COMPILED, THEIRS + COMPILED, 1.0),
        (FAMILY + COMPILED, THEIRS + COMPILED, 1.1),
    ],
    DEMO: [(DEMO_RECIPE + COMPILED, BEFORE, 1.25)],
    LARGE: [(FAMILY + COMPILED, THEIRS, 1.15)],
}
"""At each shape: whose tokens/s are to be at least so many times whose."""
LOOP_BOUND = 3.0
"""Percent of a raw loop's step that Lightning's may cost more."""
FIRST_STEP, FIRST_CHARACTER_SECONDS, HELP_SECONDS = 1.07, 0.6, 0.5
"""Start-up: times nanoGPT's seconds to the first step; `sample`; `--help`."""


def shape(n_layer: int, n_head: int, n_embd: int, context_length: int, batch_size: int) -> list[str]:
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "context_length": context_length}
    return [*(f"model.{name}={size}" for name, size in sizes.items()), f"data.batch_size={batch_size}"]


def shapes(chosen: Namespace) -> dict[str, dict[str, list[str]]]:
    """What trains at each shape: nanoGPT's architecture, and ours as a recipe has it."""
    demo = parse([f"config={ROOT}/configs/demo.yaml"])
    model, data = demo.model, demo.data
    demo_sizes = shape(model.n_layer, model.n_head, model.n_embd, model.context_length, data.batch_size)
    where = [f"data.dir={chosen.folder}/data", f"runs_dir={chosen.folder}/runs", *ENDLESS]
    chars = [f"data.source={characters(chosen)}", *CHARS, *where]
    stdlib = [f"data.source={data.source}", f"data.tokenizer={data.tokenizer}", *where]
    large = [*shape(6, 6, 384, 256, 4), *chars]
    return {
        NANOGPT: {
            FAMILY: [*shape(4, 4, 128, 64, 12), *chars, *GPT2],
            SHAKESPEARE: [f"config={ROOT}/configs/shakespeare_char.yaml", *chars],
        },
        DEMO: {
            FAMILY: [*demo_sizes, *stdlib, *GPT2],
            # it has a time limit, so Lightning's timer runs
            DEMO_RECIPE: [f"config={ROOT}/configs/demo.yaml", *stdlib, "trainer.max_time=99:00:00:00"],
        },
        LARGE: {FAMILY: [*large, *GPT2], "minigpt, modern family, Muon": [*large, "optimizer.name=muon"]},
    }


def steps(name: str, chosen: Namespace) -> Iterator[Block]:
    """A step's time, tokens per second and MFU at one shape.

    Args:
        name: of the shape.
    """
    variants = shapes(chosen)[name]
    config, tokens = prepared(variants[FAMILY], chosen.folder)
    contenders: dict[str, Contender] = {PEAK: product}
    from minigpt.training.arithmetic import flops_per_token  # imports torch
    from minigpt.training.compile_choice import why_no_compiler

    why = why_no_compiler()
    has_compiler = why is None
    if why is not None:
        yield f"Compiled steps are skipped: {why}."
    for label, changes in variants.items():
        for suffix in ("", COMPILED) if has_compiler else ("",):
            whole = [*changes, "trainer.logger=false", f"compile={str(bool(suffix)).lower()}"]
            contenders[label + suffix] = partial(ours, whole, False)
    if chosen.against is not None:
        contenders[THEIRS] = partial(theirs, chosen.against, like(config), tokens)
        if has_compiler:
            recipe = dataclasses.replace(like(config), compile=True)
            contenders[THEIRS + COMPILED] = partial(theirs, chosen.against, recipe, tokens)
    if chosen.before is not None and name == DEMO:
        whole = [*variants[DEMO_RECIPE], "trainer.logger=false", "compile=false"]
        contenders[BEFORE] = partial(earlier, chosen.before, whole)
    n_pieces, warm = 20 if name == NANOGPT else 4, {}
    if chosen.quick:  # compiling nanoGPT as well would take too long; ours takes what the user's cache has
        wanted = {PEAK, THEIRS, BEFORE, FAMILY}
        wanted |= {label for label, other, _ in SPEEDS[name] if other != THEIRS + COMPILED}
        contenders = {label: contender for label, contender in contenders.items() if label in wanted}
        first, taken = turns(contenders, 5, n_pieces)
    else:
        empty = {"TORCHINDUCTOR_CACHE_DIR": str(chosen.folder / "compiled")}  # so that the first time is cold
        with mock.patch.dict(os.environ, empty):
            first, taken = turns(contenders, 15, n_pieces)
            compiled = {label: each for label, each in contenders.items() if label.endswith(COMPILED)}
            warm = turns(compiled, 0, n_pieces)[0]
    peak = [2 * SIDE**3 * n_pieces / seconds for seconds in taken.pop(PEAK)]
    n_tokens, shares = n_pieces * config.data.batch_size * config.model.context_length, {}
    base, rows = THEIRS if THEIRS in taken else FAMILY, []
    for label, seconds in sorted(taken.items(), key=lambda item: item[0] != base):
        own = parse(variants.get(label.removesuffix(COMPILED), variants[DEMO_RECIPE if label == BEFORE else FAMILY]))
        flops = flops_per_token(dataclasses.replace(own.model, vocab_size=config.model.vocab_size))
        rates = [n_tokens / each for each in seconds]
        shares[label] = Spread([100 * flops * rate / most for rate, most in zip(rates, peak, strict=True)])
        middle = statistics.median(seconds)
        row = [label, Spread([1e3 * each / n_pieces for each in seconds]), Spread(rates)]
        row += [Spread(ratios(taken[base], seconds)), shares[label]]
        rows.append([*row, *(f"{each[label] - middle:.1f}" if label in warm else "" for each in (first, warm))])
    yield Table(
        f"{name}: {', '.join(each.rpartition('.')[2] for each in variants[FAMILY][:5])}; rounds of {n_pieces} "
        f"steps; peak by a product {SIDE} cubed {statistics.median(peak) / 1e9:.0f} GFLOP/s",
        ["", "ms a step", "tokens/s", f"times {base}'s tokens/s", "MFU, %", "compiling cold, s", "warm, s"],
        rows,
    )
    rows = []
    for label, other, least in SPEEDS[name]:
        if label in taken and other in taken:
            times = ratios(taken[other], taken[label])
            limited = f"matrix products: {statistics.median(shares[label].values):.0f} % of their peak"
            if label in warm:
                limited += f"; compiling takes {first[label] - statistics.median(taken[label]):.0f} s cold"
            bound = Bound(
                f"{label.removeprefix('minigpt, ')}: tokens/s over those of {other}, {name}",
                times,
                at_least=least,
                limited_by=limited,
            )
            rows.append([label, other, Spread(times), bound])
    if rows:
        yield Table("bounds", ["", "over", "times its tokens/s", "bound"], rows)


def loop(chosen: Namespace) -> Iterator[Block]:
    """What Lightning's loop costs over a raw one, with what users get beside it."""
    every, os.environ["WANDB_MODE"] = shapes(chosen), "offline"
    for name, changes in {DEMO: every[DEMO][DEMO_RECIPE], LARGE: every[LARGE][FAMILY]}.items():
        if chosen.quick and name != DEMO:
            continue
        changes = [*changes, "compile=false"]
        prepared(changes, chosen.folder)
        quiet = [*changes, "trainer.logger=false"]
        contenders: dict[str, Contender] = {
            "raw loop": partial(raw, changes),
            "train.py, no bar, no logger": partial(ours, [*quiet, "trainer.enable_progress_bar=false"], False),
            "train.py, bar": partial(ours, quiet, True),
            "train.py as it is: bar, W&B offline": partial(ours, changes, True),
        }
        if chosen.quick:
            contenders = {label: contenders[label] for label in ("raw loop", "train.py, bar")}
        n_pieces = 4
        taken = turns(contenders, 7 if chosen.quick else 25, n_pieces)[1]
        rows = []
        for label, seconds in taken.items():
            row = [label, Spread([1e3 * each / n_pieces for each in seconds])]
            if label == "raw loop":
                rows.append([*row, "", "", ""])
                continue
            more = [1e3 * (mine - bare) / n_pieces for mine, bare in zip(seconds, taken["raw loop"], strict=True)]
            share = [100 * (ratio - 1) for ratio in ratios(seconds, taken["raw loop"])]
            bound = Bound(f"{label}: more than a raw loop, {name}", share, at_most=LOOP_BOUND, unit="%")
            rows.append([*row, Spread(more), Spread(share), bound])
        yield Table(f"{name}, rounds of {n_pieces} steps", ["", "ms a step", "ms more", "% more", "bound"], rows)


def startup(chosen: Namespace) -> Iterator[Block]:
    """Seconds from the start of a process to its first training step, to its first character, to its help."""
    n_rounds = 4 if chosen.quick else 8  # the first reads the programs from the disk
    config, tokens = prepared([f"config={ROOT}/configs/tiny.yaml", f"data.dir={chosen.folder}/data"], chosen.folder)
    folder = chosen.folder / "data" / "tokens"
    folder.mkdir()
    for split in ("train.bin", "val.bin"):
        shutil.copy(tokens, folder / split)
    tiny = [str(ROOT / "train.py"), f"--config={ROOT}/configs/tiny.yaml", "--trainer.logger=false"]
    tiny += [f"--data.dir={chosen.folder}/data", f"--runs_dir={chosen.folder}/runs"]
    commands = {"minigpt": [*tiny, "--trainer.log_every_n_steps=1"]}
    if chosen.against is not None:
        sizes = {name: getattr(config.model, name) for name in ("n_layer", "n_head", "n_embd")}
        sizes |= {"block_size": config.model.context_length, "batch_size": config.data.batch_size, "eval_iters": 1}
        sizes |= {"device": "cpu", "compile": False, "dataset": "tokens", "gradient_accumulation_steps": 1}
        commands[THEIRS] = [f"{chosen.against}/train.py", *(f"--{name}={size}" for name, size in sizes.items())]
        shutil.copy(chosen.against / "configurator.py", chosen.folder)  # it looks for it where it runs
        with (folder / "meta.pkl").open("wb") as file:
            pickle.dump({"vocab_size": config.model.vocab_size}, file)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(n_rounds):
        for name, command in commands.items():
            taken[name].append(until_first_step(command, chosen.folder))
    taken = {name: each[1:] for name, each in taken.items()}
    rows = []
    for name, each in taken.items():
        bound: str = ""
        if name != THEIRS and THEIRS in taken:
            bound = Bound(
                "start to first step of tiny.yaml: times nanoGPT's seconds",
                ratios(each, taken[THEIRS]),
                at_most=FIRST_STEP,
                limited_by="imports of torch and Lightning",
            )
        rows.append([name, Spread(each), Spread(ratios(each, taken["minigpt"])), bound])
    yield Table(
        "seconds to the first step of configs/tiny.yaml, text prepared", ["", "s", "times minigpt's", "bound"], rows
    )

    run = [*tiny, "--trainer.max_steps=1", "--sampling.prompts=[]", "--attention.enabled=false"]
    subprocess.run([sys.executable, *run], cwd=chosen.folder, check=True, capture_output=True)
    sample = [str(ROOT / "sample.py"), str(next(chosen.folder.glob("runs/*"))), "--prompt=a"]
    rows = []
    for name, command, n_characters, limit in (
        ("python sample.py, to the first character", sample, 2, FIRST_CHARACTER_SECONDS),  # after the prompt
        ("minigpt --help", ["-m", "minigpt", "--help"], None, HELP_SECONDS),
    ):
        seconds = [until_characters(command, n_characters) for _ in range(n_rounds)][1:]
        rows.append([name, Spread(seconds), Bound(name, seconds, at_most=limit, unit="s", limited_by="imports")])
    yield Table("seconds of a command", ["", "s", "bound"], rows)


def until_first_step(command: Sequence[str], folder: Path) -> float:
    """Seconds from the start of a script until it tells of its first step: ours by a file, nanoGPT by a line."""
    began, log = time.perf_counter(), folder / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-u", *command], cwd=folder, stdout=out, stderr=out)
        while not any(folder.glob("runs/*/metrics.csv")) and "\niter 0: " not in log.read_text():
            if process.poll() is not None:
                raise UserError(f"{command[0]} ended before its first step: {log.read_text()[-300:]}")
            time.sleep(0.005)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return seconds


def until_characters(command: Sequence[str], n_characters: int | None) -> float:
    """Seconds from the start of a script to so many of its characters, or to its end."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        n_read = 0
        while n_characters is None or n_read < n_characters:
            found = process.stdout.read(1 if n_characters else 1 << 16)
            if not found:
                break
            n_read += len(found)
        seconds = time.perf_counter() - began
        if n_read < (n_characters or 1):
            raise UserError(f"{command[0]} wrote nothing: {process.stderr.read().decode()[-300:]}")
        process.kill()
    return seconds


PARTS: dict[str, harness.Part] = {
    "steps": partial(steps, NANOGPT),
    "steps-demo": partial(steps, DEMO),
    "steps-10M": partial(steps, LARGE),
    "loop": loop,
    "startup": startup,
    "loss": loss,
}


def a_file(name: str) -> Path:
    """For argparse."""
    if not Path(name).is_file():
        raise ArgumentTypeError(f"{name}: there is no such file")
    return Path(name).absolute()


def main(arguments: list[str]) -> list[Bound]:
    """Measure."""
    options: dict[str, dict[str, Any]] = {
        "--against": {"type": harness.checkout, "help": "a checkout of nanoGPT, which takes part"},
        "--before": {
            "type": Path,
            "help": "a checkout of minigpt as it was, whose eager demo takes part: git worktree add ../before 6c71973",
        },
        "--text": {"type": a_file, "help": "a text to train on by character, such as nanoGPT's input.txt"},
        "--seeds": {"type": int, "nargs": "+", "default": [1337, 1338, 1339], "help": "of `loss`"},
        "--budgets": {
            "type": float,
            "nargs": "+",
            "default": list(BOUNDS),
            "help": "of `loss`: shares of nanoGPT's time",
        },
        "--recipes": {"type": a_file, "nargs": "+", "default": [ROOT / "configs" / "shakespeare_char.yaml"]},
        "--runs": {"type": Path, "default": ROOT / "runs" / "time_to_loss", "help": "where `loss` keeps finished runs"},
    }
    needs = {"loss": ["against", "text"]}
    return harness.main(arguments, PARTS, name="training", title="Training", options=options, needs=needs)


if __name__ == "__main__":
    program.run(main)
