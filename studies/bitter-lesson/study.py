"""A window tells a model that near tokens matter most. Is that a help with little text, and in the way with much?"""

import tempfile

import numpy as np
import torch
from torch import Tensor, nn

from minigpt.config import DataConfig, GPTConfig
from minigpt.data.open import open_data
from minigpt.lab.study import Study, spread
from minigpt.model.gpt import GPT
from minigpt.training.loss import model_loss

WINDOWS = {"window": 2, "plain": None}  # tokens that a layer attends to; two layers see 3 bytes, or all 64
CONTEXT, WIDTH, LAYERS = 64, 32, 2
STEPS = {10_000: 100, 80_000: 160, 640_000: 625}  # bytes of text: 10, 2 and 1 passes over it
BATCH, RATE = 16, 6e-3


def read_source(n_documents: int = 200) -> tuple[np.ndarray, np.ndarray, int]:
    """Train and validation bytes, of different files of Python's standard library, and the vocabulary size."""
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig("python_stdlib", tokenizer="bytes", max_documents=n_documents, val_fraction=0.1, dir=folder)
        data = open_data(config, quiet=True)
        train, val = (split.tokens.read(0, len(split.tokens)) for split in (data.train, data.val))
        return train, val, data.tokenizer.vocab_size


def cut(tokens: np.ndarray, n_bytes: int, seed: int) -> Tensor:
    """(n, CONTEXT + 1) pieces from anywhere, so that little text is not of another kind than much."""
    starts = np.random.default_rng(seed).integers(len(tokens) - CONTEXT, size=n_bytes // CONTEXT)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))


def train(window: int | None, vocab_size: int, texts: Tensor, held_out: Tensor, steps: int, seed: int) -> float:
    """Nats per byte on the held-out text. One seed gives both models the same weights, text and order."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size, CONTEXT, LAYERS, n_head=4, n_embd=WIDTH, mlp_hidden=64, window=window))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    # Warm-up, then half the run at the full rate, then linearly to zero.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 20, 2 * (1 - i / steps)))
    passes = -(-steps * BATCH // len(texts))
    order = torch.cat([torch.randperm(len(texts)) for _ in range(passes)])
    for step in range(steps):
        batch = texts[order[step * BATCH : (step + 1) * BATCH]]
        optimizer.zero_grad()
        model_loss(model, batch[:, :-1], batch[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(model_loss(model, held_out[:, :-1], held_out[:, 1:]))


def run(study: Study) -> None:
    train_bytes, val_bytes, vocab_size = read_source()
    held_out = cut(val_bytes, 512 * CONTEXT, seed=0)
    sizes = list(STEPS)[:1] if study.quick else list(STEPS)
    losses = {(name, n): list[float]() for n in sizes for name in WINDOWS}
    for seed in study.seeds:
        for (name, n), each in losses.items():
            steps = STEPS[n] // 2 if study.quick else STEPS[n]
            texts = cut(train_bytes, n, seed + 1)
            each.append(train(WINDOWS[name], vocab_size, texts, held_out, steps, seed))

    # Paired by seed: the spread of the difference is smaller than that of the losses.
    gains = torch.tensor([losses["plain", n] for n in sizes]) - torch.tensor([losses["window", n] for n in sizes])
    rows = [
        [f"{n // 1000} kB", *(spread(losses[name, n]) for name in WINDOWS), spread(gain.tolist())]
        for n, gain in zip(sizes, gains, strict=True)
    ]
    study.table("nats per byte on held-out text", ["text", *WINDOWS, "plain - window"], rows)
    study.finding("From 10 kB the window is better in every seed", bool(gains[0].min() > 0))
    if not study.quick:
        less = bool(gains[-1].mean() < gains[:-1].mean() / 2)
        study.finding("From 640 kB less than half of its gain is left, averaged over seeds", less)

    left, right = study.axes(1, 2)
    for name in WINDOWS:
        values = torch.tensor([losses[name, n] for n in sizes])
        left.errorbar(sizes, values.mean(1), values.std(1, correction=0), label=name, capsize=3)
    left.set(xscale="log", title="held-out loss", xlabel="bytes of text", ylabel="nats per byte")
    left.legend(frameon=False)
    right.axhline(0, color="grey", linewidth=0.8)
    right.errorbar(sizes, gains.mean(1), gains.std(1, correction=0), color="black", marker="o", capsize=3)
    right.set(
        xscale="log", title="above 0 the window is better", xlabel="bytes of text", ylabel="plain - window (nats)"
    )
