"""Points, patterns and lookups -> the answers that older methods give, each of them one call of `attend`.

Attention holds kernel regression (1964), associative memory (1982) and table lookup as special cases. The functions
here only reshape: the mathematics is `attend` with a similarity and a graph, so whoever knows one of these methods can
read attention through it. Numbers measured with them are in the documentation, their claims in the tests.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model.attention import attend
from minigpt.model.graphs import Adjacency, Full, Graph
from minigpt.model.similarities import Gaussian, Hopfield, Similarity


def regress(
    x: Tensor, x_train: Tensor, y_train: Tensor, similarity: Similarity, *, graph: Graph | None = None
) -> Tensor:
    """Nadaraya-Watson regression: a prediction is the average of the training values, weighted by nearness.

        f(x) = sum_s K(x - x_s) y_s / sum_s K(x - x_s),  K(u) = exp(-u^2 / (2 width^2)) for `Gaussian(1, width)`.

    `Uniform()` makes it the mean of all values. Nadaraya 1964 (https://doi.org/10.1137/1109020), Watson 1964
    (https://www.jstor.org/stable/25049340); as attention: Zhang et al., Dive into Deep Learning, section 11.2
    (https://d2l.ai/chapter_attention-mechanisms-and-transformers/attention-pooling.html).

    In float64, as a Gaussian's score is the small difference of the large q·k and |k|^2 / 2 where points lie far from 0.

    Args:
        x: (T,) points to predict at: the queries.
        x_train: (S,) points with a known value: the keys.
        y_train: (S,) those values.
        similarity: the kernel's logarithm.
        graph: which training points a prediction hears; all when not given.

    Returns:
        (T,) float64 predictions.
    """
    query, key, value = (points.double()[None, None, :, None] for points in (x, x_train, y_train))
    return attend(query, key, value, similarity=similarity, graph=graph or Full())[0, 0, :, 0]


def leave_one_out_error(x_train: Tensor, y_train: Tensor, similarity: Similarity) -> Tensor:
    """Mean squared error where each of the (S,) points is predicted from the others: a graph without its diagonal.

    With the diagonal, a width of 0 would predict every point by itself, without error.
    """
    others = Adjacency(~torch.eye(len(x_train), dtype=torch.bool, device=x_train.device))
    return F.mse_loss(regress(x_train, x_train, y_train, similarity, graph=others), y_train.double())


def fit_width(x_train: Tensor, y_train: Tensor, steps: int = 100) -> Gaussian:
    """The Gaussian kernel whose width makes the leave-one-out error smallest, found by gradient descent.

    Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980) on the logarithm of the width, from the spread of the
    points: so points in metres and in millimetres get the same kernel, a thousand times wider.

    Args: x_train (S,) and y_train (S,), at least two different points.
    """
    kernel = Gaussian(1, width=x_train.double().std().item()).to(x_train.device)
    optimizer = torch.optim.Adam(kernel.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        leave_one_out_error(x_train, y_train, kernel).backward()
        optimizer.step()
    return kernel.requires_grad_(False)


def retrieve(query: Tensor, patterns: Tensor, beta: float, steps: int = 1) -> Tensor:
    """A modern Hopfield network: what a memory of patterns makes of a corrupted one.

        xi <- X^T softmax(beta X xi), `steps` times, with the patterns as rows of X: equation 3 of Ramsauer et al. 2021
        (https://arxiv.org/abs/2008.02217). Attention is one step whose keys and values are both the patterns.

    Args:
        query: (T, D) corrupted patterns, each on its own.
        patterns: (S, D) the memory.
        beta: inverse temperature: towards 0 all patterns are averaged, in between the similar ones, and a large beta
            retrieves one.
        steps: updates; one is enough where patterns lie well apart.

    Returns:
        (T, D).
    """
    memory = patterns[None, None]
    return attend(query[None, None], memory, memory, similarity=Hopfield(beta, steps), graph=Full())[0, 0]


def hopfield_energy(query: Tensor, patterns: Tensor, beta: float) -> Tensor:
    """What a step of `retrieve` never raises.

        E(xi) = -log(sum_s exp(beta x_s·xi)) / beta + xi·xi / 2 + log(S) / beta + max_s |x_s|^2 / 2

    Equation 2 of Ramsauer et al. 2021 (https://arxiv.org/abs/2008.02217); the last two terms are constants that keep it
    at 0 or above. Its gradient is xi - retrieve(xi): a step of attention is a step of gradient descent, of length 1.

    Args: query (T, D), patterns (S, D), beta as for `retrieve`.

    Returns:
        (T,).
    """
    overlap = torch.logsumexp(beta * query @ patterns.T, dim=-1) - torch.tensor(float(len(patterns))).log()
    return (query.square().sum(-1) + patterns.square().sum(-1).max()) / 2 - overlap / beta


def train_lookup(similarity: Similarity, *, steps: int = 200, n_keys: int = 8, seed: int = 0) -> float:
    """How often learned attention looks up the right value: soft, or by a hard choice that has no gradient of its own.

    Of `n_keys` random directions one is the query's, turned by a rotation that the model is not told; the answer is the
    digit stored with that key. Queries and keys get a learned projection each, trained by squared error on new data in
    each step, so nothing can be learned by heart.

    `ScaledDot()` averages and shifts its weights smoothly. `Hard()` takes one key's digit, and learns only because its
    backward pass pretends to have been the softmax (straight through; Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432). `Hard(sampled=True)` tries keys by their probability while training (Xu et al.
    2015, https://arxiv.org/abs/1502.03044) and takes the best when measured. `Uniform()` cannot look anything up.

    Args:
        similarity: with settings for one head; it is copied, not trained itself.
        steps: optimizer steps of 128 lookups.
        n_keys: keys in a lookup.
        seed: of rotation, weights, data and choices.

    Returns:
        The share of 2000 new lookups that give the right digit; guessing gives about 0.1.
    """
    D, n_digits = 16, 10
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rotation = torch.linalg.qr(torch.randn(D, D))[0]
        model = nn.ModuleList([nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False), copy.deepcopy(similarity)])
        to_query, to_key, chosen = model

        def look_up(n: int) -> tuple[Tensor, Tensor]:
            """(n, n_digits) what is gathered, and the right answers as one-hot vectors."""
            key = F.normalize(torch.randn(n, 1, n_keys, D), dim=-1)
            value = F.one_hot(torch.randint(n_digits, (n, 1, n_keys)), n_digits).float()
            query = key[:, :, :1] @ rotation  # the first is the right one: without positions, attention cannot tell
            gathered = attend(to_query(query), to_key(key), value, similarity=chosen, graph=Full())
            return gathered[:, 0, 0], value[:, 0, 0]

        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(*look_up(128)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            gathered, right = look_up(2000)
        return (gathered.argmax(-1) == right.argmax(-1)).float().mean().item()
