"""Attention pooling is kernel regression: a prediction is the mean of known values, weighted by nearness."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Adjacency, Full, Graph
from minigpt.model.variants.similarities import Gaussian, Similarity, Uniform

N_POINTS, NOISE = 50, 0.5
NUMBERS = (6, 12, 25, N_POINTS)
DATA_SETS = 20  # of each seed
WIDTHS = [0.02 * 1.4**i for i in range(17)]  # 0.02 to 4.4
GRID = torch.linspace(0, 5, 101, dtype=torch.float64)
Error = Callable[[Similarity, Tensor, Tensor], float]


def truth(x: Tensor) -> Tensor:
    return 2 * x.sin() + x**0.8


def samples(seed: int, n: int = N_POINTS) -> tuple[Tensor, Tensor]:
    """Points in [0, 5] in ascending order, and their values with noise: the data of Dive into Deep Learning."""
    generator = torch.Generator().manual_seed(seed)
    x = (5 * torch.rand(n, generator=generator, dtype=torch.float64)).sort().values
    return x, truth(x) + NOISE * torch.randn(n, generator=generator, dtype=torch.float64)


def regress(
    x: Tensor, x_train: Tensor, y_train: Tensor, similarity: Similarity, *, graph: Graph | None = None
) -> Tensor:
    """Nadaraya-Watson regression at the (T,) points x, which are the queries; the (S,) training points are the keys.

        f(x) = sum_s K(x - x_s) y_s / sum_s K(x - x_s),  K(u) = exp(-u^2 / (2 width^2)) for `Gaussian(1, width)`.

    Nadaraya 1964 (https://doi.org/10.1137/1109020), Watson 1964 (https://www.jstor.org/stable/25049340); as attention:
    Zhang et al. 2021 (https://d2l.ai/chapter_attention-mechanisms-and-transformers/attention-pooling.html).
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


def gaussian(width: float) -> Gaussian:
    return Gaussian(1, width).requires_grad_(False)


def error_of_the_curve(kernel: Similarity, x: Tensor, y: Tensor) -> float:
    """Mean squared error against the curve without noise."""
    return F.mse_loss(regress(GRID, x, y, kernel), truth(GRID)).item()


def run(study: Study) -> None:
    n_sets = 5 if study.quick else DATA_SETS
    sets = {n: [[samples(100 * seed + i, n) for i in range(n_sets)] for seed in study.seeds] for n in NUMBERS}

    # The formula, written with exponentials and a division, against attention with a softmax.
    x, y = sets[N_POINTS][0][0]
    weights = np.exp(-(np.subtract.outer(GRID.numpy(), x.numpy()) ** 2) / 2)
    gap = np.abs(weights @ y.numpy() / weights.sum(1) - regress(GRID, x, y, gaussian(1.0)).numpy()).max()
    study.finding("Attention and the formula of Nadaraya and Watson agree to 1e-9", gap < 1e-9)

    def errors_of(kernel: Similarity | None, n: int, error: Error = error_of_the_curve) -> Any:
        """(seed, data set) errors of a kernel; without one, of the kernel learned from the data set."""
        return np.array([[error(kernel or fit_width(*data), *data) for data in of_seed] for of_seed in sets[n]])

    measures: dict[str, Error] = {
        "of the curve": error_of_the_curve,
        "leaving one out": lambda kernel, x, y: leave_one_out_error(x, y, kernel).item(),
        "each point among its keys": lambda kernel, x, y: F.mse_loss(regress(x, x, y, kernel), y).item(),
    }
    by_width = {  # (seed, width)
        name: np.stack([errors_of(gaussian(width), N_POINTS, each).mean(1) for width in WIDTHS], axis=1)
        for name, each in measures.items()
    }
    narrowest = (by_width["each point among its keys"].argmin(1) == 0).all()
    study.finding("With each point among its own keys, the narrowest width would win", narrowest)

    best = WIDTHS[by_width["of the curve"].mean(0).argmin()]  # chosen with the true curve, one for all data sets
    kernels = {"average": Uniform(), "width 1": gaussian(1.0), "learned": None, f"width {best:.2f}": gaussian(best)}
    errors = np.array([[errors_of(kernel, n) for kernel in kernels.values()] for n in NUMBERS])
    wins = (errors[:, 2] < errors[:, 1]).mean(-1)  # (number, seed)
    by_seed = errors.mean(-1)  # (number, kernel, seed)
    study.table(
        f"mean squared error of the curve, {n_sets} data sets a seed; width {best:.2f} was chosen with the true curve",
        ["points", *kernels, "learned beats width 1"],
        [[n, *map(spread, each), spread(won)] for n, each, won in zip(NUMBERS, by_seed, wins, strict=True)],
    )
    average, fixed, learned, chosen = by_seed[-1]
    study.finding(f"{N_POINTS} points: width 1 has less than 0.7 of the average's error", (fixed < 0.7 * average).all())
    study.finding("The learned width has less than 0.4 of that", (learned < 0.4 * fixed).all())
    study.finding("A fixed width, chosen with the true curve, fits as well", chosen.mean() < 1.1 * learned.mean())
    study.finding(f"{NUMBERS[0]} points: the learned width often loses to width 1", wins[0].mean() < 0.75)

    (fits, first, second), (widths, bars, numbers) = study.axes(2, 3)
    fits.plot(GRID, truth(GRID), "k--", label="the curve")
    fits.plot(x, y, ".", color="gray")
    fitted = fit_width(x, y)
    for name, kernel in kernels.items():
        fits.plot(GRID, regress(GRID, x, y, kernel or fitted), label=name)
    fits.set(title=f"{N_POINTS} points of one data set", xlabel="x", ylabel="y")
    points = x[None, None, :, None]
    for axes, name, kernel in ((first, "width 1", gaussian(1.0)), (second, "learned width", fitted)):
        axes.imshow(attention_weights(points, points, similarity=kernel, graph=Full())[0, 0])
        axes.set(title=f"weights, {name}", xlabel="key: a known point", ylabel="query")
    for name, each in by_width.items():
        widths.errorbar(WIDTHS, each.mean(0), yerr=np.ptp(each, axis=0) / 2, label=name)
    widths.set(xscale="log", ylim=(0, 1.2), title="error by width", xlabel="width", ylabel="squared error")
    bars.bar(list(kernels), by_seed[-1].mean(1), yerr=np.ptp(by_seed[-1], axis=1) / 2, capsize=3)
    bars.set(title=f"error of the curve, {N_POINTS} points", ylabel="squared error")
    for i, name in enumerate(kernels):
        numbers.errorbar(NUMBERS, by_seed[:, i].mean(1), yerr=np.ptp(by_seed[:, i], axis=1) / 2, capsize=3, label=name)
    numbers.set(title="error by number of points", xlabel="points", ylim=(0, 1.3), xticks=NUMBERS)
    for axes in (fits, widths, numbers):
        axes.legend(frameon=False, fontsize="x-small")
