"""A softmax must put its weight somewhere. Where does a head look that has nothing to say, and what if it need not?"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig, OptimizerConfig
from minigpt.inspection.ablation import losses
from minigpt.inspection.hooks import hooks, run_with_cache
from minigpt.lab.study import Study, spread
from minigpt.model.gpt import GPT
from minigpt.training.optimizer import make_optimizer

LETTERS, SHORTEST, LONGEST = 32, 6, 12  # of the alphabet, and of a copy
STEPS, EVERY, BATCH = 200, 20, 32
VARIANTS = ("plain", "learned sink", "output gate")
# The first layer sees four tokens, so that one of its heads finds the previous token.
SIZES = {"vocab_size": LETTERS + 1, "context_length": 2 * LONGEST + 1, "n_layer": 2, "n_head": 2, "n_embd": 64}
MODEL = GPTConfig(**SIZES, window=[4, None], qk_norm=False)


def copies(n: int, length: int) -> Tensor:
    """(n, 1 + 2 length) ids: token 0, different random letters, and the same letters again."""
    letters = torch.rand(n, LETTERS).argsort(dim=-1)[:, :length] + 1
    return torch.cat([torch.zeros_like(letters[:, :1]), letters, letters], dim=1)


class Escape(nn.Module):
    """What a head can do instead of looking at a sink. The model has no such setting; hooks build it."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant, self.seen = variant, dict[str, Tensor]()
        n = MODEL.n_embd if variant == "output gate" else MODEL.width_per_head
        self.learned = nn.ParameterList(torch.zeros(MODEL.n_head, n) for _ in range(MODEL.n_layer))

    def attached(self, model: GPT) -> AbstractContextManager[None]:
        gate = {"*.ln1.out": self.read, "*.attn.z": self.gate}
        sink = {"*.attn.q": self.read, "*.attn_scores": self.read, "*.attn.pattern": self.leak}
        return hooks(model, {"plain": {}, "output gate": gate, "learned sink": sink}[self.variant])

    def read(self, activation: Tensor, name: str) -> None:
        self.seen[name] = activation

    def gate(self, z: Tensor, name: str) -> Tensor:
        """z (B, T, H, D) times a number from 0 to 1, which each head computes from what the query's token reads."""
        layer = name.split(".")[1]
        return z * torch.sigmoid(self.seen[f"blocks.{layer}.ln1.out"] @ self.learned[int(layer)].T)[..., None]

    def leak(self, weights: Tensor, name: str) -> Tensor:
        """(B, H, T, S) weights of a softmax with one more score, learned, that belongs to no token."""
        layer = name.split(".")[1]
        query, scores = self.seen[f"blocks.{layer}.attn.q"], self.seen[f"blocks.{layer}.attn.attn_scores"]
        sink = torch.einsum("bthd,hd->bht", query, self.learned[int(layer)]) / query.shape[-1] ** 0.5
        return weights * torch.sigmoid(scores.logsumexp(dim=-1) - sink)[..., None]


class Measured(NamedTuple):
    """The second layer, mean over its heads, on texts that were not trained on."""

    nothing: float
    """Weight on the first token where each letter is new: nothing tells what comes next."""
    something: float
    """The same in the second copy, where the first one tells."""
    value: float
    """Length of the first token's value, in units of the letters' mean."""
    message: float
    """Nats per letter of the first copy that are lost without that value."""
    loss: float
    """Nats per letter of the second copy."""


def measure(model: GPT, tokens: Tensor) -> Measured:
    with torch.no_grad():
        _, cache = run_with_cache(model, tokens[:, :-1], ["blocks.1.attn.pattern", "blocks.1.attn.v"])
        loss = losses(model, tokens).mean(dim=0)
        is_letter = (torch.arange(2 * LONGEST) > 0)[:, None, None]
        with hooks(model, {"blocks.1.attn.v": lambda values, _: values * is_letter}):
            message = losses(model, tokens).mean(dim=0) - loss
    to_first, lengths = cache["pattern", 1][..., 0], cache["v", 1].norm(dim=-1)  # (B, H, T), (B, T, H)
    value = lengths[:, 0] / lengths[:, 1:].mean(dim=1)
    first, second = slice(1, LONGEST + 1), slice(LONGEST + 1, None)
    numbers = to_first[..., first], to_first[..., second], value, message[1:LONGEST], loss[second]
    return Measured(*(float(each.mean()) for each in numbers))


def train(variant: str, seed: int, steps: int) -> list[Measured]:
    """Measurements during training: of step 0, and every EVERY steps."""
    torch.manual_seed(seed)
    held_out, model = copies(64, LONGEST), GPT(MODEL)
    model.escape = escape = Escape(variant)  # its parameters are trained as the model's are
    optimizer = make_optimizer(model, OptimizerConfig())
    found = []
    with escape.attached(model):
        for step in range(steps + 1):
            if step % EVERY == 0:
                found.append(measure(model, held_out))
            length = int(torch.randint(SHORTEST, LONGEST + 1, ()))
            optimizer.zero_grad()
            losses(model, copies(BATCH, length)).mean().backward()
            optimizer.step()
    return found


def run(study: Study) -> None:
    steps = 100 if study.quick else STEPS
    found = {variant: [train(variant, seed, steps) for seed in study.seeds] for variant in VARIANTS}
    last = {variant: Measured(*zip(*(each[-1] for each in runs), strict=True)) for variant, runs in found.items()}
    even = float(np.mean([1 / (t + 1) for t in range(1, LONGEST + 1)]))
    study.table(
        f"after {steps} steps (even weights: {even:.2f} on the first token in the first copy)",
        ["model", "first copy", "second copy", "length of its value", "nats without it", "second copy's loss"],
        [[variant, *map(spread, each)] for variant, each in last.items()],
    )
    plain = last["plain"]
    study.finding("Without a match the first token gets 1.5 times its even share", min(plain.nothing) > 1.5 * even)
    study.finding("With a match it gets less than a twentieth", max(plain.something) < 0.05)
    for variant in VARIANTS[1:]:
        stays = np.mean(last[variant].nothing) > np.mean(plain.nothing) / 2
        study.finding(f"With the {variant} the sink stays: more than half of it", stays)
    study.finding("The sink's value is longer than a letter's", min(plain.value) > 1)
    study.finding("Without its value the first copy loses more than 0.1 nats", min(plain.message) > 0.1)

    over_time, message, value = study.axes(1, 3)
    at = np.arange(0, steps + 1, EVERY)
    for variant, runs in found.items():
        weights = np.array([[each[:2] for each in seed] for seed in runs])  # (seeds, measurements, 2)
        color = over_time.plot(at, weights[..., 0].mean(axis=0), label=variant)[0].get_color()
        over_time.plot(at, weights[..., 1].mean(axis=0), ":", color=color)
        for each in (weights[..., 0], weights[..., 1]):
            over_time.fill_between(at, each.min(axis=0), each.max(axis=0), color=color, alpha=0.2, linewidth=0)
        for axes, numbers in ((message, last[variant].message), (value, last[variant].value)):
            axes.bar(variant, np.mean(numbers), yerr=np.std(numbers), capsize=3, color=color)
    over_time.axhline(even, color="0.6", linewidth=0.8)
    over_time.set(title="weight on the first token\n(dotted: second copy)", xlabel="step", ylim=(0, None))
    over_time.legend(frameon=False)
    message.set(title="loss without its value", ylabel="nats per letter, first copy")
    value.axhline(1, color="0.6", linewidth=0.8)
    value.set(title="length of its value", ylabel="relative to a letter's")
