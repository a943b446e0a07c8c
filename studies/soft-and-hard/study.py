"""Soft attention reads all values, hard attention one. What is the gradient of each, and what does it learn from it?"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Full
from minigpt.model.variants.similarities import Hard, ScaledDot, Similarity

N_KEYS, D, N_DIGITS = 64, 16, 10
STEPS, EARLY, EVERY = 400, 100, 25  # of learning; when to look at it early on; how often to test it
BATCH, LEARNING_RATE = 64, 0.02
REPEATS = 200  # gradients of one batch


class Head(nn.Module):
    """Projections to queries and keys. The query is a key turned by a rotation, which they must learn to undo."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(D, D))[0])
        self.query, self.key = nn.Linear(D, D), nn.Linear(D, D)

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(n, 1, 1, D) asked, (n, 1, N_KEYS, D) keys, their one-hot digits, and (n, N_DIGITS) the right one."""
        key = F.normalize(torch.randn(n, 1, N_KEYS, D), dim=-1)
        value = F.one_hot(torch.randint(N_DIGITS, (n, 1, N_KEYS)), N_DIGITS).float()
        asked = torch.arange(n), 0, torch.randint(N_KEYS, (n,))
        return (key[asked] @ self.rotation)[:, None, None], key, value, value[asked]

    def read(self, similarity: Similarity, asked: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(n, N_DIGITS)."""
        return attend(self.query(asked), self.key(key), value, similarity=similarity, graph=Full())[:, 0, 0]


def attention(similarity: Similarity, head: Head, asked: Tensor, key: Tensor, value: Tensor, right: Tensor) -> Tensor:
    """Squared error of the mean of the values, or of one sampled value with the mean's gradient (straight-through)."""
    return (head.read(similarity, asked, key, value) - right).square().sum(-1).mean()


def reinforce(head: Head, asked: Tensor, key: Tensor, value: Tensor, right: Tensor, *, baseline: bool) -> Tensor:
    """REINFORCE (Williams 1992): the error of a drawn value times the gradient of its log probability."""
    weights = attention_weights(head.query(asked), head.key(key), similarity=ScaledDot(), graph=Full())[:, 0, 0]
    choice = torch.multinomial(weights.detach(), 1)  # (n, 1)
    errors = (value[torch.arange(len(value)), 0, choice[:, 0]] - right).square().sum(-1)
    if baseline:  # better or worse than the batch: the same gradient on average, with less noise
        errors = errors - errors.mean()
    return (errors * weights.gather(1, choice)[:, 0].log()).mean()


Estimator = Callable[..., Tensor]
"""A head and look-ups -> a loss whose gradient trains the head."""
ESTIMATORS: dict[str, Estimator] = {
    "soft": partial(attention, ScaledDot()),
    "straight-through": partial(attention, Hard(sampled=True)),
    "REINFORCE, baseline": partial(reinforce, baseline=True),
    "REINFORCE": partial(reinforce, baseline=False),
}


def gradient(head: Head, estimator: Estimator, *batch: Tensor) -> Tensor:
    """The gradient of all parameters in one vector."""
    gradients = torch.autograd.grad(estimator(head, *batch), list(head.parameters()))
    return torch.cat([each.flatten() for each in gradients])


def values_read(head: Head, estimator: Estimator) -> int:
    """How many values of the first look-up change the gradient when they change."""
    (asked, key, _, _), value, right = head.draw(2), torch.randn(2, 1, N_KEYS, 2), torch.randn(2, 2)
    gradients = []
    for s in range(N_KEYS + 1):
        changed = value.clone()
        changed[0, 0, s : s + 1] += 1  # the last slice is empty: nothing changes
        torch.manual_seed(0)  # the same draws
        gradients.append(gradient(head, estimator, asked, key, changed, right))
    return sum(not torch.equal(each, gradients[-1]) for each in gradients)


def noise(head: Head, estimator: Estimator, repeats: int) -> float:
    """Variance of the gradient of one batch over draws, in units of the square of the soft gradient."""
    batch = head.draw(BATCH)
    drawn = torch.stack([gradient(head, estimator, *batch) for _ in range(repeats)])
    return float(drawn.var(dim=0).sum() / gradient(head, ESTIMATORS["soft"], *batch).square().sum())


def learn(estimator: Estimator, steps: int, seed: int) -> tuple[Head, list[float]]:
    """A trained head, and its share of right digits every few steps, when it reads its best key only."""
    torch.manual_seed(seed)
    head, curve = Head(), list[float]()
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE, fused=True)
    for step in range(steps + 1):
        if step % EVERY == 0:
            *asked, right = head.draw(500)
            curve.append((head.read(Hard(), *asked).argmax(-1) == right.argmax(-1)).float().mean().item())
        loss = estimator(head, *head.draw(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head, curve


def run(study: Study) -> None:
    steps, repeats = (EARLY, REPEATS // 10) if study.quick else (STEPS, REPEATS)
    starts = [learn(ESTIMATORS["soft"], -1, seed)[0] for seed in study.seeds]  # without a step
    curves = {name: [learn(each, steps, seed)[1] for seed in study.seeds] for name, each in ESTIMATORS.items()}
    noises = {name: [noise(head, each, repeats) for head in starts] for name, each in ESTIMATORS.items()}
    read = {name: values_read(starts[0], each) for name, each in ESTIMATORS.items()}
    early, late = ({name: [c[at // EVERY] for c in curves[name]] for name in curves} for at in (EARLY, steps))
    study.table(
        f"a look-up in {N_KEYS} keys; right answers when only the best key is read",
        ["trained by", "values read", "noise of the gradient", f"right, {EARLY} steps", f"right, {steps} steps"],
        [[n, read[n], spread(noises[n]), spread(early[n]), spread(late[n])] for n in curves],
    )
    study.finding("REINFORCE reads one value, the others all", list(read.values()) == [N_KEYS, N_KEYS, 1, 1])
    *smooth, baselined, plain = ESTIMATORS
    study.finding("At ten times the noise or more", 10 * max(noises["straight-through"]) < min(noises[baselined]))
    study.finding(f"The others learn in {EARLY} steps, to more than 0.9", min(min(early[n]) for n in smooth) > 0.9)
    study.finding("REINFORCE does not, to less than 0.6", max(early[plain] + early[baselined]) < 0.6)
    if not study.quick:
        study.finding(f"With a baseline it does in {STEPS}, to more than 0.8", min(late[baselined]) > 0.8)

    line, learning, bars = study.axes(1, 3)
    shares, trained = torch.linspace(0, 1, 301), learn(ESTIMATORS["soft"], EARLY, 0)[0].state_dict()
    still, head, first, look_ups = dict[str, float](), Head(), starts[0].state_dict(), starts[0].draw(4)
    for name, similarity in (("soft", ScaledDot()), ("hard", Hard())):
        errors = list[float]()
        for share in shares:
            head.load_state_dict({name: each.lerp(trained[name], share) for name, each in first.items()})
            errors.append(attention(similarity, head, *look_ups).item())
        line.plot(shares, errors, label=name)
        still[name] = sum(a == b for a, b in pairwise(errors)) / len(shares)
    line.set(title="from the first to the trained weights", xlabel="share of the way", ylabel="error, 4 look-ups")
    line.legend()
    study.finding("Small steps change soft attention, not hard", still["soft"] < 0.1 and still["hard"] > 0.8)
    for name, each in curves.items():
        at, curve = range(0, steps + 1, EVERY), torch.tensor(each)
        learning.plot(at, curve.mean(0), label=name)
        learning.fill_between(at, curve.amin(0), curve.amax(0), alpha=0.2)
    learning.set(title="learning (colours: right)", xlabel="steps", ylabel="share right", ylim=(0, 1.05))
    means = [sum(each) / len(each) for each in noises.values()]
    ranges = [(mean - min(each), max(each) - mean) for mean, each in zip(means, noises.values(), strict=True)]
    colors = [drawn.get_color() for drawn in learning.lines]
    bars.barh(list(noises), means, xerr=list(zip(*ranges, strict=True)), capsize=3, color=colors)
    bars.set(title="noise of the first gradient", xlabel="variance / soft gradient squared", xscale="log")
