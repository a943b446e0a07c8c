"""Weights near zero add little to a weighted sum. What does a trained model lose without them, and what is saved?"""

import tempfile

import numpy as np
import torch
from torch import Tensor

import minigpt
from minigpt.data.open import open_data
from minigpt.data.shards import Split
from minigpt.inspection.ablation import losses
from minigpt.inspection.hooks import HookFunction, hooks
from minigpt.lab.study import Study, spread
from minigpt.model.gpt import GPT

KEPT = (1, 2, 4, 8, 16, 32)  # keys of each query
THRESHOLDS = (0.001, 0.003, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2)  # of a weight
PRICES = (0.03, 0.1, 0.3)  # nats that all products would cost, while thresholds are learned
CHEAP = 0.01  # nats per token that we are ready to lose
LEARNING_STEPS = 40
SETTINGS = {"largest": KEPT, "nearest": KEPT, "random": KEPT, "threshold": THRESHOLDS, "learned": PRICES}


def largest(k: int) -> HookFunction:
    return lambda weights, _: weights >= weights.topk(min(k, weights.shape[-1]), dim=-1).values[..., -1:]


def nearest(k: int) -> HookFunction:
    return lambda weights, _: torch.ones_like(weights).triu(1 - k)


def random(k: int) -> HookFunction:
    draw = torch.Generator().manual_seed(0)
    return lambda weights, name: largest(k)(torch.rand(weights.shape, generator=draw).tril(), name)


def above(threshold: float | dict[str, Tensor]) -> HookFunction:
    """Weights above a threshold, for all heads or of each, and always the largest weight."""

    def kept(weights: Tensor, name: str) -> Tensor:
        least = threshold[name].exp()[:, None, None] if isinstance(threshold, dict) else threshold
        return weights >= weights.amax(dim=-1, keepdim=True).clamp(max=least)

    return kept


def learn(model: GPT, windows: Tensor, price: float) -> dict[str, Tensor]:
    """The logarithm of a threshold for each head, by gradient descent on loss + price * share of products."""
    names = [f"blocks.{layer}.attn.pattern" for layer in range(model.config.n_layer)]
    thresholds = {name: torch.full((model.config.n_head,), 0.02).log().requires_grad_() for name in names}
    optimizer = torch.optim.Adam(thresholds.values(), lr=0.1)
    shares = list[Tensor]()

    def soften(weights: Tensor, name: str) -> Tensor:
        # A threshold is a step, which has no gradient: a sigmoid of log weight - log threshold stands in for it.
        kept = torch.sigmoid(4 * (weights.clamp(min=1e-9).log() - thresholds[name][:, None, None]))
        shares.append(kept[weights > 0].mean())
        return weights * kept / (weights * kept).sum(dim=-1, keepdim=True)

    with hooks(model, {"blocks.*.attn.pattern": soften}):
        for some in windows.view(LEARNING_STEPS, -1, windows.shape[-1]):
            shares.clear()
            loss = losses(model, some).mean() + price * torch.stack(shares).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: each.detach() for name, each in thresholds.items()}


def measure(model: GPT, windows: Tensor, kept: HookFunction) -> tuple[float, float]:
    """Share of the products with values that is left, and loss in nats per token."""
    shares = list[float]()

    def skip(weights: Tensor, name: str) -> Tensor:
        some = weights * kept(weights, name)
        shares.append(float((some > 0).sum() / (weights > 0).sum()))
        return some / some.sum(dim=-1, keepdim=True)

    with torch.no_grad(), hooks(model, {"blocks.*.attn.pattern": skip}):
        loss = float(losses(model, windows).mean())
    return round(float(np.mean(shares)), 4), loss


def share_at(curve: np.ndarray) -> float:
    """Where a curve (n, 2) of share and nats adds CHEAP, between its points."""
    curve = curve[curve[:, 0].argsort()[::-1]]
    return float(np.interp(CHEAP, np.maximum.accumulate(curve[:, 1]), curve[:, 0]))


def windows_of(split: Split, n: int, size: int) -> Tensor:
    """(n, size) tokens, spread over a split."""
    starts = np.linspace(0, len(split.tokens) - size, n).astype(int)
    return torch.from_numpy(np.stack([split.tokens.read(at, at + size) for at in starts]).astype("int64"))


def curves_of(model: GPT, train: Tensor, val: Tensor) -> dict[str, np.ndarray]:
    """Rule -> (n, 2): share of products and loss added, for each of its settings."""
    rules = {
        "largest": [largest(k) for k in KEPT],
        "nearest": [nearest(k) for k in KEPT],
        "random": [random(k) for k in KEPT],
        "threshold": [above(t) for t in THRESHOLDS],
        "learned": [above(learn(model, train, price)) for price in PRICES],
    }
    whole = measure(model, val, above(0.0))[1]
    return {rule: np.array([measure(model, val, kept) for kept in each]) - [0, whole] for rule, each in rules.items()}


def run(study: Study) -> None:
    found = list[dict[str, np.ndarray]]()
    with tempfile.TemporaryDirectory() as folder:
        for seed in study.seeds:
            smaller = {"max_steps": 60, "max_documents": 30} if study.quick else {}
            places = {"runs_dir": f"{folder}/runs", "data.dir": f"{folder}/data"}
            trained = minigpt.train(recipe=study.folder / "recipe.yaml", seed=seed, **places, **smaller)
            model, data = trained.writer.model.requires_grad_(False), open_data(trained.config.data, quiet=True)
            size = trained.config.model.context_length + 1
            train, val = windows_of(data.train, 8 * LEARNING_STEPS, size), windows_of(data.val, 64, size)
            found.append(curves_of(model, train, val))
    by_rule = {rule: np.stack([each[rule] for each in found]) for rule in found[0]}  # (seeds, n, 2)
    study.table(
        "the k largest, nearest or random keys of each query, or those above a threshold",
        ["rule", "k, threshold or price", "share of products", "nats added"],
        [
            [rule, setting, *map(spread, by_rule[rule][:, i].T)]
            for rule, settings in SETTINGS.items()
            for i, setting in enumerate(settings)
        ],
    )
    enough = {rule: [share_at(curve) for curve in by_rule[rule]] for rule in ("largest", "threshold", "learned")}
    title = f"share of products that is left where {CHEAP} nats are added"
    study.table(title, ["rule", "share"], [[rule, spread(each)] for rule, each in enough.items()])

    added = {rule: each[..., 1] for rule, each in by_rule.items()}  # (seeds, n)
    study.finding("Only the 8 largest weights, a quarter, add less than 0.03 nats", added["largest"][:, 3].max() < 0.03)
    for rule in ("nearest", "random"):
        worse = (added[rule] - added["largest"])[:, :4]  # k up to 8
        study.finding(f"As many {rule} ones add over 0.01 nats more", worse.mean(axis=0).min() > 0.01)
    single = [np.interp(each["learned"][1, 0], *each["threshold"][::-1].T) for each in found]
    more = float(np.mean(added["learned"][:, 1] - single))
    study.finding("At equal shares, learned thresholds add at most 0.005 nats more than a single one", more < 0.005)

    for axes, top in zip(plots := study.axes(1, 2, width=5), (0.5, 0.05), strict=True):
        for rule, each in by_rule.items():
            (share, nats), spreads = each.mean(axis=0).T, each.std(axis=0).T
            axes.errorbar(share, nats, xerr=spreads[0], yerr=spreads[1], marker="o", capsize=2, label=rule)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="share of products with values", ylabel="nats per token added", ylim=(-0.1 * top, top))
    plots[0].legend(frameon=False, loc="upper right")
