"""A dictionary returns the value of the key that equals the query. Attention returns a weighted mean of all values."""

import torch
from torch.nn import functional as F

from minigpt.lab.study import Study, spread
from minigpt.model.classics import train_lookup
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Full
from minigpt.model.variants.similarities import Hard, Linear, ScaledDot, Similarity, Uniform

N_KEYS, D = 8, 16
TEMPERATURES = (4.0, 1.0, 0.3, 0.1, 0.03, 0.01)
STEPS = 200  # of learning to look up


def error_at(temperature: float, seed: int) -> float:
    """Largest difference between attention and the exact look-up, over the keys of one dictionary."""
    torch.manual_seed(seed)
    key = F.normalize(torch.randn(1, 1, N_KEYS, D), dim=-1)
    value = torch.randn(1, 1, N_KEYS, 3)
    # Each key is asked for: the answer of a dictionary is its own value. sqrt(D) undoes the usual scale.
    found = attend(key, key, value, similarity=ScaledDot(temperature / D**0.5), graph=Full())
    return float((found - value).abs().max())


def run(study: Study) -> None:
    errors = {t: [error_at(t, seed) for seed in study.seeds] for t in TEMPERATURES}
    study.table(
        f"attention as a dictionary of {N_KEYS} keys: largest error of a value",
        ["temperature", "error"],
        [[t, spread(each)] for t, each in errors.items()],
    )
    coldest, warmest = errors[TEMPERATURES[-1]], errors[TEMPERATURES[0]]
    study.finding("At temperature 0.01 attention is the exact look-up", max(coldest) < 1e-3)
    study.finding("At temperature 4 it returns a mixture of all values", min(warmest) > 0.5)

    # Now the query is the key turned by a rotation that the projections must learn.
    similarities: dict[str, Similarity] = {
        "scaled dot": ScaledDot(),
        "hard": Hard(),
        "linear": Linear(),
        "uniform": Uniform(),
    }
    right = {
        name: [train_lookup(similarity, steps=STEPS, n_keys=N_KEYS, seed=seed) for seed in study.seeds]
        for name, similarity in similarities.items()
    }
    study.table(
        f"share of right answers after {STEPS} steps of learning to look up",
        ["similarity", "right"],
        [[name, spread(each)] for name, each in right.items()],
    )
    study.finding("Softmax attention learns the dictionary: more than 0.95 right", min(right["scaled dot"]) > 0.95)
    study.finding(
        "Without a softmax (linear) it stays behind the dictionary", max(right["linear"]) < min(right["scaled dot"])
    )
    study.finding("Without queries and keys (uniform) it guesses", max(right["uniform"]) < 0.5)

    left, middle, bar = study.axes(1, 3)
    for axes, temperature in ((left, 1.0), (middle, 0.1)):
        torch.manual_seed(0)
        key = F.normalize(torch.randn(1, 1, N_KEYS, D), dim=-1)
        weights = attention_weights(key, key, similarity=ScaledDot(temperature / D**0.5), graph=Full())
        axes.imshow(weights[0, 0], vmin=0, vmax=1)
        axes.set(title=f"weights, temperature {temperature:g}", xlabel="key", ylabel="query")
    means = [sum(each) / len(each) for each in right.values()]
    ranges = [(mean - min(each), max(each) - mean) for mean, each in zip(means, right.values(), strict=True)]
    bar.bar(list(right), means, yerr=list(zip(*ranges, strict=True)), capsize=3)
    bar.set(title="learned look-up", ylabel="share right", ylim=(0, 1.05))
