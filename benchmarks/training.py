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

import harness
from contenders import CHARS, ENDLESS, ROOT, SIDE, characters, like, ours, parse, prepared, product, raw, theirs
from harness import Block, Contender, Spread, Table, ratios, turns
from time_to_loss import BOUNDS, loss

from minigpt.cli import program
from minigpt.config import GPTConfig
from minigpt.errors import UserError

GPT2 = [
    "model.position=learned",
    "model.norm=layernorm",
    "model.mlp=gelu_exact",
    "model.qk_norm=false",
    "model.bias=false",
]
ADAMW = ["optimizer.name=adamw", "optimizer.learning_rate=1e-3"]
"""With nanoGPT's learning rate: another one leads to other numbers, which are not always as quickly computed with."""
FAMILIES = {
    "gpt2 family": [*GPT2, "model.tie_embeddings=true", *ADAMW],
    "modern family": ADAMW,
    "modern family, Muon": ["optimizer.name=muon"],
}
"""What is set beyond the sizes; the first is nanoGPT's architecture."""
NANOGPT, DEMO, LARGE = "nanoGPT's CPU recipe", "the demo's shape", "10M parameters"
PEAK = "matrix product"
LOOP_BOUND = 0.03
"""Of a raw loop's step, what Lightning's may cost more."""


def shape(n_layer: int, n_head: int, n_embd: int, context_length: int, batch_size: int) -> list[str]:
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "context_length": context_length}
    return [*(f"model.{name}={size}" for name, size in sizes.items()), f"data.batch_size={batch_size}"]


def shapes(chosen: Namespace) -> dict[str, tuple[list[str], list[str]]]:
    """Sizes and text of each shape, and the recipe that trains at it, if there is one."""
    demo = parse([f"config={ROOT}/configs/demo.yaml"])
    model, data = demo.model, demo.data
    demo_sizes = shape(model.n_layer, model.n_head, model.n_embd, model.context_length, data.batch_size)
    where = [f"data.dir={chosen.folder}/data", f"runs_dir={chosen.folder}/runs", *ENDLESS]
    chars = [f"data.source={characters(chosen)}", *CHARS, *where]
    stdlib = [f"data.source={data.source}", f"data.tokenizer={data.tokenizer}", *where]
    return {
        NANOGPT: ([*shape(4, 4, 128, 64, 12), *chars], [f"config={ROOT}/configs/shakespeare_char.yaml", *chars]),
        # it has a time limit, so Lightning's timer runs
        DEMO: ([*demo_sizes, *stdlib], [f"config={ROOT}/configs/demo.yaml", *stdlib, "trainer.max_time=99:00:00:00"]),
        LARGE: ([*shape(6, 6, 384, 256, 4), *chars], []),
    }


def flops_a_token(config: GPTConfig) -> int:
    """Of a training step: 6 N + 12 L H D T (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B).

    Each of the N parameters of matrices that a token is multiplied with takes part in two operations forward and four
    backward; an embedding that is only looked up does not count, a head does, tied or not. In L layers, H heads of
    width D multiply with T keys and T values; the formula has all of them, though the causal half is never looked at.
    """
    from minigpt.model.gpt import GPT

    model = GPT(config)
    n = model.n_parameters - (0 if config.tie_embeddings else (config.vocab_size or 0) * config.n_embd)
    n -= model.position_embedding.weight.numel() if config.position == "learned" else 0
    return 6 * n + 12 * config.n_layer * config.n_head * config.width_per_head * config.context_length


def steps(chosen: Namespace) -> Iterator[Block]:
    """A step's time, tokens per second and MFU, of several shapes."""
    for name, (sizes, own) in list(shapes(chosen).items())[: 1 if chosen.quick else None]:
        config, tokens = prepared([*sizes, *FAMILIES["gpt2 family"]], chosen.folder)
        variants = {f"minigpt, {family}": [*sizes, *changes] for family, changes in FAMILIES.items()}
        variants |= {f"minigpt, {Path(own[0]).name}": own} if own else {}
        compiled = []
        if name == NANOGPT and not chosen.quick:
            compiled = ["minigpt, gpt2 family, compiled"]
            variants[compiled[0]] = [*variants["minigpt, gpt2 family"], "compile=true"]
        contenders: dict[str, Contender] = {PEAK: product}
        for label, changes in variants.items():
            contenders[label] = partial(ours, [*changes, "trainer.logger=false"], False)
        configs = {label: parse(changes).model for label, changes in variants.items()}
        if chosen.against is not None:
            recipe = like(config)
            contenders["nanoGPT"] = partial(theirs, chosen.against, recipe, tokens)
            if compiled:
                compiled.append("nanoGPT, compiled")
                faster = dataclasses.replace(recipe, compile=True)
                contenders["nanoGPT, compiled"] = partial(theirs, chosen.against, faster, tokens)
        n_rounds, n_pieces = (2, 3) if chosen.quick else (15, 20 if name == NANOGPT else 4)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(chosen.folder / "compiled")  # empty: the first time counts
        first, taken = turns(contenders, n_rounds, n_pieces)
        base = "nanoGPT" if "nanoGPT" in contenders else "minigpt, gpt2 family"
        peak = [2 * SIDE**3 * n_pieces / seconds for seconds in taken.pop(PEAK)]
        n_tokens = n_pieces * config.data.batch_size * config.model.context_length
        rows = []
        for label, seconds in sorted(taken.items(), key=lambda item: item[0] != base):
            own_model = configs.get(label, config.model)
            flops = flops_a_token(dataclasses.replace(own_model, vocab_size=config.model.vocab_size))
            rates = [n_tokens / each for each in seconds]
            shares = [100 * flops * rate / most for rate, most in zip(rates, peak, strict=True)]
            row = [label, Spread([1e3 * each / n_pieces for each in seconds]), Spread(rates)]
            row += [Spread(ratios(taken[base], seconds)), Spread(shares)]
            rows.append([*row, f"{first[label] - statistics.median(seconds):.1f}" if label in compiled else ""])
        yield Table(
            f"{name}: {', '.join(each.rpartition('.')[2] for each in sizes[:5])}; {n_rounds} rounds of {n_pieces} "
            f"steps; peak by a product {SIDE} cubed {statistics.median(peak) / 1e9:.0f} GFLOP/s",
            ["", "ms a step", "tokens/s", f"times {base}'s tokens/s", "MFU, %", "compiling, s"],
            rows,
        )


def loop(chosen: Namespace) -> Iterator[Block]:
    """What Lightning's loop costs over a raw one, with what users get beside it."""
    every, os.environ["WANDB_MODE"] = shapes(chosen), "offline"
    for name, changes in {DEMO: every[DEMO][1], LARGE: every[LARGE][0]}.items():
        if chosen.quick and name != DEMO:
            continue
        prepared(changes, chosen.folder)
        quiet = [*changes, "trainer.logger=false"]
        contenders: dict[str, Contender] = {
            "raw loop": partial(raw, changes),
            "train.py, no bar, no logger": partial(ours, [*quiet, "trainer.enable_progress_bar=false"], False),
            "train.py, bar": partial(ours, quiet, True),
            "train.py as it is: bar, W&B offline": partial(ours, changes, True),
        }
        n_rounds, n_pieces = (2, 3) if chosen.quick else (25, 4)
        taken = turns(contenders, n_rounds, n_pieces)[1]
        rows = []
        for label, seconds in taken.items():
            more = [1e3 * (mine - bare) / n_pieces for mine, bare in zip(seconds, taken["raw loop"], strict=True)]
            share = [100 * (ratio - 1) for ratio in ratios(seconds, taken["raw loop"])]
            verdict = "pass" if statistics.median(share) <= 100 * LOOP_BOUND else "above"
            row = [label, Spread([1e3 * each / n_pieces for each in seconds])]
            rows.append([*row, *(["", "", ""] if label == "raw loop" else [Spread(more), Spread(share), verdict])])
        yield Table(
            f"{name}, {n_rounds} rounds of {n_pieces} steps",
            ["", "ms a step", "ms more", "% more", f"bound {LOOP_BOUND:.0%}"],
            rows,
        )


def startup(chosen: Namespace) -> Iterator[Block]:
    """Seconds from the start of a process to its first training step."""
    config, tokens = prepared([f"config={ROOT}/configs/tiny.yaml", f"data.dir={chosen.folder}/data"], chosen.folder)
    folder = chosen.folder / "data" / "tokens"
    folder.mkdir()
    for split in ("train.bin", "val.bin"):
        shutil.copy(tokens, folder / split)
    commands = {"minigpt": [str(ROOT / "train.py"), f"--config={ROOT}/configs/tiny.yaml", "--trainer.logger=false"]}
    commands["minigpt"] += [f"--data.dir={chosen.folder}/data", f"--runs_dir={chosen.folder}/runs"]
    commands["minigpt"] += ["--trainer.log_every_n_steps=1"]
    if chosen.against is not None:
        sizes = {name: getattr(config.model, name) for name in ("n_layer", "n_head", "n_embd")}
        sizes |= {"block_size": config.model.context_length, "batch_size": config.data.batch_size, "eval_iters": 1}
        sizes |= {"device": "cpu", "compile": False, "dataset": "tokens", "gradient_accumulation_steps": 1}
        commands["nanoGPT"] = [f"{chosen.against}/train.py", *(f"--{name}={size}" for name, size in sizes.items())]
        shutil.copy(chosen.against / "configurator.py", chosen.folder)  # it looks for it where it runs
        with (folder / "meta.pkl").open("wb") as file:
            pickle.dump({"vocab_size": config.model.vocab_size}, file)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(3 if chosen.quick else 8):
        for name, command in commands.items():
            seconds = until_first_step(command, chosen.folder)
            if number:  # the first reads the programs from the disk
                taken[name].append(seconds)
    rows = [[name, Spread(each), Spread(ratios(each, taken["minigpt"]))] for name, each in taken.items()]
    yield Table("seconds to the first step of configs/tiny.yaml, text prepared", ["", "s", "times minigpt's"], rows)


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


PARTS: dict[str, harness.Part] = {"steps": steps, "loop": loop, "loss": loss, "startup": startup}


def a_file(name: str) -> Path:
    """For argparse."""
    if not Path(name).is_file():
        raise ArgumentTypeError(f"{name}: there is no such file")
    return Path(name).absolute()


def main(arguments: list[str]) -> None:
    """Measure."""
    options: dict[str, dict[str, Any]] = {
        "--against": {"type": harness.checkout, "help": "a checkout of nanoGPT, which takes part"},
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
    harness.main(arguments, PARTS, name="training", title="Training", options=options, needs=needs)


if __name__ == "__main__":
    program.run(main)
