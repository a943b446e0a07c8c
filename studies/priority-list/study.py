"""A head's weights, sorted, are a list of tokens by priority. Is its first item the cause, and do heads agree on it?"""

import itertools
import tempfile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import minigpt
from minigpt.data.open import open_data
from minigpt.inspection.hooks import hooks, run_with_cache
from minigpt.lab.study import Study, spread
from minigpt.model.gpt import GPT

T = 32  # tokens of a window; its last one is the query
WINDOWS = 48
RANKS = 12  # items of a list that are drawn
OWN, LAYER, LAYERS = "a head's list and what its keys do in it", "two heads of a layer", "two heads of two layers"
Head = tuple[int, int]  # layer, head


def without_each(model: GPT, tokens: Tensor, heads: list[Head]) -> Tensor:
    """(B, T) nats: divergence of the last prediction when its query cannot attend to a key in these heads."""
    rows = torch.arange(tokens.numel())  # a row for each text and key

    def remove(scores: Tensor, name: str) -> Tensor:
        scores = scores.clone()
        for head in (head for layer, head in heads if name.startswith(f"blocks.{layer}.")):
            scores[rows, head, -1, rows % T] = float("-inf")
        return scores

    with torch.no_grad():
        before = model(tokens)[:, -1:].log_softmax(dim=-1)  # (B, 1, V)
        with hooks(model, {"*.attn_scores": remove}):
            after = model(tokens.repeat_interleave(T, dim=0))[:, -1].log_softmax(dim=-1).unflatten(0, tokens.shape)
    return (before.exp() * (before - after)).sum(dim=-1)


def order(numbers: Tensor) -> Tensor:
    """(..., T) ranks, centred and of length 1: a product of two is Spearman's correlation."""
    ranks = numbers.argsort(dim=-1).argsort(dim=-1).float()
    return F.normalize(ranks - ranks.mean(dim=-1, keepdim=True), dim=-1)


def agreement(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Of two lists of the same tokens, (..., T): how often the first item is the same, and Spearman's correlation."""
    same = (a.argmax(dim=-1) == b.argmax(dim=-1)).float()
    return float(same.mean()), float((order(a) * order(b)).sum(dim=-1).mean())


def mean(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return tuple(np.mean(pairs, axis=0))


def read(study: Study, seed: int, folder: str) -> tuple[GPT, Tensor]:
    """A trained model, and (B, T) held-out tokens."""
    smaller = {"max_steps": 60, "max_documents": 30} if study.quick else {}
    places = {"runs_dir": f"{folder}/runs", "data.dir": f"{folder}/data"}
    trained = minigpt.train(recipe=study.folder / "recipe.yaml", seed=seed, **places, **smaller)
    text = open_data(trained.config.data, quiet=True).val.tokens
    starts = np.linspace(0, len(text) - T, WINDOWS // 2 if study.quick else WINDOWS).astype(int)
    tokens = np.stack([text.read(start, start + T) for start in starts])
    return trained.writer.model, torch.from_numpy(tokens.astype("int64"))


def run(study: Study) -> None:
    by_rank, largest = list[np.ndarray](), list[np.ndarray]()  # of each seed
    same: dict[str, list[tuple[float, float]]] = {}
    models = list[dict[Head, Tensor]]()
    with tempfile.TemporaryDirectory() as folder:
        for seed in study.seeds:
            model, tokens = read(study, seed, folder)
            _, cache = run_with_cache(model, tokens, "*.pattern")
            heads = list(itertools.product(range(model.config.n_layer), range(model.config.n_head)))
            lists = {(i, j): cache["pattern", i][:, j, -1] for i, j in heads}  # (B, T) each
            effects = {head: without_each(model, tokens, [head]) for head in heads}
            together, effect = torch.stack([*lists.values()]).mean(dim=0), without_each(model, tokens, heads)
            for name, pairs in {
                OWN: [agreement(lists[head], effects[head]) for head in heads],
                "the mean list and what the keys do in all heads": [agreement(together, effect)],
                "a head's list and what the keys do in all heads": [agreement(lists[head], effect) for head in heads],
                LAYER: [agreement(lists[a], lists[b]) for a, b in itertools.combinations(heads, 2) if a[0] == b[0]],
                LAYERS: [agreement(lists[a], lists[b]) for a, b in itertools.combinations(heads, 2) if a[0] != b[0]],
                "a head on two texts: positions alone": [agreement(each, each.roll(1, 0)) for each in lists.values()],
            }.items():
                same.setdefault(name, []).append(mean(pairs))
            ranked = torch.stack([*lists.values()]).sort(dim=-1, descending=True)
            done = torch.stack([*effects.values()]).gather(-1, ranked.indices)
            by_rank.append(np.asarray(done.mean(dim=(0, 1)))[:RANKS])
            largest.append(np.asarray(ranked.values.mean(dim=(0, 1)))[:RANKS])
            models.append(lists)
    for a, b in itertools.combinations(models, 2):
        every = [[agreement(x, y) for y in b.values()] for x in a.values()]
        same.setdefault("two heads of two seeds", []).append(mean([pair for row in every for pair in row]))
        best = [max(row, key=lambda pair: pair[1]) for row in every]
        same.setdefault("a head and the most similar one of another seed", []).append(mean(best))
    columns = ["lists of the same tokens", "first item is the same", "Spearman's correlation"]
    study.table(
        f"agreement of two lists of {T} tokens (by chance: {1 / T:.2f} and 0)",
        columns,
        [[name, *map(spread, zip(*each, strict=True))] for name, each in same.items()],
    )
    first, other = np.stack(by_rank)[:, 0], np.stack(by_rank)[:, 1]
    study.table(
        "without one item of a head's list",
        ["item", "weight", "nats that the prediction diverges"],
        [
            [i + 1, spread(w), spread(nats)]
            for i, (w, nats) in enumerate(zip(np.stack(largest).T, np.stack(by_rank).T, strict=True))
        ][:5],
    )

    own, others = same[OWN], [pair for name in (LAYER, LAYERS) for pair in same[name]]
    study.finding("Of what a head does, its first item is the cause more often than not", min(own)[0] > 0.5)
    study.finding(
        "Without the first item a prediction moves three times as far as without the second", min(first / other) > 3
    )
    study.finding(
        "Two heads hardly agree: the first item is the same in less than a quarter of the lists", max(others)[0] < 0.25
    )

    bar, ranks = study.axes(1, 2, width=5)
    firsts = {name: [first for first, _ in same[name]] for name in reversed(same)}
    bar.barh(list(firsts), [np.mean(each) for each in firsts.values()], xerr=[np.std(each) for each in firsts.values()])
    bar.axvline(1 / T, color="0.6", linewidth=0.8)
    bar.set(title="share of lists with the same first item", xlim=(0, 1))
    for label, seeds in (("weight", largest), ("nats without it", by_rank)):
        curves = np.stack(seeds) / np.stack(seeds)[:, :1]
        ranks.errorbar(
            range(1, RANKS + 1), curves.mean(axis=0), yerr=curves.std(axis=0), marker="o", capsize=2, label=label
        )
    ranks.set(title="items of a list, relative to the first", xlabel="item")
    ranks.legend(frameon=False)
