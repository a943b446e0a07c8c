"""A dictionary returns the value of the key that equals the query. Attention returns a weighted mean of all values."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Full
from minigpt.model.variants.similarities import Hard, Linear, ScaledDot, Similarity, Uniform

N_KEYS, D = 8, 16
TEMPERATURES = (4.0, 1.0, 0.3, 0.1, 0.03, 0.01)
STEPS = 200  # of learning to look up
WORDS = 8  # of the dictionary in the plane
PLANE_STEPS = 300


def random_keys(seed: int) -> Tensor:
    """(1, 1, N_KEYS, D) directions."""
    return F.normalize(torch.randn(1, 1, N_KEYS, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def at(temperature: float) -> ScaledDot:
    """The softmax at a temperature, without the usual scale of 1 / sqrt(D)."""
    return ScaledDot(temperature / D**0.5)


def error_at(temperature: float, seed: int) -> float:
    """Largest difference between attention and the exact look-up, over the keys of one dictionary."""
    key, value = random_keys(seed), torch.randn(1, 1, N_KEYS, 3, generator=torch.Generator().manual_seed(seed + 1000))
    # Each key is asked for: the answer of a dictionary is its own value.
    found = attend(key, key, value, similarity=at(temperature), graph=Full())
    return float((found - value).abs().max())


def train_lookup(
    similarity: Similarity, *, steps: int = STEPS, n_keys: int = N_KEYS, seed: int = 0
) -> tuple[float, Tensor]:
    """Learn to look up a digit; returns the share of 2000 new look-ups that are right, and the learned map.

    Each of `n_keys` random directions holds a random digit. The query is one of them, turned by a fixed rotation, which
    the projections must learn from the squared error of the looked-up digit. The map is M (D, D) of the score k·M k'
    of the key k that is asked for and a key k'. A copy of the similarity is trained.
    """
    n_digits = 10
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rotation = torch.linalg.qr(torch.randn(D, D))[0]
        to_query, to_key, similarity = nn.Linear(D, D), nn.Linear(D, D), copy.deepcopy(similarity)
        model = nn.ModuleList([to_query, to_key, similarity]).train()

        def look_up(n: int) -> tuple[Tensor, Tensor]:  # (n, n_digits) what is gathered, and the right answers
            key = F.normalize(torch.randn(n, 1, n_keys, D), dim=-1)
            value = F.one_hot(torch.randint(n_digits, (n, 1, n_keys)), n_digits).float()
            right = torch.arange(n), 0, torch.randint(n_keys, (n,))
            query = (key[right] @ rotation)[:, None, None]
            gathered = attend(to_query(query), to_key(key), value, similarity=similarity, graph=Full())
            return gathered[:, 0, 0], value[right]

        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.mse_loss(*look_up(128))
            if loss.requires_grad:  # Uniform reads neither queries nor keys
                loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            gathered, answer = look_up(2000)
        share = (gathered.argmax(-1) == answer.argmax(-1)).float().mean().item()
        return share, (rotation @ to_query.weight.T @ to_key.weight).detach()


def learn_words(seed: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (WORDS, 2) of a dictionary that learns where its words lie: each query asks for its own word."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (nn.Parameter(torch.randn(WORDS, 2, generator=generator)) for _ in range(2))
    optimizer = torch.optim.Adam([query, key], lr=0.05)
    for _ in range(PLANE_STEPS):
        optimizer.zero_grad()
        value = torch.eye(WORDS)  # so that the weights are what is gathered
        found = attend(query[None, None], key[None, None], value[None, None], similarity=ScaledDot(), graph=Full())
        F.mse_loss(found[0, 0], value, reduction="sum").backward()
        optimizer.step()
    return query.detach(), key.detach()


def run(study: Study) -> None:
    errors = {t: [error_at(t, seed) for seed in study.seeds] for t in TEMPERATURES}
    rows = [[f"{t:g}", spread(np.round(each, 4))] for t, each in errors.items()]
    study.table(f"attention as a dictionary of {N_KEYS} keys: largest error of a value", ["temperature", "error"], rows)
    study.finding("At temperature 0.01 attention is the exact look-up", max(errors[0.01]) < 1e-3)
    study.finding("At temperature 4 it returns a mixture of all values", min(errors[4.0]) > 0.5)

    # Now the query is the key turned by a rotation that the projections must learn.
    kinds: dict[str, Similarity] = {"softmax": ScaledDot(), "hard": Hard(), "linear": Linear(), "uniform": Uniform()}
    steps = STEPS // 2 if study.quick else STEPS
    learned = {
        name: [train_lookup(each, steps=steps, seed=seed) for seed in study.seeds] for name, each in kinds.items()
    }
    right = {name: [share for share, _ in lookups] for name, lookups in learned.items()}
    rows = [[name, spread(each)] for name, each in right.items()]
    study.table(f"share of right answers after {steps} steps of learning to look up", ["similarity", "right"], rows)
    study.finding("Softmax attention learns the dictionary: more than 0.95 right", min(right["softmax"]) > 0.95)
    study.finding("Without a softmax (linear) it stays below 0.9", max(right["linear"]) < 0.9)
    study.finding("Without queries and keys (uniform) it stays below 0.4", max(right["uniform"]) < 0.4)

    # What was learned: to turn the query back, and keys that lie apart.
    maps, off = [each for _, each in learned["softmax"]], ~torch.eye(D, dtype=torch.bool)
    ratio = [float(each.diagonal().mean() / each[off].std()) for each in maps]
    words = [learn_words(seed) for seed in study.seeds]
    found = [float(((query @ key.T).argmax(-1) == torch.arange(WORDS)).float().mean()) for query, key in words]
    angles = [np.sort(np.arctan2(key[:, 1], key[:, 0])) for _, key in words]
    gaps = [float(np.diff(each, append=each[0] + 2 * np.pi).min()) * 180 / np.pi for each in angles]
    rows = [
        ["diagonal of the learned map, in units of the other entries' deviation", spread(ratio)],
        [f"share of {WORDS} words in the plane that find their own key", spread(found)],
        [f"smallest angle between two of their keys, degrees ({360 / WORDS:g} if evenly spaced)", spread(gaps)],
    ]
    study.table("what was learned", ["", "mean and spread over seeds"], rows)
    study.finding("The projections undo the rotation: their map is nearly a multiple of the identity", min(ratio) > 4)
    study.finding(f"{WORDS} words find their keys in two channels", min(found) == 1)
    study.finding("Their keys lie apart: at least half as far as evenly spaced ones", min(gaps) > 180 / WORDS)

    (warm, cold, curve), (bar, image, plane) = study.axes(2, 3)
    for axes, temperature in ((warm, 1.0), (cold, 0.1)):
        key = random_keys(0)
        axes.imshow(attention_weights(key, key, similarity=at(temperature), graph=Full())[0, 0], vmin=0, vmax=1)
        axes.set(title=f"weights, temperature {temperature:g}", xlabel="key", ylabel="query")
    mean, half = np.mean(list(errors.values()), axis=1), np.ptp(list(errors.values()), axis=1) / 2
    curve.errorbar(TEMPERATURES, mean, yerr=half, capsize=3, marker="o")
    curve.set(title="error of the look-up", xlabel="temperature", ylabel="largest error", xscale="log")
    shares = np.array(list(right.values()))
    bar.bar(list(right), shares.mean(1), yerr=np.ptp(shares, axis=1) / 2, capsize=3)
    bar.set(title="learned look-up", ylabel="share right", ylim=(0, 1.05))
    image.imshow(maps[0])
    image.set(title="learned map, rotation undone", xlabel="channel of a key", ylabel="channel asked for")
    query, key = words[0]
    for q, k in zip(query, key, strict=True):
        (line,) = plane.plot([0, q[0]], [0, q[1]])
        plane.plot(*k, "o", color=line.get_color())
    plane.set(title=f"{WORDS} words: keys (dots), queries (lines)", aspect="equal")
