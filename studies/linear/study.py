"""Without a softmax the sums over keys become one running state of a fixed size. How many pairs fit into it?"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Causal, Full
from minigpt.model.variants.linear_attention import causal_linear_attention
from minigpt.model.variants.similarities import Linear, ScaledDot, Similarity

T = 256  # tokens of the comparison of both forms
N_KEYS, N_VALUES = 128, 16  # words that can be a key, and that can be a value
WIDTHS = (4, 8, 16)  # of a head: D
PAIRS = (2, 4, 8, 16, 32, 64)  # to recall
STEPS, LOOKUPS, LEARNING_RATE = 300, 512, 0.02


def one_by_one(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, int]:
    """Causal linear attention of one token after the other, and how many numbers are kept between two tokens."""
    query, key = Linear().features(query), Linear().features(key)
    state, outputs = torch.zeros(()), []
    for q, k, v in zip(*(x.split(1, dim=2) for x in (query, key, value)), strict=True):
        output, state = causal_linear_attention(q, k, v, state if outputs else None)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state.numel()


class Recall(nn.Module):
    """A head that reads pairs of a key and a value, and is asked for the value of each key."""

    def __init__(self, D: int, similarity: Similarity) -> None:
        super().__init__()
        self.query, self.key = nn.Embedding(N_KEYS, D), nn.Embedding(N_KEYS, D)
        self.similarity, self.readout = similarity, nn.Linear(N_VALUES, N_VALUES)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        """(B, n) keys and values -> (B, n, N_VALUES) logits of the value of each key."""
        query, key = self.query(keys)[:, None], self.key(keys)[:, None]  # (B, 1, n, D)
        value = F.one_hot(values, N_VALUES).float()[:, None]
        return self.readout(attend(query, key, value, similarity=self.similarity, graph=Full())[:, 0])


def draw(n: int, lookups: int) -> tuple[Tensor, Tensor]:
    """(B, n) different keys, each with a random value."""
    B = lookups // n
    return torch.rand(B, N_KEYS).argsort(dim=1)[:, :n], torch.randint(N_VALUES, (B, n))


def recall(similarity: Similarity, D: int, n: int, steps: int, seed: int) -> float:
    """Share of right answers about n pairs, after training on n pairs."""
    torch.manual_seed(seed)
    model = Recall(D, similarity)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(steps):
        keys, values = draw(n, LOOKUPS)
        loss = F.cross_entropy(model(keys, values).flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    keys, values = draw(n, 16 * LOOKUPS)
    with torch.no_grad():
        return (model(keys, values).argmax(-1) == values).float().mean().item()


def run(study: Study) -> None:
    differences, ranks, state = [], {"linear": list[int](), "softmax": list[int]()}, 0
    D = WIDTHS[-1]
    for seed in study.seeds:
        torch.manual_seed(seed)
        query, key, value = (torch.randn(1, 1, T, D, dtype=torch.float64) for _ in range(3))
        serial, state = one_by_one(query, key, value)
        parallel = attend(query, key, value, similarity=Linear(), graph=Causal())
        differences.append(float((serial - parallel).abs().max()))
        for name, similarity in (("linear", Linear()), ("softmax", ScaledDot())):
            weights = attention_weights(query, key, similarity=similarity, graph=Full())
            ranks[name].append(int(torch.linalg.matrix_rank(weights[0, 0])))
    study.table(
        f"one head of width {D}, {T} tokens",
        ["similarity", "numbers kept between tokens", "rank of the weights"],
        [["linear", state, spread(ranks["linear"])], ["softmax", 2 * T * D, spread(ranks["softmax"])]],
    )
    study.finding("Token by token with a running state gives what all tokens at once give", max(differences) < 1e-10)
    study.finding(f"Without a softmax, {T} x {T} weights have a rank of at most {D}", max(ranks["linear"]) <= D)

    widths, pairs = (WIDTHS[:1], (2, 8)) if study.quick else (WIDTHS, PAIRS)
    steps = STEPS // 2 if study.quick else STEPS
    # The narrowest head is enough for the softmax: a wider one recalls more.
    heads = {f"softmax, width {widths[0]}": (ScaledDot(), widths[0])}
    heads |= {f"linear, width {D}": (Linear(), D) for D in widths}
    right = {
        name: [[recall(similarity, D, n, steps, seed) for seed in study.seeds] for n in pairs]
        for name, (similarity, D) in heads.items()
    }
    study.table(
        f"share of right answers after {steps} steps",
        ["one head", *(f"{n} pairs" for n in pairs)],
        [[name, *map(spread, each)] for name, each in right.items()],
    )
    softmax, *linear = right.values()
    few, many = ([linear[i][pairs.index(int(D * part))] for i, D in enumerate(widths)] for part in (0.5, 2))
    study.finding(
        f"With a softmax, a width of {widths[0]} recalls up to {pairs[-1]} pairs: more than 0.9 right",
        min(map(min, softmax)) > 0.9,
    )
    study.finding("Without it, pairs of half the width are recalled: more than 0.85 right", min(map(min, few)) > 0.85)
    study.finding("Pairs of twice the width are not: less than 0.7 right", max(map(max, many)) < 0.7)

    by_pairs, by_share = study.axes(1, 2)
    for (name, (_, D)), each in zip(heads.items(), right.values(), strict=True):
        means = [sum(values) / len(values) for values in each]
        low = [mean - min(values) for mean, values in zip(means, each, strict=True)]
        high = [max(values) - mean for mean, values in zip(means, each, strict=True)]
        style = {"yerr": [low, high], "capsize": 3, "marker": "o", "markersize": 3, "label": name}
        by_pairs.errorbar(pairs, means, **style)
        by_share.errorbar([n / D for n in pairs], means, **style)
    by_pairs.set(title="recall by number of pairs", xlabel="pairs", ylabel="share right", xscale="log", ylim=(0, 1.05))
    by_share.set(title="recall by pairs for each channel", xlabel="pairs / width", xscale="log", ylim=(0, 1.05))
    for axes, ticks in ((by_pairs, pairs), (by_share, (0.125, 0.5, 2, 8))):
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    by_pairs.legend()
