"""What training costs, beside nanoGPT, the machine's peak and a bare loop: `benchmarks/training.py steps --quick`.

Our runs are those of `train.py`, Lightning and callbacks included; only a callback that waits for its turn is added.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import statistics
import string
import subprocess
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

import harness
import nanogpt
from harness import Block, Contender, Spread, Table, Turn, ratios, turns

from minigpt import cli
from minigpt.config import Config, GPTConfig

ROOT = Path(__file__).parent.parent
GPT2 = ["model.position=learned", "model.norm=layernorm", "model.mlp=gelu", "model.qk_norm=false", "model.bias=false"]
FAMILIES = {
    "gpt2 family": [*GPT2, "model.tie_embeddings=true", "optimizer.name=adamw"],
    "modern family": ["optimizer.name=adamw"],
    "modern family, Muon": ["optimizer.name=muon"],
}
"""What is set beyond the sizes; the first is nanoGPT's architecture."""
CHARS = ["data.tokenizer=chars", "data.val_fraction=0.1"]
ENDLESS = ["trainer.max_steps=1000000", "trainer.max_time=null", "trainer.val_check_interval=1000000"]
NANOGPT, DEMO, LARGE = "nanoGPT's CPU recipe", "the demo's shape", "10M parameters"
PEAK, SIDE = "matrix product", 2048
LOOP_BOUND = 0.03
"""Of a raw loop's step, what Lightning's may cost more."""


def parse(changes: Sequence[str]) -> Config:
    """Changes as of `train.py`'s command line, without the dashes; those to the default model where no recipe is."""
    return cli.parse_training([f"--{change}" for change in changes])[0]


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


def characters(chosen: Namespace) -> Path:
    """The text that was given, or as good for a step's time: a million random characters, 65 different ones."""
    if chosen.text is not None:
        return chosen.text
    path: Path = chosen.folder / "random.txt"
    alphabet = string.ascii_letters + string.digits + " \n."
    if not path.exists():
        path.write_text(alphabet + "".join(random.Random(0).choices(alphabet, k=1_000_000)), encoding="utf-8")
    return path


def prepared(changes: Sequence[str], folder: Path) -> tuple[Config, Path]:
    """The config with its vocabulary, once its text is prepared, and its train split as nanoGPT reads it."""
    import numpy as np

    from minigpt.data.prepare import open_data
    from minigpt.training.run import with_vocabulary

    config = parse(changes)
    data = open_data(config.data, quiet=True)
    tokens = data.train.tokens.read(0, len(data.train.tokens))
    path = folder / f"{data.manifest.text_fingerprint[:12]}-{data.tokenizer.vocab_size}.bin"
    ends = data.tokenizer.end_of_text if config.data.tokenizer == "chars" else None  # no token of nanoGPT's there
    tokens[tokens != ends].astype(np.uint16).tofile(path)
    return with_vocabulary(config, data), path


def ours(changes: Sequence[str], terminal: bool, turn: Turn) -> None:
    """A contender: each piece of its work is a step of `train.py`."""
    from lightning.pytorch.callbacks import LambdaCallback

    from minigpt.training import run

    make, gate = run.make_callbacks, LambdaCallback(on_train_batch_start=lambda *_: turn())
    with mock.patch.object(run, "make_callbacks", lambda *given: [*make(*given), gate]), watched(terminal):
        run.train(parse(changes))


@contextmanager
def watched(terminal: bool) -> Iterator[None]:
    """Print to a terminal that somebody reads, if there is to be one: then the progress bar is drawn."""
    if not terminal:
        yield
        return
    (screen, keyboard), gone = os.openpty(), subprocess.DEVNULL
    with subprocess.Popen(["cat"], stdin=screen, stdout=gone, stderr=gone), os.fdopen(keyboard, "w") as file:
        os.close(screen)
        with redirect_stdout(file), redirect_stderr(file):
            yield


def theirs(checkout: Path, recipe: nanogpt.Recipe, tokens: Path, turn: Turn) -> None:
    """A contender: nanoGPT's steps."""
    for _ in nanogpt.training(checkout, recipe, tokens):
        turn()


def raw(changes: Sequence[str], turn: Turn) -> None:
    """A contender: our module, batches, optimizer and schedule in the barest loop there is."""
    import lightning as L
    import torch

    from minigpt.data.batches import train_batches
    from minigpt.data.prepare import open_data
    from minigpt.training.module import TrainingModule
    from minigpt.training.optimizer import learning_rate
    from minigpt.training.run import with_vocabulary

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    config = parse(changes)
    data = open_data(config.data, quiet=True)
    config = with_vocabulary(config, data)
    module = TrainingModule(config, data)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.trainer = trainer  # whose number of devices the module asks for
    optimizer, max_steps = module.configure_optimizers(), config.trainer.max_steps
    for step, batch in enumerate(torch.utils.data.DataLoader(train_batches(config, data, n_batches=max_steps), None)):
        turn()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, step / max_steps)
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.trainer.gradient_clip_val)
        optimizer.step()
        module.recent_losses.clear()


def product(turn: Turn) -> None:
    """A contender: a float32 product of two square matrices, for the machine's peak."""
    import torch

    left, right, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    while True:
        turn()
        torch.mm(left, right, out=out)


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
        n_rounds, n_pieces = (2, 3) if chosen.quick else (15, 20 if name == NANOGPT else 10)
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


def like(config: Config) -> nanogpt.Recipe:
    """nanoGPT's recipe at our sizes."""
    sizes = {each: getattr(config.model, each) for each in ("n_layer", "n_head", "n_embd", "context_length")}
    extra = 1 if config.data.tokenizer == "chars" else 0  # our end_of_text
    n_symbols = (config.model.vocab_size or 0) - extra
    return nanogpt.Recipe(**sizes, vocab_size=n_symbols, batch_size=config.data.batch_size, max_steps=10**6)


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
        n_rounds, n_pieces = (2, 3) if chosen.quick else (25, 10)
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


PARTS: dict[str, harness.Part] = {"steps": steps, "loop": loop}


def a_file(name: str) -> Path:
    """For argparse."""
    if not Path(name).is_file():
        raise ArgumentTypeError(f"{name}: there is no such file")
    return Path(name).absolute()


def main(arguments: list[str]) -> None:
    """Measure."""
    options = {
        "--against": {"type": harness.checkout, "help": "a checkout of nanoGPT, which takes part"},
        "--text": {"type": a_file, "help": "a text to train on by character, such as nanoGPT's input.txt"},
    }
    harness.main(arguments, PARTS, name="training", title="Training", options=options)


if __name__ == "__main__":
    cli.run(main)
