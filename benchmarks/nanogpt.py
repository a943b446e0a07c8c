"""A checkout of nanoGPT and a file of tokens -> its model in training, step by step, as its own script trains it.

The model and the optimizer are the checkout's; the loop is told anew, since its script does everything when imported.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What its script is given; by default what its README gives it on a CPU."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    context_length: int = 64
    vocab_size: int = 65
    batch_size: int = 12
    learning_rate: float = 1e-3
    final_lr_fraction: float = 0.1
    warmup_steps: int = 100
    max_steps: int = 2000
    dropout: float = 0.0
    seed: int = 1337
    compile: bool = False
    device: str = "cpu"
    accumulate: int = 1
    """Micro-batches a step."""


def training(checkout: Path, recipe: Recipe, tokens: Path) -> Iterator[tuple[int, Any]]:
    """(Steps done, model), before each micro-batch and after the last step. Args: tokens is a file of uint16."""
    import torch

    sys.path.insert(0, str(checkout))
    theirs = importlib.import_module("model")
    torch.manual_seed(recipe.seed)
    sizes = {"n_layer": recipe.n_layer, "n_head": recipe.n_head, "n_embd": recipe.n_embd, "bias": False}
    sizes |= {"block_size": recipe.context_length, "vocab_size": recipe.vocab_size, "dropout": recipe.dropout}
    is_cuda = recipe.device == "cuda"
    if is_cuda:
        torch.set_float32_matmul_precision("high")
    model = theirs.GPT(theirs.GPTConfig(**sizes)).to(recipe.device)
    optimizer = model.configure_optimizers(0.1, recipe.learning_rate, (0.9, 0.99), recipe.device)
    fast = torch.compile(model) if recipe.compile else model
    batch = random_windows(tokens, recipe)
    for step in range(recipe.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        for _ in range(recipe.accumulate):
            yield step, model
            with torch.autocast(recipe.device, torch.bfloat16, enabled=is_cuda):
                _, loss = fast(*batch)
            batch = random_windows(tokens, recipe)  # where it does so, to have the next one while a GPU works
            (loss / recipe.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or not is_cuda:  # a GPU is waited for; the script logs every tenth step
            print(f"step {step}: loss {loss.item():.4f}")
    yield recipe.max_steps, model


def random_windows(tokens: Path, recipe: Recipe) -> list[Any]:
    """Tokens and targets (B, T), from anywhere, by a map that is made anew for each batch."""
    import numpy as np
    import torch

    mapped = np.memmap(tokens, dtype=np.uint16, mode="r")
    T = recipe.context_length
    starts = torch.randint(len(mapped) - T, (recipe.batch_size,)).tolist()
    windows = ([mapped[at + n : at + n + T].astype(np.int64) for at in starts] for n in (0, 1))
    batch = [torch.stack([torch.from_numpy(window) for window in rows]) for rows in windows]
    if recipe.device == "cuda":  # the copy goes on while the GPU works
        return [each.pin_memory().to("cuda", non_blocking=True) for each in batch]
    return batch


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to a share of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / (recipe.warmup_steps + 1)
    over = (step - recipe.warmup_steps) / (recipe.max_steps - recipe.warmup_steps)
    falling = 0.5 * (1.0 + math.cos(math.pi * over))
    return recipe.learning_rate * (recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * falling)
