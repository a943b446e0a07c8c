"""A head has one set of weights for each query. To look at k things, are k narrow heads better than a wide one?"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Full
from minigpt.model.variants.similarities import ScaledDot

N_ITEMS, N_NAMES = 8, 16
WIDTH = 32  # C; each of H heads has C / H channels, so the number of parameters is the same
RELATIONS = (2, 4)  # k, things to look at
HEADS = (1, 2, 4, 16)
STEPS, BATCH, LEARNING_RATE = 400, 128, 6e-3


class Model(nn.Module):
    """One attention layer from a question to the items, an MLP, and an answer to each of k parts of the question."""

    def __init__(self, n_head: int, k: int, *, has_mlp: bool) -> None:
        super().__init__()
        self.n_head, self.has_mlp = n_head, has_mlp
        self.first = torch.arange(k) * N_ITEMS  # each relation has N_ITEMS words of its own
        self.item, self.asked = nn.Embedding(k * N_ITEMS, WIDTH), nn.Embedding(k * N_ITEMS, WIDTH)
        self.name = nn.Embedding(N_NAMES, WIDTH)
        self.query, self.key, self.value, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.answers = nn.Linear(WIDTH, k * N_NAMES)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, H, T, C / H)."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def look(self, items: Tensor, names: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The question (B, 1, C), and query, key and value of each head."""
        item = self.item(items + self.first).sum(2) + self.name(names)  # (B, N_ITEMS, C)
        question = self.asked(asked + self.first).sum(1, keepdim=True)  # (B, 1, C)
        heads = self.split(self.query(question)), self.split(self.key(item)), self.split(self.value(item))
        return question, *heads

    def forward(self, items: Tensor, names: Tensor, asked: Tensor) -> Tensor:
        """(B, N_ITEMS, k) words, (B, N_ITEMS) names and (B, k) asked words -> (B, k, N_NAMES) logits."""
        question, query, key, value = self.look(items, names, asked)
        gathered = attend(query, key, value, similarity=ScaledDot(), graph=Full())  # (B, H, 1, C / H)
        x = question + self.proj(gathered.transpose(1, 2).flatten(2))
        x = x + self.mlp(x) if self.has_mlp else x
        return self.answers(x[:, 0]).unflatten(-1, (-1, N_NAMES))


def draw(k: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Items with a word for each relation, all different, and a name; k asked words; and the k items that have them."""
    items = torch.rand(n, N_ITEMS, k).argsort(dim=1)
    asked = torch.randint(N_ITEMS, (n, k))
    found = (items == asked[:, None]).int().argmax(dim=1)  # (B, k)
    return items, torch.randint(N_NAMES, (n, N_ITEMS)), asked, found


def train(n_head: int, k: int, seed: int, *, has_mlp: bool) -> tuple[float, Tensor]:
    """Share of right answers, and (H, k) how much of its weight each head gives to the item of each relation."""
    torch.manual_seed(seed)
    model = Model(n_head, k, has_mlp=has_mlp)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(STEPS):
        items, names, asked, found = draw(k, BATCH)
        loss = F.cross_entropy(model(items, names, asked).flatten(0, 1), names.gather(1, found).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    items, names, asked, found = draw(k, 4000)
    with torch.no_grad():
        right = (model(items, names, asked).argmax(-1) == names.gather(1, found)).float().mean().item()
        _, query, key, _ = model.look(items, names, asked)
        weights = attention_weights(query, key, similarity=ScaledDot(), graph=Full())[:, :, 0]  # (B, H, N_ITEMS)
    return right, weights.gather(2, found[:, None].expand(-1, n_head, -1)).mean(0)


def run(study: Study) -> None:
    relations, heads = (RELATIONS[-1:], (1, 4)) if study.quick else (RELATIONS, HEADS)
    cases = {
        f"{k} relations{', no MLP' * (not has_mlp)}": (k, has_mlp)
        for k in relations
        for has_mlp in ((False,) if study.quick else (False, True))
    }
    trained = {
        (case, n_head): [train(n_head, k, seed, has_mlp=has_mlp) for seed in study.seeds]
        for case, (k, has_mlp) in cases.items()
        for n_head in heads
    }
    right = {key: [share for share, _ in each] for key, each in trained.items()}
    study.table(
        f"share of right answers after {STEPS} steps, width {WIDTH} in all",
        ["task", *(f"{n} head{'s' * (n > 1)} of {WIDTH // n}" for n in heads)],
        [[case, *(spread(right[case, n_head]) for n_head in heads)] for case in cases],
    )
    for case, (k, has_mlp) in cases.items():
        one, enough = right[case, 1], right[case, k]
        study.finding(f"{case}: {k} heads get more than 0.9 right", min(enough) > 0.9)
        if k > 2 or not has_mlp:
            study.finding(f"{case}: one wide head gets less than 0.7 right", max(one) < 0.7)
        else:
            study.finding(f"{case}: the MLP takes apart what one head mixed, more than 0.75 right", min(one) > 0.75)
    last = list(cases)[-1]
    k = cases[last][0]
    if not study.quick:
        narrow, width = right[last, heads[-1]], WIDTH // heads[-1]
        study.finding(f"{last}: heads of {width} channels are too narrow", max(narrow) < min(right[last, k]) - 0.05)
    focus = [weights.max(dim=1).values.min().item() for _, weights in trained[last, k]]
    study.finding(f"{last}: each of {k} heads gives more than 0.8 of its weight to one relation", min(focus) > 0.8)

    lines, picture = study.axes(1, 2)
    for case in cases:
        means = [sum(right[case, n_head]) / len(study.seeds) for n_head in heads]
        low = [mean - min(right[case, n_head]) for mean, n_head in zip(means, heads, strict=True)]
        high = [max(right[case, n_head]) - mean for mean, n_head in zip(means, heads, strict=True)]
        lines.errorbar(heads, means, yerr=[low, high], capsize=3, marker="o", markersize=3, label=case)
    lines.set(title="one layer of one width", xlabel="heads", ylabel="share right", xscale="log", ylim=(0, 1.05))
    lines.set_xticks(heads, list(map(str, heads)))
    lines.minorticks_off()
    lines.legend()
    weights = trained[last, k][0][1]
    picture.imshow(weights, vmin=0, vmax=1)
    picture.set(title=f"weight on the item of each relation\n({last}, seed 0)", xlabel="relation", ylabel="head")
    picture.set_xticks(range(k))
    picture.set_yticks(range(k))
