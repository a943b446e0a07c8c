"""What looking at attention costs: `python benchmarks/inspection.py --quick`.

looks: the demo's run is trained for some steps with and without looks, in turn, in one process, everything else as by
default: the probe, its files, pictures and page, and an offline W&B run.
causes: each tool that asks why, on models of the demo's and of GPT-2 small's sizes with random weights, in turn, beside
one forward pass.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import harness
import lightning as L
import torch
from harness import Block, Bound, Spread, Table

from minigpt.cli import parsing, program
from minigpt.config import GPTConfig
from minigpt.inspection.ablation import ablation
from minigpt.inspection.attribution import direct_logit_attribution, loss_attribution
from minigpt.inspection.composition import composition_scores
from minigpt.inspection.hooks import run_with_cache
from minigpt.inspection.lens import logit_lens
from minigpt.inspection.patching import Contrast, activation_patching, attribution_patching, path_patching
from minigpt.inspection.qk_attribution import qk_attribution
from minigpt.model.gpt import GPT
from minigpt.training import run as training
from minigpt.training.attention_maps import AttentionMaps

EVERY = 100
"""Steps between two looks whose cost is asked for."""
BOUND = 1.0
"""Percent of the training time that they may take."""
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
    plain, looking, own = [], [], []
    for number in range(n_rounds):
        for enabled in (True, False) if number % 2 else (False, True):
            taken, looks_of_run = trained(chosen.folder, n_steps, between if enabled else None)
            (looking if enabled else plain).append(taken)
            own += looks_of_run
    n_looks = (WARM_UP + n_steps) // between - WARM_UP // between
    more = [(one - other) / n_looks for one, other in zip(looking, plain, strict=True)]
    step = statistics.median(plain) / n_steps
    rows = []
    for what, seconds in (("by its own clock", own), ("by the difference of the runs", more)):
        share = [100 * each / (EVERY * step) for each in seconds]
        bound = Bound(f"looks every {EVERY} steps, {what}: of training", share, at_most=BOUND, unit="%")
        rows.append([what, Spread(seconds), Spread(share), bound])
    yield Table(
        f"one look: {n_rounds} pairs of runs of {n_steps} steps of {1e3 * step:.0f} ms, {n_looks} looks in one of each",
        ["cost of a look", "seconds", f"% of training, every {EVERY} steps", "bound"],
        rows,
    )


def trained(folder: Path, n_steps: int, between: int | None) -> tuple[float, list[float]]:
    """Seconds of some steps of the demo's run, and what its own clock says of each look between them."""
    changes = [f"data.dir={folder}/data", f"runs_dir={folder}/runs", "trainer.max_time=null", "sampling.prompts=[]"]
    changes += [f"trainer.max_steps={WARM_UP + n_steps + 1}", "trainer.limit_val_batches=1"]
    changes += ["attention.enabled=false"] if between is None else [f"attention.every_n_steps={between}"]
    config, _ = parsing.parse_training(["--config=configs/demo.yaml", *(f"--{change}" for change in changes)])
    clock, make_callbacks, own = Clock(), training.make_callbacks, []

    def looked(
        self: AttentionMaps, trainer: L.Trainer, module: L.LightningModule, *, is_last: bool = False, **kind: bool
    ) -> None:
        began = time.perf_counter()
        look(self, trainer, module, is_last=is_last, **kind)
        if not is_last and not kind:
            own.append(time.perf_counter() - began)

    look = AttentionMaps._record
    with (
        mock.patch.object(training, "make_callbacks", lambda *given: [*make_callbacks(*given), clock]),
        mock.patch.object(AttentionMaps, "_record", looked),
    ):
        training.train(config)
    return clock.times[WARM_UP + n_steps] - clock.times[WARM_UP], own


SIZES: dict[str, tuple[GPTConfig, int, int]] = {
    "demo": (GPTConfig(vocab_size=2048, context_length=128, n_layer=4, n_head=4, n_embd=192), 96, 5),
    "GPT-2 small": (GPTConfig.gpt2_family(), 64, 2),
}
"""Model -> config, tokens of the text, and rounds."""
CONTRAST_TOKENS = 16
"""Length of the prompts of patching."""


def tools(model: GPT, T: int) -> dict[str, Callable[[], object]]:
    """Each tool on a random text of T tokens, or on prompts of CONTRAST_TOKENS."""
    V, last = model.config.vocab_size or 0, model.config.n_layer - 1
    text = torch.randint(V, (1, T + 1), generator=torch.manual_seed(0))
    tokens, clean = text[:, :-1], text[:, :CONTRAST_TOKENS]
    corrupted = clean.clone()
    corrupted[0, 2] = (corrupted[0, 2] + 1) % V
    contrast, n = Contrast(clean, corrupted, 1, 2), CONTRAST_TOKENS
    return {
        f"forward pass, {T} tokens": lambda: model(tokens),
        f"all activations in a cache, {T} tokens": lambda: run_with_cache(model, tokens),
        f"logit lens, {T} tokens": lambda: logit_lens(model, tokens).read(text[:, 1:], 5),
        f"direct logit attribution, {T} tokens": lambda: direct_logit_attribution(model, tokens, 1, 2),
        f"loss attribution, {T} tokens": lambda: loss_attribution(model, text),
        f"ablation of every head, {T} tokens": lambda: ablation(model, text),
        f"attribution patching, all sites, {n} tokens": lambda: attribution_patching(model, contrast),
        f"activation patching, heads, {n} tokens": lambda: activation_patching(model, contrast, ["head"]),
        f"activation patching, all sites, {n} tokens": lambda: activation_patching(model, contrast),
        f"path patching from one head, {n} tokens": lambda: path_patching(model, contrast, (0, 0)),
        "composition scores": lambda: composition_scores(model),
        f"QK attribution, {T} tokens": lambda: qk_attribution(model, tokens, last, 0, -1, 0),
    }


def causes(chosen: Namespace) -> Iterator[Block]:
    """Seconds of each tool."""
    for name, (config, T, n_rounds) in SIZES.items():
        if chosen.quick:
            config, T, n_rounds = dataclasses.replace(config, n_layer=2, n_head=2, n_embd=32, vocab_size=64), 24, 2
        torch.manual_seed(0)
        model = GPT(config).eval()
        every = tools(model, T)
        times: dict[str, list[float]] = {each: [] for each in every}
        for _ in range(n_rounds):
            for each, tool in every.items():
                began = time.perf_counter()
                with torch.set_grad_enabled("patching" in each):
                    tool()
                times[each].append(time.perf_counter() - began)
        rows = [[each, Spread(taken)] for each, taken in times.items()]
        yield Table(
            f"{name}'s sizes: {config.n_layer} layers of {config.n_head} heads, {config.n_embd} wide, vocabulary "
            f"{config.vocab_size}; {n_rounds} rounds",
            ["tool", "seconds"],
            rows,
        )


def main(arguments: list[str]) -> list[Bound]:
    """Measure."""
    os.environ["WANDB_MODE"] = "offline"
    parts = {"looks": looks, "causes": causes}
    return harness.main(arguments, parts, name="inspection", title="Looking at attention: what it costs")


if __name__ == "__main__":
    program.run(main)
