"""Kernel regression, associative memory and table look-up as special cases of attention.

The functions only reshape; the mathematics is `attend` with a similarity and a graph. docs/attention.md has results.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Adjacency, Full, Graph
from minigpt.model.variants.similarities import Gaussian, Hopfield, Similarity


def regress(
    x: Tensor, x_train: Tensor, y_train: Tensor, similarity: Similarity, *, graph: Graph | None = None
) -> Tensor:
    """Nadaraya-Watson regression: a prediction is the average of the training values, weighted by nearness.

        f(x) = sum_s K(x - x_s) y_s / sum_s K(x - x_s),  K(u) = exp(-u^2 / (2 width^2)) for `Gaussian(1, width)`.

    `Uniform()` makes it the mean of all values. Nadaraya 1964 (https://doi.org/10.1137/1109020), Watson 1964
    (https://www.jstor.org/stable/25049340); as attention: Zhang et al. 2021, Dive into Deep Learning
    (https://d2l.ai/chapter_attention-mechanisms-and-transformers/attention-pooling.html).

    Args:
        x: (T,) points to predict at: the queries.
        x_train: (S,) points with a known value: the keys.
        y_train: (S,) those values.
        similarity: the kernel's logarithm, on the CPU.
        graph: which training points a prediction uses; all when not given.

    Returns:
        (T,) float64 predictions on the CPU.
    """
    # In float64, as far from 0 a Gaussian's score is the small difference of the large numbers q·k and |k|^2 / 2. On
    # the CPU, as not every device has float64.
    query, key, value = (points.cpu().double()[None, None, :, None] for points in (x, x_train, y_train))
    return attend(query, key, value, similarity=similarity, graph=Full() if graph is None else graph)[0, 0, :, 0]


def leave_one_out_error(x_train: Tensor, y_train: Tensor, similarity: Similarity) -> Tensor:
    """Mean squared error where each of the (S,) points is predicted from the others."""
    # A graph without its diagonal: with it, a width of 0 would predict every point by itself, without error.
    others = Adjacency(~torch.eye(len(x_train), dtype=torch.bool))
    return F.mse_loss(regress(x_train, x_train, y_train, similarity, graph=others), y_train.cpu().double())


def fit_width(x_train: Tensor, y_train: Tensor, steps: int = 20) -> Gaussian:
    """The Gaussian kernel whose width has a leave-one-out error that no width near it beats, found by its gradient.

    L-BFGS with a line search (Liu and Nocedal 1989, https://doi.org/10.1007/BF01589116) on the logarithm of the width.

    Args: x_train (S,), at least two different points; y_train (S,); at most `steps` steps, fewer once it is found.

    Raises:
        UserError: points without a spread.
    """
    # Starting from the spread of the points: metres and millimetres lead to the same predictions.
    kernel = Gaussian(1, width=x_train.cpu().double().std().item())
    optimizer = torch.optim.LBFGS(kernel.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def evaluate() -> float:
        optimizer.zero_grad()
        error = leave_one_out_error(x_train, y_train, kernel)
        error.backward()
        return error.item()

    optimizer.step(evaluate)
    return kernel.requires_grad_(False)


def retrieve(query: Tensor, patterns: Tensor, beta: float, steps: int = 1) -> Tensor:
    """A modern Hopfield network: retrieves patterns from corrupted ones.

        xi <- X^T softmax(beta X xi), `steps` times; the rows of X are the patterns.

    Equation 3 of Ramsauer et al. 2021 (https://arxiv.org/abs/2008.02217): keys and values are both the patterns.

    Args:
        query: (T, D) corrupted patterns, each on its own.
        patterns: (S, D) memory.
        beta: inverse temperature. Towards 0 it averages all patterns, in between similar ones; when large it finds one.
        steps: updates; one is enough where patterns lie well apart.

    Returns:
        (T, D).
    """
    memory = patterns[None, None]
    return attend(query[None, None], memory, memory, similarity=Hopfield(beta, steps), graph=Full())[0, 0]


def train_lookup(similarity: Similarity, *, steps: int = 200, n_keys: int = 8, seed: int = 0) -> float:
    """Share of table lookups that learned attention gets right.

    Each of `n_keys` random directions holds a random digit. The query is one of them, turned by a fixed rotation, which
    the projections must learn from the squared error of the looked-up digit.

    `ScaledDot()`, `Hard()` and `Hard(sampled=True)` get nearly every lookup right; `Linear()`, without a softmax to
    sharpen its weights, 0.8, even in 1000 steps; `Uniform()` 0.3, by naming the most frequent digit.

    Args:
        similarity: with settings for one head; a copy is trained.
        steps: optimizer steps of 128 lookups each.
        n_keys: keys in a lookup.
        seed: of the rotation, the weights, the data and the choices.

    Returns:
        The share of 2000 new lookups that give the right digit.
    """
    D, n_digits = 16, 10
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rotation = torch.linalg.qr(torch.randn(D, D))[0]
        to_query, to_key, similarity = nn.Linear(D, D), nn.Linear(D, D), copy.deepcopy(similarity)
        model = nn.ModuleList([to_query, to_key, similarity]).train()

        def look_up(n: int) -> tuple[Tensor, Tensor]:
            """(n, n_digits) what is gathered, and the right answers as one-hot vectors."""
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
            gathered, right = look_up(2000)
        return (gathered.argmax(-1) == right.argmax(-1)).float().mean().item()
