"""With one projection for queries and keys, a token attends to another as that one to it. With two, it need not."""

import re
from itertools import islice

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from minigpt.data.synthetic.texts import references
from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attention_weights
from minigpt.model.variants.graphs import Full, Graph, Padding
from minigpt.model.variants.similarities import ScaledDot, Similarity, Symmetric

D, RATE = 16, 0.05  # width of embedding and head; learning rate
HEADS: dict[str, Similarity] = {"two projections": ScaledDot(), "one projection": Symmetric()}

# 1. Relations among 12 tokens: for each token, the one that it must attend to.
N_TOKENS, RELATION_STEPS = 12, 100
GRAPH = Full()
RELATIONS = {
    "star": [0] * 12,  # all to one, as pronouns to a name
    "chain": [0, *range(11)],  # each to the one before; the first to itself
    "ring of 12": [11, *range(11)],  # the same, but the first to the last
    "rings of 3": [1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9],  # rock beats scissors, scissors paper, and paper rock
    "pairs": [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10],  # Riley to dog, and dog to Riley
}
# One vector a token: a scores b above itself only if b's vector is longer (Cauchy and Schwarz), and along a circle
# lengths cannot always rise. Of n tokens in a circle at most n - 1 can be right.
MOST = {"star": 1.0, "chain": 1.0, "ring of 12": 11 / 12, "rings of 3": 2 / 3, "pairs": 1 / 2}

# 2. Pronouns in stories: "she" and whom it means, in both directions.
N_STORIES, STORY_STEPS, BATCH = 600, 120, 32
Batch = tuple[Tensor, Graph, Tensor]  # (B, T) tokens, their graph, and (B, T, S) bool: which keys are right
DIRECTIONS = {"pronoun to name": (True, False), "name to pronoun": (False, True), "both": (True, True)}


class Head(nn.Module):
    """The attention weights of one head that reads tokens and no positions."""

    def __init__(self, vocab_size: int, similarity: Similarity) -> None:
        super().__init__()
        self.similarity = similarity
        self.embedding, self.key = nn.Embedding(vocab_size, D), nn.Linear(D, D, bias=False)
        self.query = nn.Linear(D, D, bias=False) if "query" in similarity.projections else self.key

    def forward(self, tokens: Tensor, graph: Graph) -> Tensor:
        x = self.embedding(tokens)[:, None]  # (B, 1, T, D)
        return attention_weights(self.query(x), self.key(x), similarity=self.similarity, graph=graph)[:, 0]


def fit(head: Head, batches: list[Batch], steps: int) -> Head:
    """Learn to attend to the right keys; a token without any counts for nothing."""
    optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
    for step in range(steps):
        tokens, graph, target = batches[step % len(batches)]
        on_right = (head(tokens, graph) * target).sum(-1)[target.any(-1)]
        loss = -(on_right + 1e-9).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def share_right(head: Head, batches: list[Batch]) -> float:
    """Share of the tokens with a target whose largest weight is on one."""
    best = [head(tokens, graph).argmax(-1, keepdim=True) for tokens, graph, _ in batches]
    hits = [target.gather(-1, at)[target.any(-1)] for at, (*_, target) in zip(best, batches, strict=True)]
    return float(torch.cat(hits).float().mean())


def learn_relation(name: str, similarity: Similarity, seed: int, steps: int) -> tuple[float, Tensor]:
    torch.manual_seed(seed)
    tokens, target = torch.arange(N_TOKENS)[None], torch.eye(N_TOKENS, dtype=torch.bool)[RELATIONS[name]][None]
    batches: list[Batch] = [(tokens, GRAPH, target)]
    head = fit(Head(N_TOKENS, similarity), batches, steps)
    return share_right(head, batches), head(tokens, GRAPH)[0].detach()


def read_stories(n: int, seed: int) -> tuple[list[Batch], int]:
    """Batches of words, each with the links from its pronouns to whom they mean; and the number of words known."""
    words, stories = dict[str, int](), []
    for text, relations in islice(references(seed), n):
        found = list(re.finditer(r"\w+", text))
        place = {match.start(): i for i, match in enumerate(found)}
        links = [(place[r.source[0]], place[r.target[0]]) for r in relations if r.name == "pronoun"]
        stories.append(([words.setdefault(match[0].lower(), len(words) + 1) for match in found], links))
    batches = list[Batch]()
    for start in range(0, n, BATCH):
        rows = stories[start : start + BATCH]
        T = max(len(tokens) for tokens, _ in rows)
        tokens, link = torch.zeros(len(rows), T, dtype=torch.long), torch.zeros(len(rows), T, T, dtype=torch.bool)
        for row, (known, links) in enumerate(rows):
            tokens[row, : len(known)] = torch.tensor(known)
            for source, target in links:
                link[row, source, target] = True
        batches.append((tokens, Padding(tokens > 0, tokens > 0), link))
    return batches, len(words) + 1


def learn_stories(similarity: Similarity, direction: str, seed: int, n: int, steps: int) -> float:
    """Share of held-out mentions that attend most to the other."""
    batches, vocab_size = read_stories(n, seed)
    back, forth = DIRECTIONS[direction]
    batches = [(tokens, graph, (link & back) | (link.mT & forth)) for tokens, graph, link in batches]
    torch.manual_seed(seed)
    n_held_out = len(batches) // 6
    return share_right(fit(Head(vocab_size, similarity), batches[n_held_out:], steps), batches[:n_held_out])


def bars(axes: Axes, groups: dict[str, dict[str, list[float]]], title: str) -> None:
    """Grouped bars, one colour for each head; error bars over seeds."""
    for shift, name in zip((-0.2, 0.2), HEADS, strict=True):
        shares = torch.tensor([group[name] for group in groups.values()])
        at = torch.arange(len(groups)) + shift
        axes.bar(at, shares.mean(1), 0.4, yerr=shares.std(1, correction=0), capsize=3, label=name)
    axes.set(title=title, ylabel="share right", ylim=(0, 1.3), xticks=range(len(groups)), xticklabels=list(groups))
    axes.legend(loc="upper center", ncols=2)


def run(study: Study) -> None:
    names, steps = (("chain", "ring of 12"), 50) if study.quick else (tuple(RELATIONS), RELATION_STEPS)
    heads = HEADS.items()
    learned = {n: {h: [learn_relation(n, s, seed, steps) for seed in study.seeds] for h, s in heads} for n in names}
    right = {n: {h: [share for share, _ in each] for h, each in of.items()} for n, of in learned.items()}
    rows = [[n, *(spread(each) for each in right[n].values()), MOST[n]] for n in names]
    study.table("share of tokens that attend most to the right one", ["relation", *HEADS, "most with one"], rows)
    two, one = ({n: right[n][h] for n in names} for h in HEADS)
    study.finding("Two projections learn every relation", min(min(two[n]) for n in names) > 0.95)
    study.finding("One learns those without a circle", all(min(one[n]) > 0.9 for n in names if MOST[n] == 1))
    study.finding("One never goes round a circle", all(max(one[n]) <= MOST[n] + 1e-6 for n in names))

    size = (200, 40) if study.quick else (N_STORIES, STORY_STEPS)
    ways = list(DIRECTIONS)[study.quick :]
    found = {d: {h: [learn_stories(s, d, seed, *size) for seed in study.seeds] for h, s in heads} for d in ways}
    rows = [[d, *(spread(each) for each in of.values())] for d, of in found.items()]
    study.table("stories: share of held-out mentions that attend most to the other", ["direction", *HEADS], rows)
    *single, both = [[a - b for a, b in zip(*of.values(), strict=True)] for of in found.values()]
    study.finding("In one direction one projection is within 0.1 of two", max(max(each) for each in single) < 0.1)
    study.finding("In both directions at once it is more than 0.2 behind", min(both) > 0.2)

    (first, second), (third, fourth) = study.axes(2, 2, width=5)
    for axes, head in ((first, "two projections"), (second, "one projection")):
        axes.imshow(learned["ring of 12"][head][0][1], vmin=0, vmax=1)
        axes.set(title=f"ring of 12, {head}: weights", xlabel="key", ylabel="query")
    bars(third, right, "relations (line: most with one)")
    third.plot([at + 0.2 for at in range(len(names))], [MOST[name] for name in names], "k_", markersize=18)
    bars(fourth, found, "pronouns in stories")
