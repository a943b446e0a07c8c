"""Dividing scores by sqrt(head size) keeps their variance at 1 for any head size. What is that good for?"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.config import GPTConfig
from minigpt.inspection.hooks import run_with_cache
from minigpt.lab.study import Study, spread
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import AttentionSpec, attention_scores, weights_of
from minigpt.model.variants.graphs import Full
from minigpt.model.variants.similarities import ScaledDot

HEAD_SIZES = (4, 32, 256)
# ScaledDot divides by sqrt(D) times a temperature.
TEMPERATURES = {"1": lambda D: D**-0.5, "1/sqrt(D)": lambda D: 1.0, "1/D": lambda D: D**0.5}
N_KEYS, N_VALUES, PAIRS = 16, 8, 8  # of the dictionary to look up in; pairs in a row
STEPS, ROWS, RATE = 200, 32, 3e-3


def at_random(D: int, scale: str, seed: int) -> tuple[float, float, float]:
    """Independent queries and keys of variance 1 -> variance of scores, entropy (share of its most), gradient."""
    torch.manual_seed(seed)
    query, key = torch.randn(2, 1, 1, 256, D)
    similarity = ScaledDot(TEMPERATURES[scale](D))
    spec: AttentionSpec = {"similarity": similarity, "graph": Full(), "key_bias": None, "softcap": None}
    scores = attention_scores(query, key, spec).requires_grad_()
    weights = weights_of(scores, similarity)
    (weights * torch.randn(256)).sum().backward()  # each key has a value, a random number
    entropy = torch.special.entr(weights.detach()).sum(-1).mean() / torch.tensor(256).log()
    assert scores.grad is not None
    return float(scores.detach().var()), round(float(entropy), 4), float(scores.grad.norm(dim=-1).median())


def make_rows(n: int) -> tuple[Tensor, Tensor]:
    """A dictionary of pairs, then its keys in another order; the targets are their values. (n, 2 PAIRS) each."""
    keys, order = (torch.rand(n, each).argsort(1)[:, :PAIRS] for each in (N_KEYS, PAIRS))
    values = torch.randint(N_VALUES, (n, PAIRS))
    pairs, asked = keys * N_VALUES + values, N_KEYS * N_VALUES + keys.gather(1, order)
    return torch.cat([pairs, asked], 1), F.pad(values.gather(1, order), (PAIRS, 0), value=-100)


def score_deviation(model: GPT) -> float:
    """Standard deviation of the scores that the model computes."""
    _, cache = run_with_cache(model, make_rows(64)[0], "blocks.0.attn.attn_scores")
    scores = cache["attn_scores", 0]
    return float(scores[~scores.isneginf()].std())


def train(D: int, scale: str, qk_norm: bool, seed: int, steps: int) -> tuple[float, float, float]:
    """Loss, and deviation of scores before and after training."""
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=N_KEYS * N_VALUES + N_KEYS,
        context_length=2 * PAIRS,
        n_layer=1,
        n_head=1,
        head_dim=D,
        n_embd=64,
        mlp_hidden=64,
        position="none",  # a dictionary has no order
        softmax_temperature=TEMPERATURES[scale](D),
        qk_norm=qk_norm,  # gives queries and keys variance 1; without it, they start small
    )
    model = GPT(config)
    begin = score_deviation(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    losses = []
    for _ in range(steps):
        tokens, targets = make_rows(ROWS)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20, begin, score_deviation(model)


def run(study: Study) -> None:
    sizes, steps = (HEAD_SIZES[-1:], 100) if study.quick else (HEAD_SIZES, STEPS)
    cases = [(D, scale) for scale in TEMPERATURES for D in HEAD_SIZES]
    found = {case: list(zip(*[at_random(*case, seed) for seed in study.seeds], strict=True)) for case in cases}
    study.table(
        "independent queries and keys of variance 1, 256 of each",
        ["scale", "head size", "variance of scores", "entropy, share of uniform", "gradient of a row of scores"],
        [[scale, D, *map(spread, found[D, scale])] for D, scale in cases],
    )
    variances = [each for D in HEAD_SIZES for each in found[D, "1/sqrt(D)"][0]]
    study.finding(
        "With 1/sqrt(D), scores have variance 1 at any head size", 0.8 < min(variances) < max(variances) < 1.2
    )
    widest = HEAD_SIZES[-1]
    study.finding("Without it, the variance is the head size", min(found[widest, "1"][0]) > 0.8 * widest)
    study.finding("and a wide head begins with one key", max(found[widest, "1"][1]) < 0.1)

    trained = {
        (D, scale, qk_norm): list(zip(*[train(D, scale, qk_norm, seed, steps) for seed in study.seeds], strict=True))
        for qk_norm in ((True,) if study.quick else (True, False))
        for scale in TEMPERATURES
        for D in (sizes if qk_norm else sizes[-1:])
    }
    study.table(
        f"one head trained for {steps} steps to look up in a dictionary",
        ["queries and keys", "scale", "head size", "loss", "deviation of scores before", "after"],
        [
            ["variance 1" if qk_norm else "small", scale, D, *map(spread, numbers)]
            for (D, scale, qk_norm), numbers in trained.items()
        ],
    )
    losses = {case: numbers[0] for case, numbers in trained.items()}
    study.finding(
        f"Unscaled, a head of {widest} learns little; with 1/sqrt(D) it learns",
        min(losses[widest, "1", True]) > 2 * max(losses[widest, "1/sqrt(D)", True]),
    )
    if not study.quick:
        study.finding(
            "Small queries and keys do not replace the scale",
            min(losses[widest, "1", False]) > 2 * max(losses[widest, "1/sqrt(D)", False]),
        )
    study.finding(
        "Variance 1 is not what counts: 1/D, which starts nearly uniform, learns faster",
        max(losses[widest, "1/D", True]) < min(losses[widest, "1/sqrt(D)", True]),
    )

    axes = study.axes(1, 3)
    for scale in TEMPERATURES:
        for place, of, sizes_of in (
            (axes[0], lambda D, scale=scale: found[D, scale][0], HEAD_SIZES),
            (axes[1], lambda D, scale=scale: found[D, scale][1], HEAD_SIZES),
            (axes[2], lambda D, scale=scale: losses[D, scale, True], sizes),
        ):
            means = [sum(of(D)) / len(of(D)) for D in sizes_of]
            ranges = [(mean - min(of(D)), max(of(D)) - mean) for mean, D in zip(means, sizes_of, strict=True)]
            place.errorbar(sizes_of, means, yerr=list(zip(*ranges, strict=True)), marker="o", capsize=3, label=scale)
    axes[0].set(title="variance of scores at random", xscale="log", yscale="log", xlabel="head size")
    axes[1].set(title="entropy of weights / log(keys)", xscale="log", xlabel="head size", ylim=(0, 1.05))
    axes[2].set(title=f"loss after {steps} steps", xscale="log", xlabel="head size", ylim=(0, None))
    axes[1].legend(title="scale", frameon=False, loc=(0.6, 0.35))
