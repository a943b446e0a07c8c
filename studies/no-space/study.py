"""Attention has no notion of order, until positions, or the causal mask, give it one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.config import GPTConfig
from minigpt.lab.study import Study, spread
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Full
from minigpt.model.variants.similarities import ScaledDot

POSITIONS = ("none", "learned", "sinusoidal", "rotary", "alibi")
TASKS = ("majority", "distance", "order", "copying")
MODELS = (TASKS[:3], TASKS[3:])  # copying is slow to learn, and gets a model of its own
LETTERS, N_LETTERS = 8, 32  # of the first three tasks; of copying
BACK = 3  # of the task distance
LENGTH, LONG = 24, 48  # letters of a row: in training, and beyond it
STEPS, ROWS, RATE = 250, 24, 1e-2  # rows of a step, over all its tasks


def make_gpt(position: str, n_layer: int, seed: int) -> GPT:
    """A small model; its vocabulary has the letters, and a token for each task, which begins a row."""
    torch.manual_seed(seed)
    sizes = {"n_layer": n_layer, "n_head": 2, "n_embd": 32, "mlp_hidden": 64, "context_length": LONG + 1}
    return GPT(GPTConfig(vocab_size=N_LETTERS + len(TASKS), position=position, **sizes))


def make_rows(task: str, n: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets, (n, 1 + length) each; -100 where nothing is asked."""
    letters = torch.randint(LETTERS, (n, length))
    if task == "majority":  # which letter is the most frequent one so far? Each row has a favourite
        letters = torch.where(torch.rand(n, length) < 0.4, torch.randint(LETTERS, (n, 1)), letters)
        first, second = F.one_hot(letters, LETTERS).cumsum(1).topk(2).values.unbind(-1)
        targets = F.one_hot(letters, LETTERS).cumsum(1).argmax(-1).masked_fill(first == second, -100)
    elif task == "distance":  # which letter stood BACK letters ago?
        targets = F.pad(letters[:, :-BACK], (BACK, 0), value=-100)
    elif task == "order":  # once both are there: which came first, letter 0 or letter 1?
        zeros, ones = ((letters == letter).cumsum(1) > 0 for letter in (0, 1))
        first = (zeros.sum(1) < ones.sum(1)).long()  # who came first has been there for longer
        targets = first[:, None].where(zeros & ones, -100)
    else:  # a row of different letters, over and over: which letter is next?
        period = torch.randint(4, length // 2 + 1, (n, 1))
        shuffled, index = torch.rand(n, N_LETTERS).argsort(1), torch.arange(length + 1)
        letters = shuffled.gather(1, index % period)
        letters, targets = letters[:, :-1], letters[:, 1:].where(index[:-1] >= period, -100)
    start = torch.full((n, 1), N_LETTERS + TASKS.index(task))
    return torch.cat([start, letters], 1), F.pad(targets, (1, 0), value=-100)


def train(position: str, tasks: Sequence[str], seed: int, steps: int) -> GPT:
    """Train one model of two layers on some tasks at once."""
    model = make_gpt(position, 2, seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        rows = [make_rows(task, ROWS // len(tasks), LENGTH) for task in tasks]
        tokens, targets = (torch.cat(each) for each in zip(*rows, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        rate.step()
    return model


@torch.no_grad()
def share_right(model: GPT, task: str, length: int, begin: int) -> float:
    """Share of right answers from letter `begin` of rows of a length on."""
    tokens, targets = make_rows(task, 256, length)
    right = model(tokens).argmax(-1) == targets
    return float(right[:, 1 + begin :][targets[:, 1 + begin :] >= 0].float().mean())


@torch.no_grad()
def change_by_permutation(position: str, n_layer: int, seed: int) -> float:
    """How far an untrained model's logits at the last token move when all earlier tokens change places."""
    model = make_gpt(position, n_layer, seed)
    tokens = torch.randint(N_LETTERS, (64, LENGTH))
    permuted = torch.cat([tokens[:, torch.randperm(LENGTH - 1)], tokens[:, -1:]], 1)
    before, after = model(tokens)[:, -1], model(permuted)[:, -1]
    return float((after - before).norm() / before.norm())


def run(study: Study) -> None:
    # Without a mask: permuted tokens give permuted outputs.
    torch.manual_seed(0)
    x, order = torch.randn(1, 2, LENGTH, 16), torch.randperm(LENGTH)
    before, after = (attend(each, each, each, similarity=ScaledDot(), graph=Full()) for each in (x, x[:, :, order]))
    study.finding(
        "On the full graph, permuted tokens give permuted outputs",
        float((after - before[:, :, order]).abs().max()) < 1e-5,
    )
    moved = {
        (n, position): [change_by_permutation(position, n, seed) for seed in study.seeds]
        for n in (1, 2)
        for position in POSITIONS
    }
    study.table(
        "under the causal mask: change of the last logits when all earlier tokens are permuted",
        ["positions", "1 layer", "2 layers"],
        [[position, spread(moved[1, position]), spread(moved[2, position])] for position in POSITIONS],
    )
    study.finding("One causal layer without positions does not see order", max(moved[1, "none"]) < 1e-5)
    study.finding("Two do: the mask itself tells early from late", min(moved[2, "none"]) > 1e-3)

    positions, models = (("none", "rotary"), MODELS[:1]) if study.quick else (POSITIONS, MODELS)
    tasks = [task for model in models for task in model]
    right: dict[tuple[str, str, int], list[float]] = {}
    for position in positions:
        for of_model in models:
            for seed in study.seeds:
                model = train(position, of_model, seed, STEPS)
                for task in of_model:
                    for length in (LENGTH, LONG):  # the second half of a row
                        right.setdefault((position, task, length), []).append(
                            share_right(model, task, length, length // 2)
                        )
    for length, title in ((LENGTH, "within"), (LONG, "beyond")):
        study.table(
            f"share of right answers, {title} the length of training",
            ["positions", *tasks],
            [[position, *(spread(right[position, task, length]) for task in tasks)] for position in positions],
        )
    study.finding("The majority needs no positions: more than 0.9 right", min(right["none", "majority", LENGTH]) > 0.9)
    study.finding("A distance does: less than half right without", max(right["none", "distance", LENGTH]) < 0.5)
    study.finding("With rotary positions, more than 0.9", min(right["rotary", "distance", LENGTH]) > 0.9)
    if not study.quick:
        # One success shows that a model can; seeds that fail show that training does not always find it.
        study.finding("The mask can tell which came first: a seed has 0.9", max(right["none", "order", LENGTH]) > 0.9)
        study.finding("Rotary positions copy: more than 0.9", min(right["rotary", "copying", LENGTH]) > 0.9)
        others = [right[p, task, LENGTH] for p in POSITIONS if p != "rotary" for task in ("distance", "copying")]
        study.finding("In these steps the other kinds do neither: less than half", max(map(max, others)) < 0.5)
        beyond = [right["rotary", task, LONG] for task in ("distance", "copying")]
        study.finding("Beyond the length of training rotary is right less often", max(map(max, beyond)) < 0.9)

    for axes, length, title in zip(study.axes(1, 2, width=5.5), (LENGTH, LONG), ("within", "beyond"), strict=True):
        for i, position in enumerate(positions):
            shares = [right[position, task, length] for task in tasks]
            means = [sum(each) / len(each) for each in shares]
            ranges = [(mean - min(each), max(each) - mean) for mean, each in zip(means, shares, strict=True)]
            places = [place + 0.16 * (i - len(positions) / 2) for place in range(len(tasks))]
            axes.bar(places, means, 0.15, yerr=list(zip(*ranges, strict=True)), capsize=2, label=position)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set(title=f"share right, {title} the length of training", ylim=(0, 1.05))
    axes.legend(title="positions", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
